"""Multi-head self-attention, and the forms that compute it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bertgpt.config import ModelConfig
from bertgpt.model.dropout import Dropout
from bertgpt.model.layers import dense
from bertgpt.model.masks import dense_mask


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool,
    attention_mask: Array | None = None,
    pack_ids: Array | None = None,
    dropout: Dropout | None = None,
) -> Array:
    """Self-attention by the fastest form that can do it: cuDNN's on a GPU where `cudnn_obstacle` finds nothing against
    it, else `mix`.

    Args:
        query, key, value: [B T H W].
        causal: whether a position sees only itself and what stands before it.
        attention_mask, pack_ids: [B T] as in `masks.py`.
        dropout: of the probabilities.

    Returns:
        [B T H W].
    """
    masks = {"attention_mask": attention_mask, "pack_ids": pack_ids}
    rate = 0.0 if dropout is None or dropout.deterministic else dropout.rate
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]  # a device, its kind, or None
    device = chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]
    if cudnn_obstacle(device, query.dtype, query.shape[1], query.shape[3], rate) is None:
        return fused(query, key, value, causal=causal, implementation="cudnn", **masks)
    return mix(query, key, value, dense_mask(query.shape[1], causal=causal, **masks), dropout)


def cudnn_obstacle(device: Any, dtype: DTypeLike, length: int, width: int, dropout: float) -> str | None:
    """Why cuDNN's fused attention cannot be taken for T tokens and heads of a width; None where it can."""
    if not device.device_kind.startswith("NVIDIA"):
        return f"the device is a {device.device_kind}"
    if float(device.compute_capability) < 8:
        return f"the GPU's compute capability is {device.compute_capability}, under 8.0"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16, and this is {jnp.dtype(dtype)}"
    if width % 8 or width > 128 or length % 2:
        return f"it takes heads of a width that 8 divides, to 128, and an even length; these are {width} and {length}"
    return f"it has no dropout, and model.attention_dropout is {dropout}" if dropout else None


def fused(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool,
    attention_mask: Array | None = None,
    pack_ids: Array | None = None,
    implementation: Any = None,
) -> Array:
    """`mix` by `jax.nn.dot_product_attention`, which never writes the scores out under cuDNN. Arguments as `attend`."""
    length = query.shape[1]
    mask = dense_mask(length, causal=False, attention_mask=attention_mask, pack_ids=pack_ids)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (mask.shape[0], 1, length, length))
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation=implementation)


def mix(query: Array, key: Array, value: Array, mask: Array | None, dropout: nn.Module | None = None) -> Array:
    """softmax(query key^T / sqrt(W)) value, the softmax in float32.

    query [B T H W], key and value [B S H W]; mask bool, broadcast to [B H T S], True = may attend; `dropout` acts on
    the probabilities. Returns [B T H W]. Source: Vaswani et al. 2017, section 3.2.1.
    """
    scores = jnp.einsum("BTHW,BSHW->BHTS", query, key, preferred_element_type=jnp.float32) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores).astype(value.dtype)  # [B H T S]
    if dropout is not None:
        probabilities = dropout(probabilities)
    return jnp.einsum("BHTS,BSHW->BTHW", probabilities, value)


class Attention(nn.Module):
    """Multi-head self-attention: x [B T D] -> [B T D]. Source: Vaswani et al. 2017, section 3.2.2."""

    config: ModelConfig
    causal: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, attention_mask: Array | None, pack_ids: Array | None, deterministic: bool = True
    ) -> Array:
        config = self.config
        heads = (*x.shape[:2], config.num_heads, config.hidden_size // config.num_heads)  # B T H W
        query, key, value = (
            dense(config.hidden_size, config, self.dtype, name)(x).reshape(heads) for name in ("query", "key", "value")
        )
        mixed = attend(
            query,
            key,
            value,
            causal=self.causal,
            attention_mask=attention_mask,
            pack_ids=pack_ids,
            dropout=Dropout(config.attention_dropout, deterministic=deterministic),
        )
        return dense(config.hidden_size, config, self.dtype, "out")(mixed.reshape(x.shape))
