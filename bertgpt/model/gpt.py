"""GPT-1: embeddings, the causal stack, the tied LM head, and one model class per task head (Radford et al. 2018)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bertgpt.errors import InputError, check_array
from bertgpt.ids import narrowed
from bertgpt.losses.chunked_cross_entropy import LMHead
from bertgpt.model.attention import Cache
from bertgpt.model.blocks import Model, Stack
from bertgpt.model.dropout import Dropout
from bertgpt.model.inputs import check_cache, check_inputs, flatten_choices, shape_of_tokens
from bertgpt.model.layers import Embedding, dense, embedded_tokens, look_up, weight_init
from bertgpt.model.masks import key_mask
from bertgpt.model.outputs import ModelOutput


class OpenAIGPTModel(Model):
    """dropout(token + position), summed in float32, then the causal stack; no LayerNorm before or after it."""

    def setup(self) -> None:
        config = self.config
        self.token, self.position = (
            Embedding(size, config.hidden_size, embedding_init=weight_init(config))
            for size in (config.vocab_size, config.max_positions)
        )
        self.dropout = Dropout(config.hidden_dropout)
        self.stack = Stack(config, self.dtype, self.remat, attention=self.attention)

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        *,
        inputs_embeds: Array | None = None,
        pack_ids: Array | None = None,
        cache: Sequence[Cache] | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> ModelOutput:
        """Encode ids. An id outside its range gives NaN at its position and wherever attention spreads it.

        Args:
            input_ids: [B T] int, below `vocab_size`. T is at most `max_positions`, unless `position_ids` is given.
            attention_mask: [B T], nonzero = a real token; or, bool or int, [B T S] or [B 1 T S], nonzero = query t may
                attend to key s, if s is not after t; None: all tokens are real.
            position_ids: [B T] or [1 T] int, below `max_positions`; None: 0, 1, 2, ...
            inputs_embeds: [B T D] float, in place of `input_ids`: what the table of token embeddings would give for
                them. Positions are added to it.
            pack_ids: [B T] int, equal for all tokens of one example; None: a row is one example.
            cache: the keys and values of earlier tokens, from `empty_cache` or an earlier output. S is then the number
                of its slots, `attention_mask` [B S], [B T S] or [B 1 T S], `pack_ids` [B S], and positions count from
                its next slot.
            deterministic: False turns dropout on and needs `rngs={"dropout": key}`.
            output_hidden_states: also return the output of each layer.
            output_attentions: also return the attention probabilities of each layer; fused kernels are then not used.

        Raises:
            InputError: the shapes of the arguments do not fit together, or a row is too long; raised while tracing.
        """
        masks = {"attention_mask": attention_mask, "pack_ids": pack_ids}
        others = {} if cache else masks
        check_inputs(self.config, "BT", input_ids, inputs_embeds, position_ids=position_ids, **others)
        tokens = embedded_tokens(self.token, input_ids, inputs_embeds)  # [B T D]
        rows, length, _ = tokens.shape
        if cache:
            check_cache(self.config, rows, length, cache, **masks)
        if position_ids is None:
            position_ids = jnp.arange(length)[None]
            position_ids = position_ids + cache[0].start if cache else position_ids
        embedded = (tokens + self.position(position_ids)).astype(self.dtype)
        embedded = self.dropout(embedded, deterministic=deterministic)
        layers, cache, attentions = self.stack(
            embedded, attention_mask, pack_ids, deterministic, cache, output_attentions
        )
        return ModelOutput(
            last_hidden_state=layers[-1],
            hidden_states=(embedded, *layers) if output_hidden_states else None,
            attentions=attentions,
            cache=cache,
        )


class OpenAIGPTLMHeadModel(Model):
    """GPT-1 with next-token logits: the hidden state times the token embeddings, without a bias."""

    def setup(self) -> None:
        self.transformer = OpenAIGPTModel(self.config, self.dtype, self.remat, attention=self.attention)

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        *,
        output_logits: bool = True,
        **options: Any,
    ) -> ModelOutput:
        """Compute the outputs of `OpenAIGPTModel` and `logits` [B T V]: position t predicts token t + 1.

        Args:
            output_logits: False: `logits` is an `LMHead` (states, embedding); the losses compute the logits in blocks.
        """
        output = self.transformer(input_ids, attention_mask, position_ids, **options)
        head = LMHead(output.last_hidden_state, self.transformer.token.embedding)
        return dataclasses.replace(output, head_logits=head.logits() if output_logits else head)


class OpenAIGPTDoubleHeadsModel(Model):
    """GPT-1 with next-token logits and one logit per choice (section 3.3, multiple choice)."""

    def setup(self) -> None:
        self.transformer = OpenAIGPTModel(self.config, self.dtype, self.remat, attention=self.attention)
        self.dropout = Dropout(self.config.head_dropout)
        self.multiple_choice_head = dense(1, self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        *,
        inputs_embeds: Array | None = None,
        mc_token_ids: Array | None = None,
        deterministic: bool = True,
        **options: Any,
    ) -> ModelOutput:
        """Compute the outputs from inputs [B C T], with `logits` [B C T V] and `mc_logits` [B C].

        The other fields have B x C rows.

        Args:
            mc_token_ids: [B C] int below T, the position whose state scores a choice; None: the last real token.
        """
        given: dict[str, Any] = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        others = {"attention_mask": attention_mask, "position_ids": position_ids}
        inputs = flatten_choices(self.config, **given, **others)
        reject_cache(self, options)
        output = self.transformer(**inputs, deterministic=deterministic, **options)
        x = output.last_hidden_state  # [B*C T D]
        shape = shape_of_tokens(input_ids, inputs_embeds)  # B C T
        if mc_token_ids is None:
            at = last_position(x, inputs["attention_mask"])
        else:
            check_array("mc_token_ids", mc_token_ids, "BC", {"B": shape[0], "C": shape[1]})
            at = narrowed(mc_token_ids.reshape(-1))
        chosen = self.dropout(jax.vmap(look_up)(x, at), deterministic=deterministic)
        logits = LMHead(x, self.transformer.token.embedding).logits()
        return dataclasses.replace(
            output,
            head_logits=logits.reshape(*shape, -1),
            mc_logits=self.multiple_choice_head(chosen).astype(jnp.float32).reshape(shape[:2]),
        )


class OpenAIGPTForSequenceClassification(Model):
    """Classification of a text: a dense layer without bias on the state of its last token."""

    def setup(self) -> None:
        self.transformer = OpenAIGPTModel(self.config, self.dtype, self.remat, attention=self.attention)
        self.dropout = Dropout(self.config.head_dropout)
        self.score = dense(self.config.num_labels, self.config, self.dtype, bias=False)

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        *,
        inputs_embeds: Array | None = None,
        deterministic: bool = True,
        output_lm_logits: bool = False,
        **options: Any,
    ) -> ModelOutput:
        """Compute the outputs of `OpenAIGPTModel` and `logits` [B num_labels], from the state of the last real token.

        Args:
            input_ids: [B T]; or [B 2 T], a pair of texts in both orders, whose two states are added before the
                classifier (section 3.3, similarity). The other fields then have B x 2 rows.
            attention_mask: the same shape, nonzero = a real token; or with one more axis, as of `OpenAIGPTModel`. The
                last real token is the last one to which any token may attend.
            position_ids: the same shape.
            inputs_embeds: [B T D] or [B 2 T D], in place of `input_ids`.
            output_lm_logits: also return `lm_logits`, [B T V] or [B 2 T V].
        """
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }
        shape = shape_of_tokens(input_ids, inputs_embeds)  # B T, or B 2 T
        if len(shape) == 3:
            inputs = flatten_choices(self.config, **inputs)
        reject_cache(self, options)
        output = self.transformer(**inputs, deterministic=deterministic, **options)
        x = output.last_hidden_state
        last = x[jnp.arange(x.shape[0]), last_position(x, inputs["attention_mask"])]  # [B D], or [B*2 D]
        last = last.reshape(shape[0], -1, last.shape[-1]).sum(1)
        logits = self.score(self.dropout(last, deterministic=deterministic)).astype(jnp.float32)
        if not output_lm_logits:
            return dataclasses.replace(output, head_logits=logits)
        lm_logits = LMHead(x, self.transformer.token.embedding).logits().reshape(*shape, -1)
        return dataclasses.replace(output, head_logits=logits, lm_logits=lm_logits)


def reject_cache(model: Model, options: dict[str, Any]) -> None:
    """
    Raises:
        InputError: the options have a cache, of whose slots a head would read the wrong one.
    """
    if options.get("cache"):
        raise InputError(f"{type(model).__name__} takes no cache; give it the whole text at once")


def last_position(x: Array, attention_mask: Array | None) -> Array:
    """Return the last real position of each row of x [B T D], as [B] int; rows may be padded on either side.

    It is the last key of the `attention_mask` to which any query may attend.
    """
    length = x.shape[1]
    if attention_mask is None:
        return jnp.full(x.shape[0], length - 1)
    real = key_mask(attention_mask).any(axis=(1, 2))  # [B T]
    return length - 1 - real[:, ::-1].argmax(axis=1)
