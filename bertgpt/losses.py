"""Every loss is a (sum, weight) under a mask array, and a mean is taken once, over everything that was added up.

Means of means are wrong as soon as devices, micro-batches or rows hold different numbers of counted positions.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

Batch = dict[str, Any]


class SumWeight(NamedTuple):
    """A weighted sum and the weight that it was taken over, both float32 scalars."""

    sum: Array
    weight: Array

    def mean(self) -> Array:
        """sum / weight; 0 where nothing counts."""
        return jnp.where(self.weight > 0, self.sum / jnp.where(self.weight > 0, self.weight, 1), 0)


def masked_sum(values: Array, mask: Array) -> SumWeight:
    """values and mask of one shape; a mask is 0, 1 or any weight between and beyond."""
    chex.assert_equal_shape([values, mask])  # a mask that broadcasts would count its weight wrongly
    mask = mask.astype(jnp.float32)
    return SumWeight((values * mask).sum(), mask.sum())


def cross_entropy(logits: Array, labels: Array, mask: Array) -> SumWeight:
    """-log softmax(logits)[label], in nats. logits [... V], labels int [...], mask [...]."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return masked_sum(jax.nn.logsumexp(logits, axis=-1) - picked, mask)


def accuracy(logits: Array, labels: Array, mask: Array) -> SumWeight:
    """The share of labels that have the highest logit. Shapes as `cross_entropy`."""
    return masked_sum((logits.argmax(-1) == labels).astype(jnp.float32), mask)


def mlm_loss(mlm_logits: Array, batch: Batch) -> SumWeight:
    """Cross-entropy of the masked tokens: `labels` [B P] under `loss_mask` [B P] (Devlin et al. 2019, 3.1)."""
    return cross_entropy(mlm_logits, batch["labels"], batch["loss_mask"])


def nsp_loss(nsp_logits: Array, batch: Batch) -> SumWeight:
    """Cross-entropy of `next_sentence_label` [B] under `nsp_loss_mask` [B]; 0 = IsNext."""
    return cross_entropy(nsp_logits, batch["next_sentence_label"], batch["nsp_loss_mask"])


def lm_loss(logits: Array, batch: Batch) -> SumWeight:
    """Cross-entropy of the next token: `labels` [B T], already one to the right, under `loss_mask` [B T]
    (Radford et al. 2018, equation 1)."""
    return cross_entropy(logits, batch["labels"], batch["loss_mask"])


def bert_losses(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """BERT's two pretraining losses, whose means are added."""
    return {"mlm_loss": mlm_loss(output.mlm_logits, batch), "nsp_loss": nsp_loss(output.nsp_logits, batch)}


def bert_accuracies(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """Accuracy of both tasks, and NSP's by class: the mean of the two is the balanced accuracy."""
    label, mask = batch["next_sentence_label"], batch["nsp_loss_mask"]
    return {
        "mlm_accuracy": accuracy(output.mlm_logits, batch["labels"], batch["loss_mask"]),
        "nsp_accuracy": accuracy(output.nsp_logits, label, mask),
        "nsp_recall_is_next": accuracy(output.nsp_logits, label, mask * (label == 0)),
        "nsp_recall_not_next": accuracy(output.nsp_logits, label, mask * (label == 1)),
    }


def gpt_losses(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """GPT-1's pretraining loss."""
    return {"lm_loss": lm_loss(output.logits, batch)}


def gpt_accuracies(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """The share of next tokens that have the highest logit."""
    return {"lm_accuracy": accuracy(output.logits, batch["labels"], batch["loss_mask"])}
