"""What a model returns: one frozen dataclass whose absent parts are None."""

from flax import struct
from jax import Array

from bertgpt.losses.chunked_cross_entropy import LMHead
from bertgpt.model.attention import Cache


@struct.dataclass
class ModelOutput:
    """Fields carry Hugging Face's names; logits are float32.

    Where several examples share a row (`cls_positions` [B K]), what BERT says of an example as a whole is [B K ...].

    Attributes:
        last_hidden_state: [B T D].
        pooler_output: [B D], tanh of a dense layer on [CLS] (BERT).
        hidden_states: L + 1 arrays [B T D], the embeddings and every block's output, when asked for.
        logits: next-token logits [B T V] or [B C T V] (GPT-1); else a task head's: classes [B num_labels], or of every
            token [B T num_labels]. Of `OpenAIGPTLMHeadModel` without `output_logits` a `LMHead`.
        lm_logits: next-token logits [B T V] beside a classifier's `logits`, when asked for (GPT-1).
        mlm_logits: [B T V], or [B P V] at `masked_positions` (BERT). Of `BertForPreTraining` without `output_logits` a
            `LMHead`.
        nsp_logits: [B 2], 0 = IsNext (BERT).
        mc_logits: [B C], one for every choice.
        start_logits: [B T], of being an answer's first token (BERT).
        end_logits: [B T], of being its last.
        cache: a `Cache` for each layer, the keys and values of all tokens so far, where one was given (GPT-1).
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
