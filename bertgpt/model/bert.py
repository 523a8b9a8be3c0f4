"""BERT: embeddings, the bidirectional stack, the pooler, and one model class per head (Devlin et al. 2019)."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bertgpt.config import ModelConfig
from bertgpt.errors import check_array
from bertgpt.ids import narrowed
from bertgpt.losses.chunked_cross_entropy import LMHead
from bertgpt.model.blocks import Model, Stack
from bertgpt.model.dropout import Dropout
from bertgpt.model.inputs import check_inputs, flatten_choices, shape_of_tokens
from bertgpt.model.layers import ACTIVATIONS, Embedding, dense, embedded_tokens, layer_norm, look_up, weight_init
from bertgpt.model.outputs import ModelOutput


class BertEmbeddings(nn.Module):
    """dropout(LayerNorm(token + position + segment)), summed in float32: ids [B T] -> [B T D] in `dtype`."""

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
        input_ids: Array | None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        inputs_embeds: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        tokens = embedded_tokens(self.token, input_ids, inputs_embeds)  # [B T D]
        if token_type_ids is None:
            token_type_ids = jnp.zeros(tokens.shape[:2], jnp.int32)
        if position_ids is None:
            position_ids = jnp.arange(tokens.shape[1])[None]
        total = tokens + self.segment(token_type_ids) + self.position(position_ids)
        return self.dropout(self.norm(total), deterministic=deterministic)


class BertModel(Model):
    """The encoder, with a pooler unless `add_pooling_layer` is False."""

    add_pooling_layer: bool = True

    def setup(self) -> None:
        self.embeddings = BertEmbeddings(self.config, self.dtype)
        self.stack = Stack(self.config, self.dtype, self.remat, attention=self.attention)
        if self.add_pooling_layer:
            self.pooler = dense(self.config.hidden_size, self.config, self.dtype, "pooler")

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        inputs_embeds: Array | None = None,
        pack_ids: Array | None = None,
        cls_positions: Array | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> ModelOutput:
        """Encode ids. An id outside its range gives NaN at its position and wherever attention spreads it.

        Args:
            input_ids: [B T] int, below `vocab_size`. T is at most `max_positions`, unless `position_ids` is given.
            attention_mask: [B T], nonzero = a real token; or, bool or int, [B T S] or [B 1 T S], nonzero = query t may
                attend to key s; None: all tokens are real.
            token_type_ids: [B T] int, below `type_vocab_size`; None: all 0.
            position_ids: [B T] or [1 T] int, below `max_positions`; None: 0, 1, 2, ...
            inputs_embeds: [B T D] float, in place of `input_ids`: what the table of token embeddings would give for
                them. Positions and segments are added to it.
            pack_ids: [B T] int, equal for all tokens of one example; None: a row is one example.
            cls_positions: [B K] int below T, the position of the [CLS] of each example; None: position 0. If given,
                `pooler_output` and the outputs of heads that read it have an axis K after B.
            deterministic: False turns dropout on and needs `rngs={"dropout": key}`.
            output_hidden_states: also return the output of each layer.
            output_attentions: also return the attention probabilities of each layer; fused kernels are then not used.

        Raises:
            InputError: the shapes of the arguments do not fit together, or a row is too long; raised while tracing.
        """
        others = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "pack_ids": pack_ids}
        check_inputs(self.config, "BT", input_ids, inputs_embeds, position_ids=position_ids, **others)
        embedded = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds, deterministic)
        layers, _, attentions = self.stack(
            embedded, attention_mask, pack_ids, deterministic, output_attentions=output_attentions
        )
        first = layers[-1][:, 0] if cls_positions is None else gather(layers[-1], "cls_positions", cls_positions)
        return ModelOutput(
            last_hidden_state=layers[-1],
            pooler_output=jnp.tanh(self.pooler(first)) if self.add_pooling_layer else None,
            hidden_states=(embedded, *layers) if output_hidden_states else None,
            attentions=attentions,
        )


class MLMHead(nn.Module):
    """LayerNorm(activation(dense(x))) times the token embeddings, plus a bias, as an `LMHead`: x [B P D]."""

    config: ModelConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, token_embedding: Array) -> LMHead:
        config = self.config
        x = ACTIVATIONS[config.activation](dense(config.hidden_size, config, self.dtype, "dense")(x))
        x = layer_norm(config, self.dtype, "norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,), jnp.float32)
        return LMHead(x, token_embedding, bias)


class BertWithHeads(Model):
    """Base class of BERT with heads: calls `BertModel`, and adds the outputs of the heads.

    A subclass creates its heads in `setup` and computes their outputs in `heads`. If they do not read `pooler_output`,
    it sets `pooled` to False, and its encoder has no pooler.
    """

    pooled: ClassVar[bool] = True
    head_options: ClassVar[tuple[str, ...]] = ()  # names of the arguments passed on to `heads`

    def setup(self) -> None:
        self.bert = BertModel(
            self.config, self.dtype, self.remat, attention=self.attention, add_pooling_layer=self.pooled
        )

    def __call__(self, *inputs: Any, deterministic: bool = True, **options: Any) -> ModelOutput:
        """Compute the outputs; arguments and errors as of `BertModel`, and the `head_options` of the class."""
        of_heads = {name: options.pop(name) for name in self.head_options if name in options}
        output = self.bert(*inputs, deterministic=deterministic, **options)
        return dataclasses.replace(output, **self.heads(output, deterministic, **of_heads))

    def heads(self, output: ModelOutput, deterministic: bool) -> dict[str, Any]:
        """Return the fields that the heads add to the encoder's output."""
        raise NotImplementedError


def gather(x: Array, name: str, positions: Array | None) -> Array:
    """x [B T D] at positions [B P] -> [B P D], with NaN for a position outside x; None: x itself.

    `name` is the name of the positions in an error.
    """
    if positions is None:
        return x
    check_array(name, positions, "BP", {"B": x.shape[0]})
    return jax.vmap(look_up)(x, narrowed(positions))


class BertForMaskedLM(BertWithHeads):
    """BERT with only the masked-token head, and without a pooler."""

    pooled = False
    head_options = ("masked_positions", "output_logits")

    def setup(self) -> None:
        super().setup()
        self.mlm_head = MLMHead(self.config, self.dtype)

    def heads(
        self,
        output: ModelOutput,
        deterministic: bool,
        masked_positions: Array | None = None,
        output_logits: bool = True,
    ) -> dict[str, Any]:
        """Return `mlm_logits`.

        Args:
            output: the encoder's output.
            deterministic: not used.
            masked_positions: [B P] int below T: vocabulary logits only there ([B P V]); None: everywhere ([B T V]).
            output_logits: False: `mlm_logits` is an `LMHead` (states, embedding, bias); the losses compute the logits
                in blocks.
        """
        x = gather(output.last_hidden_state, "masked_positions", masked_positions)
        head = self.mlm_head(x, self.bert.embeddings.token.embedding)
        return {"mlm_logits": head.logits() if output_logits else head}


class BertForPreTraining(BertForMaskedLM):
    """BERT with both pretraining heads: masked tokens and next sentence (section 3.1)."""

    pooled = True

    def setup(self) -> None:
        super().setup()
        self.nsp_head = dense(2, self.config, self.dtype, "nsp_head")

    def heads(self, output: ModelOutput, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Return also `nsp_logits` [B 2]; [B K 2] with `cls_positions`. Arguments as of `BertForMaskedLM`."""
        fields = super().heads(output, *arguments, **options)
        return fields | {"nsp_logits": self.nsp_head(output.pooler_output).astype(jnp.float32)}


class BertForNextSentencePrediction(BertWithHeads):
    """BERT with only the next-sentence head."""

    def setup(self) -> None:
        super().setup()
        self.nsp_head = dense(2, self.config, self.dtype)

    def heads(self, output: ModelOutput, deterministic: bool) -> dict[str, Any]:
        """Return `nsp_logits` [B 2]."""
        return {"nsp_logits": self.nsp_head(output.pooler_output).astype(jnp.float32)}


class BertForSequenceClassification(BertWithHeads):
    """Classification of a text or a pair of texts: a dense layer on the pooler's output (section 4.1).

    `ModelConfig.problem` decides the loss, for one class, several (`multi_label_classification`) or a number
    (`regression`).
    """

    def setup(self) -> None:
        super().setup()
        self.dropout = Dropout(self.config.head_dropout)
        self.classifier = dense(self.config.num_labels, self.config, self.dtype)

    def heads(self, output: ModelOutput, deterministic: bool) -> dict[str, Any]:
        """Return `logits` [B num_labels]."""
        x = self.dropout(output.pooler_output, deterministic=deterministic)
        return {"head_logits": self.classifier(x).astype(jnp.float32)}


class BertForMultipleChoice(BertWithHeads):
    """One logit per choice, from the pooler's output (section 4.4)."""

    def setup(self) -> None:
        super().setup()
        self.dropout = Dropout(self.config.head_dropout)
        self.classifier = dense(1, self.config, self.dtype)

    def __call__(  # type: ignore[override]  # each input is flattened by its name
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        inputs_embeds: Array | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Compute the outputs from inputs [B C T], with `mc_logits` [B C]. The other fields have B x C rows."""
        inputs = flatten_choices(
            self.config,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
        )
        output: Any = super().__call__(**inputs, **options)
        shape = shape_of_tokens(input_ids, inputs_embeds)[:2]  # B C
        return dataclasses.replace(output, mc_logits=output.mc_logits.reshape(shape))

    def heads(self, output: ModelOutput, deterministic: bool) -> dict[str, Any]:
        """Return `mc_logits` [B*C 1]."""
        x = self.dropout(output.pooler_output, deterministic=deterministic)
        return {"mc_logits": self.classifier(x).astype(jnp.float32)}


class BertForTokenClassification(BertWithHeads):
    """Classification of each token (section 5.3)."""

    pooled = False

    def setup(self) -> None:
        super().setup()
        self.dropout = Dropout(self.config.head_dropout)
        self.classifier = dense(self.config.num_labels, self.config, self.dtype)

    def heads(self, output: ModelOutput, deterministic: bool) -> dict[str, Any]:
        """Return `logits` [B T num_labels]."""
        x = self.dropout(output.last_hidden_state, deterministic=deterministic)
        return {"head_logits": self.classifier(x).astype(jnp.float32)}


class BertForQuestionAnswering(BertWithHeads):
    """The start and end of an answer: two logits per token, from its final state (section 4.2)."""

    pooled = False

    def setup(self) -> None:
        super().setup()
        self.qa_outputs = dense(2, self.config, self.dtype)

    def heads(self, output: ModelOutput, deterministic: bool) -> dict[str, Any]:
        """Return `start_logits` and `end_logits`, each [B T]."""
        logits = self.qa_outputs(output.last_hidden_state).astype(jnp.float32)  # [B T 2]
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
