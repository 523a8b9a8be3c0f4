"""The output of all models: one frozen dataclass."""

from flax import struct
from jax import Array

from bertgpt.losses.chunked_cross_entropy import LMHead
from bertgpt.model.attention import Cache


@struct.dataclass
class ModelOutput:
    """The output of a model. Logits are float32; fields that do not apply are None.

    The properties `logits`, `prediction_logits` and `seq_relationship_logits` are Hugging Face's names for the logits
    of the heads. docs/outputs.md has a table of the fields by class. If several examples share a row (`cls_positions`
    [B K]), BERT's outputs for a whole example are [B K ...].

    Attributes:
        last_hidden_state: [B T D].
        pooler_output: [B D], tanh of a dense layer on [CLS] (BERT).
        hidden_states: L + 1 arrays [B T D], the embeddings and the output of each block; with `output_hidden_states`.
        attentions: L arrays [B H T S], the attention probabilities of each block, after dropout if it is on; with
            `output_attentions`.
        head_logits: next-token logits [B T V] or [B C T V] (GPT-1); or the class logits of a task head, [B num_labels],
            or [B T num_labels] for token classification. `OpenAIGPTLMHeadModel` with `output_logits=False` returns an
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
    attentions: tuple[Array, ...] | None = None
    head_logits: Array | LMHead | None = None
    lm_logits: Array | None = None
    mlm_logits: Array | LMHead | None = None
    nsp_logits: Array | None = None
    mc_logits: Array | None = None
    start_logits: Array | None = None
    end_logits: Array | None = None
    cache: list[Cache] | None = None

    @property
    def logits(self) -> Array | LMHead | None:
        """The logits of the model's one head: `head_logits`, or of `mlm_logits`, `nsp_logits` and `mc_logits` the only
        one. None for `BertForPreTraining`, which has two heads."""
        if self.head_logits is not None:
            return self.head_logits
        found = [logits for logits in (self.mlm_logits, self.nsp_logits, self.mc_logits) if logits is not None]
        return found[0] if len(found) == 1 else None

    @property
    def prediction_logits(self) -> Array | LMHead | None:
        """`mlm_logits` of `BertForPreTraining`."""
        return self.mlm_logits if self.nsp_logits is not None else None

    @property
    def seq_relationship_logits(self) -> Array | None:
        """`nsp_logits` of `BertForPreTraining`."""
        return self.nsp_logits if self.mlm_logits is not None else None
