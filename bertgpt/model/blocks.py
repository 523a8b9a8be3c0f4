"""The transformer block that GPT-1 and BERT share, and a stack of them."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bertgpt.config import ModelConfig
from bertgpt.model.attention import Attention, Cache
from bertgpt.model.dropout import Dropout
from bertgpt.model.layers import ACTIVATIONS, dense, layer_norm

REMAT: dict[str, Callable[..., bool] | None] = {  # what is kept of a block beside its input
    "none": None,  # everything that the backward pass reads
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with parameters; not attention's own
    "full": jax.checkpoint_policies.nothing_saveable,
}


class FeedForward(nn.Module):
    """x [B T D] -> activation(x up) down [B T D], through width F."""

    config: ModelConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = ACTIVATIONS[self.config.activation](dense(self.config.mlp_size, self.config, self.dtype, "up")(x))
        return dense(self.config.hidden_size, self.config, self.dtype, "down")(hidden)


class Block(nn.Module):
    """One layer of either model: post-LN, as both papers have it. x [B T D] -> [B T D], and its cache."""

    config: ModelConfig
    causal: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        attention_mask: Array | None = None,
        pack_ids: Array | None = None,
        deterministic: bool = True,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        attention = Attention(self.config, self.causal, self.dtype, name="attention")
        feed_forward = FeedForward(self.config, self.dtype, name="feed_forward")
        dropout = Dropout(self.config.hidden_dropout, deterministic=deterministic)
        attention_norm, feed_forward_norm = (
            layer_norm(self.config, self.dtype, name) for name in ("attention_norm", "feed_forward_norm")
        )
        attended, cache = attention(x, attention_mask, pack_ids, deterministic, cache)
        x = attention_norm(x + dropout(attended))
        x = feed_forward_norm(x + dropout(feed_forward(x)))
        return x, cache


class Model(nn.Module):
    """What every model is given.

    Attributes:
        config: sizes and constants.
        dtype: that it computes in; parameters stay float32.
        remat: what the backward pass finds kept (one of REMAT); the rest of a block it computes again, so that a larger
            batch fits. Outputs and gradients are the same.
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"


class Stack(Model):
    """`num_layers` blocks, one after the other, each with parameters of its own.

    A plain loop: a scan over stacked parameters compiles in half the time, but costs over 5 % of a step
    (docs/performance.md).
    """

    @nn.compact
    def __call__(
        self,
        x: Array,
        attention_mask: Array | None = None,
        pack_ids: Array | None = None,
        deterministic: bool = True,
        cache: Sequence[Cache] | None = None,
    ) -> tuple[list[Array], list[Cache] | None]:
        """x [B T D] -> every block's output, each [B T D], and every block's cache where there is one."""
        outputs: list[Array] = []
        caches: list[Any] = []
        kept = REMAT[self.remat]
        make = Block if kept is None else nn.remat(Block, policy=kept, static_argnums=(4,))  # deterministic
        for layer in range(self.config.num_layers):
            block = make(self.config, self.config.causal, self.dtype, name=f"block_{layer}")
            x, filled = block(x, attention_mask, pack_ids, deterministic, cache[layer] if cache else None)
            outputs.append(x)
            caches.append(filled)
        return outputs, caches if cache else None
