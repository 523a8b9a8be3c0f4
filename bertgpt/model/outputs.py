"""The output of all models: one frozen dataclass."""

from flax import struct
from jax import Array

from bertgpt.losses.chunked_cross_entropy import LMHead
from bertgpt.model.attention import Cache


@struct.dataclass
class ModelOutput:
    """The output of a model. Fields have Hugging Face's names; logits are float32; fields that do not apply are None.

    If several examples share a row (`cls_positions` [B K]), BERT's outputs for a whole example are [B K ...].

    Attributes:
        last_hidden_state: [B T D].
        pooler_output: [B D], tanh of a dense layer on [CLS] (BERT).
        hidden_states: L + 1 arrays [B T D], the embeddings and the output of each block; with `output_hidden_states`.
        logits: next-token logits [B T V] or [B C T V] (GPT-1); or the class logits of a task head, [B num_labels], or
            [B T num_labels] for token classification. `OpenAIGPTLMHeadModel` with `output_logits=False` returns an
            `LMHead`.
        lm_logits: next-token logits [B T V] or [B 2 T V] of a classifier; with `output_lm_logits` (GPT-1).
        mlm_logits: [B T V], or [B P V] with `masked_positions` (BERT); with `output_logits=False`, an `LMHead`.
        nsp_logits: [B 2], 0 = IsNext (BERT).
        mc_logits: [B C], one per choice.
        start_logits: [B T], for the first token of an answer (BERT).
        end_logits: [B T], for its last token (BERT).
        cache: one `Cache` per layer, with the keys and values of all tokens so far, if one was given (GPT-1).
    """

    last_hidden_state: Array
    pooler_output: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    logits: Array | LMHead | None = None
    lm_logits: Array | None = None
    mlm_logits: Array | LMHead | None = None
    nsp_logits: Array | None = None
    mc_logits: Array | None = None
    start_logits: Array | None = None
    end_logits: Array | None = None
    cache: list[Cache] | None = None
