"""GPT-1: token and position embeddings, the causal stack, the tied language-model head (Radford et al. 2018)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bertgpt.config import ModelConfig
from bertgpt.layers import Stack, tied_logits, weight_init
from bertgpt.outputs import ModelOutput


class OpenAIGPTModel(nn.Module):
    """dropout(token + position), then the causal stack; no LayerNorm before or after it."""

    config: ModelConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.token, self.position = (
            nn.Embed(size, config.hidden_size, dtype=self.dtype, embedding_init=weight_init(config))
            for size in (config.vocab_size, config.max_positions)
        )
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.stack = Stack(config, self.dtype)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        *,
        pack_ids: Array | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
    ) -> ModelOutput:
        """Reads ids from left to right.

        Args:
            input_ids: [B T] int, under `vocab_size` (JAX does not check: validate on the host).
            attention_mask: [B T], nonzero = a real token; None: all are.
            position_ids: [B T] or [1 T], under `max_positions`; None: 0, 1, 2, ...
            pack_ids: [B T], equal within one example of a row; None: a row is one example.
            deterministic: False needs `rngs={"dropout": key}`.
            output_hidden_states: also return every layer's output.
        """
        if position_ids is None:
            position_ids = jnp.arange(input_ids.shape[1])[None]
        embedded = self.dropout(self.token(input_ids) + self.position(position_ids), deterministic=deterministic)
        layers = self.stack(embedded, attention_mask, pack_ids, deterministic)
        return ModelOutput(
            last_hidden_state=layers[-1],
            hidden_states=(embedded, *layers) if output_hidden_states else None,
        )


class OpenAIGPTLMHeadModel(nn.Module):
    """GPT-1 with next-token logits: the hidden state times the token embeddings, no bias."""

    config: ModelConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.transformer = OpenAIGPTModel(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        *,
        pack_ids: Array | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
    ) -> ModelOutput:
        """As `OpenAIGPTModel`, with `logits` [B T V]: position t predicts token t + 1."""
        output = self.transformer(
            input_ids,
            attention_mask,
            position_ids,
            pack_ids=pack_ids,
            deterministic=deterministic,
            output_hidden_states=output_hidden_states,
        )
        return dataclasses.replace(
            output, logits=tied_logits(output.last_hidden_state, self.transformer.token.embedding)
        )
