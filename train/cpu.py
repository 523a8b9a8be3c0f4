"""Dense layers in bfloat16 for training on a CPU, in place of Linen's.

On a CPU, XLA has a fast bfloat16 product only if the result is float32. Linen's products return bfloat16. If they
returned float32, JAX's derivative would multiply float32 gradients, so the derivative is written here. The gradient of
a kernel is never rounded to bfloat16. `dense` has no forward-mode derivative (`jax.jvp`, `jax.hessian`), so it is not
part of bertgpt/. docs/performance.md gives the speedup.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from bertgpt.model.blocks import Model


def fast_apply(model: Model, platform: str) -> Callable[..., Any]:
    """Return `model.apply` for training on a platform such as "cpu" or "gpu"; on a CPU, bfloat16 dense layers run as
    `dense`."""
    if platform not in ("cpu", "tpu"):
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
    """Multiply x and y (bfloat16) and sum over the given axes of each, in float32 -> float32."""
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
    ones = jnp.ones((8, *dy.shape[:-1]), jnp.bfloat16)
    db = product(ones, dy, (tuple(range(1, dy.ndim)), rows))[0] if dy.shape[-1]>0 else 0
    return dx.astype(jnp.bfloat16), product(x, dy, (rows, rows)), db


dense.defvjp(_forward, _backward)
