"""The transformer block that GPT-1 and BERT share, and a stack of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bertgpt.config import ModelConfig
from bertgpt.model.attention import Attention, AttentionFunction, Cache
from bertgpt.model.dropout import Dropout
from bertgpt.model.layers import ACTIVATIONS, dense, layer_norm

REMAT: dict[str, Callable[..., bool] | None] = {  # what a block keeps, in addition to its input
    "none": None,  # keep everything that the backward pass reads
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep weight matmuls, recompute attention scores
    "full": jax.checkpoint_policies.nothing_saveable,  # keep nothing
}


class FeedForward(nn.Module):
    """x [B T D] -> down(activation(up(x))) [B T D], with an inner width of F."""

    config: ModelConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = ACTIVATIONS[self.config.activation](dense(self.config.mlp_size, self.config, self.dtype, "up")(x))
        return dense(self.config.hidden_size, self.config, self.dtype, "down")(hidden)


class Block(nn.Module):
    """One layer of BERT or GPT-1, post-LN as in both papers: x [B T D] -> [B T D].

    The other two results are those of `Attention`.
    """

    config: ModelConfig
    causal: bool
    dtype: DTypeLike = jnp.float32
    choice: str | AttentionFunction = "auto"

    @nn.compact
    def __call__(
        self,
        x: Array,
        attention_mask: Array | None = None,
        pack_ids: Array | None = None,
        deterministic: bool = True,
        cache: Cache | None = None,
        output_attentions: bool = False,
    ) -> tuple[Array, Cache | None, Array | None]:
        attention = Attention(self.config, self.causal, self.dtype, self.choice, name="attention")
        feed_forward = FeedForward(self.config, self.dtype, name="feed_forward")
        dropout = Dropout(self.config.hidden_dropout, deterministic=deterministic)
        attention_norm, feed_forward_norm = (
            layer_norm(self.config, self.dtype, name) for name in ("attention_norm", "feed_forward_norm")
        )
        attended, cache, probabilities = attention(x, attention_mask, pack_ids, deterministic, cache, output_attentions)
        x = attention_norm(x + dropout(attended))
        x = feed_forward_norm(x + dropout(feed_forward(x)))
        return x, cache, probabilities


class Model(nn.Module):
    """Base class of all models.

    Attributes:
        config: sizes and constants.
        dtype: the dtype of the computation; parameters stay float32.
        remat: activation checkpointing (a key of REMAT): "dots" and "full" recompute more in the backward pass and use
            less memory. Outputs and gradients are the same.
        attention: "auto" uses a fused kernel where one can compute attention, "plain" ordinary JAX operations, "fused"
            a fused kernel or an error (docs/scale.md). Or a function of your own, an `AttentionFunction`.
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    attention: str | AttentionFunction = dataclasses.field(default="auto", kw_only=True)


class Stack(Model):
    """`num_layers` blocks in sequence, with separate parameters.

    The layers are a Python loop. A scan over stacked parameters compiles faster, but a step takes over 5 % longer
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
        output_attentions: bool = False,
    ) -> tuple[list[Array], list[Cache] | None, tuple[Array, ...] | None]:
        """x [B T D] -> of each block the output [B T D], the cache and the probabilities [B H T S] of its attention.

        Without a cache, or without `output_attentions`, None takes their place.
        """
        results: list[tuple[Any, Any, Any]] = []
        kept = REMAT[self.remat]
        make = (
            Block if kept is None else nn.remat(Block, policy=kept, static_argnums=(4, 6))
        )  # deterministic and output_attentions
        for layer in range(self.config.num_layers):
            block = make(self.config, self.config.causal, self.dtype, self.attention, name=f"block_{layer}")
            of_layer = cache[layer] if cache else None
            results.append(block(x, attention_mask, pack_ids, deterministic, of_layer, output_attentions))
            x = results[-1][0]
        outputs, caches, attentions = map(list, zip(*results, strict=True))
        return outputs, caches if cache else None, tuple(attentions) if output_attentions else None
