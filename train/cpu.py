"""Dense layers in bfloat16 for a CPU, in place of Linen's where a model is trained.

XLA multiplies bfloat16 fast on a CPU only where the result is float32. Linen's products give bfloat16, and what JAX
derives from a float32 result multiplies float32 gradients; so the derivative is written here. The gradient of a kernel
is then never rounded to bfloat16. It cannot be differentiated forward (`jax.jvp`, `jax.hessian`), and so stays out of
bertgpt/. docs/performance.md has what it gains.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from bertgpt.model.blocks import Model


def fast_apply(model: Model, platform: str) -> Callable[..., Any]:
    """`model.apply` for training on a platform such as "cpu" or "gpu": on a CPU, dense layers in bfloat16 run as
    `dense`."""
    if platform != "cpu":
        return model.apply

    def apply(*arguments: Any, **options: Any) -> Any:
        with nn.intercept_methods(_instead):
            return model.apply(*arguments, **options)

    return apply


def _instead(linen: Callable[..., Any], arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
    layer = context.module
    suits = isinstance(layer, nn.Dense) and layer.dtype == jnp.bfloat16 and layer.use_bias
    if not suits or context.method_name != "__call__":
        return linen(*arguments, **options)
    params = layer.variables["params"]
    return dense(arguments[0].astype(jnp.bfloat16), params["kernel"], params["bias"])


def product(x: Array, y: Array, over: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """x and y, bfloat16, summed in float32 over these axes of each -> float32."""
    return jax.lax.dot_general(x, y, (over, ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def dense(x: Array, kernel: Array, bias: Array) -> Array:
    """nn.Dense in bfloat16: x [... I] bfloat16, kernel [I O] and bias [O] float32 -> [... O] bfloat16."""
    return _forward(x, kernel, bias)[0]


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    kernel = kernel.astype(jnp.bfloat16)
    y = product(x, kernel, ((x.ndim - 1,), (0,))) + jnp.expand_dims(bias, range(x.ndim - 1))
    return y.astype(jnp.bfloat16), (x, kernel)


def _backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    x, kernel = kept
    rows = tuple(range(x.ndim - 1))
    dx = product(dy, kernel, ((x.ndim - 1,), (1,)))
    return dx.astype(jnp.bfloat16), product(x, dy, (rows, rows)), dy.astype(jnp.float32).sum(rows)


dense.defvjp(_forward, _backward)
