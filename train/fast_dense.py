"""Dense layers in bfloat16 for training on a CPU or TPU, and a TPU's embeddings, in place of Linen's.

Linen's products return bfloat16; these return float32 sums, which are rounded once. On a CPU, XLA has a fast bfloat16
product only in this form. If Linen's products returned float32, JAX's derivative would multiply float32 gradients, so
the derivative is written here. The gradient of a kernel is never rounded to bfloat16. `dense` has no forward-mode
derivative (`jax.jvp`, `jax.hessian`), so it is not part of bertgpt/. docs/performance.md gives the speedup.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from bertgpt.ids import narrowed
from bertgpt.model.blocks import Model
from bertgpt.model.layers import Embedding, look_up

SUBLANES = 8  # rows of a TPU's register


def fast_apply(model: Model, platform: str) -> Callable[..., Any]:
    """Return `model.apply` for training on a platform such as "cpu" or "gpu".

    Of a bfloat16 model, dense layers run as `dense` on a CPU or TPU, and embeddings as `looked_up` on a TPU.
    """
    if platform not in ("cpu", "tpu") or model.dtype != jnp.bfloat16:
        return model.apply
    instead = functools.partial(_instead, platform == "tpu")

    def apply(*arguments: Any, **options: Any) -> Any:
        with nn.intercept_methods(instead):
            return model.apply(*arguments, **options)

    return apply


def _instead(
    of_tpu: bool, linen: Callable[..., Any], arguments: Any, options: Any, context: nn.module.InterceptorContext
) -> Any:
    layer = context.module
    if of_tpu and isinstance(layer, Embedding) and context.method_name == "__call__":
        return looked_up(layer.variables["params"]["embedding"], narrowed(arguments[0]))
    suits = isinstance(layer, nn.Dense) and layer.dtype == jnp.bfloat16 and layer.use_bias
    if not suits or context.method_name != "__call__":
        return linen(*arguments, **options)
    params = layer.variables["params"]
    return dense(arguments[0].astype(jnp.bfloat16), params["kernel"], params["bias"], of_tpu)


def product(x: Array, y: Array, over: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """Multiply x and y (bfloat16) and sum over the given axes of each, in float32 -> float32."""
    return jax.lax.dot_general(x, y, (over, ((), ())), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def dense(x: Array, kernel: Array, bias: Array, of_tpu: bool = False) -> Array:
    """nn.Dense in bfloat16: x [... I] bfloat16, kernel [I O] and bias [O] float32 -> [... O] bfloat16.

    On a TPU (`of_tpu`), the gradient of the bias is a product with ones, since the matrix units add faster than the
    vector units. Eight rows of ones hide from XLA that it is a sum.
    """
    return _forward(x, kernel, bias, of_tpu)[0]


def _forward(x: Array, kernel: Array, bias: Array, of_tpu: bool) -> tuple[Array, tuple[Array, Array]]:
    kernel = kernel.astype(jnp.bfloat16)
    y = product(x, kernel, ((x.ndim - 1,), (0,))) + jnp.expand_dims(bias, range(x.ndim - 1))
    return y.astype(jnp.bfloat16), (x, kernel)


def _backward(of_tpu: bool, kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    x, kernel = kept
    rows = tuple(range(x.ndim - 1))
    dx = product(dy, kernel, ((x.ndim - 1,), (1,)))
    if of_tpu:
        ones = jnp.ones((SUBLANES, *dy.shape[:-1]), jnp.bfloat16)
        d_bias = product(ones, dy, (tuple(range(1, dy.ndim)), rows))[0]
    else:
        d_bias = dy.astype(jnp.float32).sum(rows)
    return dx.astype(jnp.bfloat16), product(x, dy, (rows, rows)), d_bias


dense.defvjp(_forward, _backward)


@jax.custom_vjp
def looked_up(table: Array, ids: Array) -> Array:
    """`look_up` in a bfloat16 copy of a float32 table [V D]: float32 [... D]. Pretraining needs the copy for its logits
    too. The gradient of the table is summed in float32.
    """
    return look_up(table.astype(jnp.bfloat16), ids).astype(table.dtype)


def _looked_up(table: Array, ids: Array) -> tuple[Array, tuple[Array, Array]]:
    return looked_up(table, ids), (table, ids)


def _gradient_of_table(kept: tuple[Array, Array], slope: Array) -> tuple[Array, None]:
    table, ids = kept
    return jax.vjp(lambda table: look_up(table, ids), table)[1](slope)[0], None


looked_up.defvjp(_looked_up, _gradient_of_table)
