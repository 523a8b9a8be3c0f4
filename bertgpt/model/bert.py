"""BERT: embeddings, the bidirectional stack, the pooler, and a model a head (Devlin et al. 2019)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bertgpt.config import ModelConfig
from bertgpt.errors import check_array
from bertgpt.ids import narrowed
from bertgpt.losses.chunked_cross_entropy import VocabularyHead
from bertgpt.model.blocks import Model, Stack
from bertgpt.model.dropout import Dropout
from bertgpt.model.inputs import check_inputs, flatten_choices
from bertgpt.model.layers import ACTIVATIONS, Embedding, dense, layer_norm, look_up, weight_init
from bertgpt.model.outputs import ModelOutput


class BertEmbeddings(nn.Module):
    """dropout(LayerNorm(token + position + segment)), summed in float32: ids [B T] -> [B T D] of the dtype."""

    config: ModelConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        sizes = {"token": config.vocab_size, "position": config.max_positions, "segment": config.type_vocab_size}
        self.token, self.position, self.segment = (
            Embedding(size, config.hidden_size, embedding_init=weight_init(config), name=name)
            for name, size in sizes.items()
        )
        self.norm = layer_norm(config, self.dtype, "norm")
        self.dropout = Dropout(config.hidden_dropout)

    def __call__(
        self,
        input_ids: Array,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        if position_ids is None:
            position_ids = jnp.arange(input_ids.shape[1])[None]
        total = self.token(input_ids) + self.segment(token_type_ids) + self.position(position_ids)
        return self.dropout(self.norm(total), deterministic=deterministic)


class BertModel(Model):
    """The encoder with its pooler; without it where no head reads it."""

    add_pooling_layer: bool = True

    def setup(self) -> None:
        self.embeddings = BertEmbeddings(self.config, self.dtype)
        self.stack = Stack(self.config, self.dtype, self.remat)
        if self.add_pooling_layer:
            self.pooler = dense(self.config.hidden_size, self.config, self.dtype, "pooler")

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        pack_ids: Array | None = None,
        cls_positions: Array | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
    ) -> ModelOutput:
        """Encodes ids. One outside its range gives NaN there and wherever attention spreads it.

        Args:
            input_ids: [B T] int, under `vocab_size`; at most `max_positions` in a row, or more with `position_ids`.
            attention_mask: [B T], nonzero = a real token; None: all are.
            token_type_ids: [B T] int, under `type_vocab_size`; None: all 0.
            position_ids: [B T] or [1 T] int, under `max_positions`; None: 0, 1, 2, ...
            pack_ids: [B T] int, equal within one example of a row; None: a row is one example.
            cls_positions: [B K] int under T, where the [CLS] of each example stands; None: at 0. Given, `pooler_output`
                and all that heads make of it have an axis K after B.
            deterministic: False needs `rngs={"dropout": key}`.
            output_hidden_states: also return every layer's output.

        Raises:
            InputError: the arguments' shapes do not fit together, or a row is too long; raised while tracing.
        """
        others = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "pack_ids": pack_ids}
        check_inputs(self.config, "BT", input_ids, position_ids=position_ids, **others)
        embedded = self.embeddings(input_ids, token_type_ids, position_ids, deterministic)
        layers, _ = self.stack(embedded, attention_mask, pack_ids, deterministic)
        first = layers[-1][:, 0] if cls_positions is None else gather(layers[-1], "cls_positions", cls_positions)
        return ModelOutput(
            last_hidden_state=layers[-1],
            pooler_output=jnp.tanh(self.pooler(first)) if self.add_pooling_layer else None,
            hidden_states=(embedded, *layers) if output_hidden_states else None,
        )


class MLMHead(nn.Module):
    """LayerNorm(activation(dense(x))) times the token embeddings, plus a bias of its own: of x [B P D]."""

    config: ModelConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, token_embedding: Array) -> VocabularyHead:
        config = self.config
        x = ACTIVATIONS[config.activation](dense(config.hidden_size, config, self.dtype, "dense")(x))
        x = layer_norm(config, self.dtype, "norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,), jnp.float32)
        return VocabularyHead(x, token_embedding, bias)


class BertForPreTraining(Model):
    """BERT with both heads of its pretraining: masked tokens and next sentence (section 3.1)."""

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, self.remat)
        self.mlm_head = MLMHead(self.config, self.dtype)
        self.nsp_head = dense(2, self.config, self.dtype, "nsp_head")

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        masked_positions: Array | None = None,
        output_logits: bool = True,
        **options: Any,
    ) -> ModelOutput:
        """As `BertModel`, with `nsp_logits` [B 2] (with `cls_positions` [B K 2]) and `mlm_logits`.

        Args:
            masked_positions: [B P] int under T: vocabulary logits only there ([B P V]); None: everywhere ([B T V]).
            output_logits: False: `mlm_logits` is what they are made of, for losses that never write them all out.
        """
        output = self.bert(input_ids, attention_mask, token_type_ids, position_ids, **options)
        x = gather(output.last_hidden_state, "masked_positions", masked_positions)
        head = self.mlm_head(x, self.bert.embeddings.token.embedding)
        return dataclasses.replace(
            output,
            mlm_logits=head.logits() if output_logits else head,
            nsp_logits=self.nsp_head(output.pooler_output).astype(jnp.float32),
        )


def gather(x: Array, name: str, positions: Array | None) -> Array:
    """x [B T D] at positions [B P] -> [B P D], NaN beyond x; all of x where there are none. `name` is their name."""
    if positions is None:
        return x
    check_array(name, positions, "BP", {"B": x.shape[0]})
    return jax.vmap(look_up)(x, narrowed(positions))


class BertForMaskedLM(Model):
    """BERT with the masked-token head alone, and so without a pooler."""

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, self.remat, add_pooling_layer=False)
        self.mlm_head = MLMHead(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        masked_positions: Array | None = None,
        **options: Any,
    ) -> ModelOutput:
        """As `BertForPreTraining`, without `nsp_logits`."""
        output = self.bert(input_ids, attention_mask, token_type_ids, position_ids, **options)
        x = gather(output.last_hidden_state, "masked_positions", masked_positions)
        return dataclasses.replace(output, mlm_logits=self.mlm_head(x, self.bert.embeddings.token.embedding).logits())


class BertForNextSentencePrediction(Model):
    """BERT with the next-sentence head alone."""

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, self.remat)
        self.nsp_head = dense(2, self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        deterministic: bool = True,
        **options: Any,
    ) -> ModelOutput:
        """As `BertModel`, with `nsp_logits` [B 2]."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids)
        output = self.bert(*inputs, deterministic=deterministic, **options)
        return dataclasses.replace(output, nsp_logits=self.nsp_head(output.pooler_output).astype(jnp.float32))


class BertForSequenceClassification(Model):
    """Classes of a text or a pair: a dense layer on the pooler's output (section 4.1).

    The labels' kind decides the loss: one class, several (`multi_label_classification`) or a number (`regression`).
    """

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, self.remat)
        self.dropout = Dropout(self.config.head_dropout)
        self.classifier = dense(self.config.num_labels, self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        deterministic: bool = True,
        **options: Any,
    ) -> ModelOutput:
        """As `BertModel`, with `logits` [B num_labels]."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids)
        output = self.bert(*inputs, deterministic=deterministic, **options)
        x = self.dropout(output.pooler_output, deterministic=deterministic)
        return dataclasses.replace(output, logits=self.classifier(x).astype(jnp.float32))


class BertForMultipleChoice(Model):
    """One number for every choice, from the pooler's output (section 4.4)."""

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, self.remat)
        self.dropout = Dropout(self.config.head_dropout)
        self.classifier = dense(1, self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        deterministic: bool = True,
        **options: Any,
    ) -> ModelOutput:
        """Every input is [B C T]; adds `mc_logits` [B C]. The other fields have B x C rows."""
        others = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids}
        inputs = flatten_choices(self.config, input_ids, **others)
        output = self.bert(*inputs, deterministic=deterministic, **options)
        x = self.dropout(output.pooler_output, deterministic=deterministic)
        return dataclasses.replace(
            output, mc_logits=self.classifier(x).astype(jnp.float32).reshape(input_ids.shape[:2])
        )


class BertForTokenClassification(Model):
    """A class for every token (section 5.3)."""

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, self.remat, add_pooling_layer=False)
        self.dropout = Dropout(self.config.head_dropout)
        self.classifier = dense(self.config.num_labels, self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        deterministic: bool = True,
        **options: Any,
    ) -> ModelOutput:
        """As `BertModel`, with `logits` [B T num_labels]."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids)
        output = self.bert(*inputs, deterministic=deterministic, **options)
        x = self.dropout(output.last_hidden_state, deterministic=deterministic)
        return dataclasses.replace(output, logits=self.classifier(x).astype(jnp.float32))


class BertForQuestionAnswering(Model):
    """Where an answer begins and ends: two vectors times every token's state (section 4.2)."""

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, self.remat, add_pooling_layer=False)
        self.qa_outputs = dense(2, self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        deterministic: bool = True,
        **options: Any,
    ) -> ModelOutput:
        """As `BertModel`, with `start_logits` and `end_logits`, each [B T]."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids)
        output = self.bert(*inputs, deterministic=deterministic, **options)
        logits = self.qa_outputs(output.last_hidden_state).astype(jnp.float32)  # [B T 2]
        return dataclasses.replace(output, start_logits=logits[..., 0], end_logits=logits[..., 1])
