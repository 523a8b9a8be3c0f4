"""What a model returns: one frozen dataclass whose absent parts are None."""

from flax import struct
from jax import Array


@struct.dataclass
class ModelOutput:
    """Fields carry Hugging Face's names; logits are float32.

    Attributes:
        last_hidden_state: [B T D].
        pooler_output: [B D], tanh of a dense layer on [CLS] (BERT).
        hidden_states: L + 1 arrays [B T D], the embeddings and every block's output, when asked for.
        logits: [B T V], next-token logits (GPT-1).
        mlm_logits: [B T V], or [B P V] at `masked_positions` (BERT).
        nsp_logits: [B 2], 0 = IsNext (BERT).
    """

    last_hidden_state: Array
    pooler_output: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    logits: Array | None = None
    mlm_logits: Array | None = None
    nsp_logits: Array | None = None
