"""Every loss is a (sum, weight) under a mask array, and a mean is taken once, over everything that was added up.

Means of means are wrong as soon as devices, micro-batches or rows hold different numbers of counted positions.

Where a mask is 0, a label may be anything, such as -100: it adds exactly 0 to the loss and nothing to the gradient.
Elsewhere a class that does not exist, negative or too large, makes loss and gradient NaN. NumPy's labels may have 64
bits, but not as an argument of a jitted function, since JAX cuts them before anything here sees them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from bertgpt.errors import InputError
from bertgpt.ids import narrowed
from bertgpt.losses.chunked_cross_entropy import LMHead, summed_cross_entropy, summed_hits

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


def cross_entropy(logits: Array | LMHead, labels: Array, mask: Array) -> SumWeight:
    """-log softmax(logits)[label], in nats. logits [... V], or what they are made of; labels int [...], mask [...].

    Raises:
        InputError: labels or mask are of another shape, or labels are not integers.
    """
    *shape, classes = logits.shape
    _check_shapes(shape, labels=labels, mask=mask)
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels hold {labels.dtype}; a class is an integer")
    labels, mask = jnp.asarray(narrowed(labels), jnp.int32), jnp.asarray(mask, jnp.float32)
    exists = (labels >= 0) & (labels < classes)
    labels, weights = jnp.where(exists, labels, 0), jnp.where(exists | (mask == 0), mask, jnp.nan)
    if isinstance(logits, LMHead):
        return SumWeight(summed_cross_entropy(logits, labels, weights), mask.sum())
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return SumWeight(((jax.nn.logsumexp(logits, axis=-1) - picked) * weights).sum(), mask.sum())


def _check_shapes(shape: Sequence[int], **arrays: Array) -> None:
    """An array that broadcasts would be counted wrongly."""
    for name, array in arrays.items():
        if array.shape != tuple(shape):
            raise InputError(f"{name} of shape {array.shape} does not fit the logits; it must be {tuple(shape)}")


def accuracy(logits: Array | LMHead, labels: Array, mask: Array) -> SumWeight:
    """The share of labels that have the highest logit. Shapes as `cross_entropy`."""
    _check_shapes(logits.shape[:-1], labels=labels, mask=mask)
    labels = narrowed(labels)
    if isinstance(logits, LMHead):
        mask = mask.astype(jnp.float32)
        return SumWeight(summed_hits(logits, labels, mask), mask.sum())
    return masked_sum((logits.argmax(-1) == labels).astype(jnp.float32), mask)


def mlm_loss(mlm_logits: Array | LMHead, batch: Batch) -> SumWeight:
    """Cross-entropy of the masked tokens: `labels` [B P] under `loss_mask` [B P] (Devlin et al. 2019, 3.1)."""
    return cross_entropy(mlm_logits, batch["labels"], batch["loss_mask"])


def nsp_loss(nsp_logits: Array, batch: Batch) -> SumWeight:
    """Cross-entropy of `next_sentence_label` [B] under `nsp_loss_mask` [B], or both [B K]; 0 = IsNext."""
    return cross_entropy(nsp_logits, batch["next_sentence_label"], batch["nsp_loss_mask"])


def lm_loss(logits: Array | LMHead, batch: Batch) -> SumWeight:
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


def class_loss(logits: Array, batch: Batch, problem: str) -> SumWeight:
    """A classifier's loss: logits [B L] (regression [B 1]) against `labels` under `loss_mask` [B]; where rows are
    packed, each with an axis K after B.

    Args:
        logits: of every class.
        batch: `labels` are int [B]; float [B L] of zeros and ones, whose binary cross-entropy is averaged over L; or
            float [B], whose squared error counts.
        problem: "single_label_classification", "multi_label_classification" or "regression".
    """
    labels, mask = batch["labels"], batch["loss_mask"]
    if problem == "single_label_classification":
        return cross_entropy(logits, labels, mask)
    logits = logits.astype(jnp.float32)
    if problem == "multi_label_classification":
        _check_shapes(logits.shape, labels=labels)
        labels = jnp.where(mask[..., None] != 0, labels, 0)
        # -log sigmoid(x) for a label that holds, -log sigmoid(-x) for one that does not
        return masked_sum((jax.nn.softplus(logits) - logits * labels).mean(-1), mask)
    return masked_sum((logits[..., 0] - jnp.where(mask != 0, labels, 0)) ** 2, mask)


def class_accuracy(logits: Array, batch: Batch, problem: str) -> dict[str, SumWeight]:
    """The share of rows, or of (row, label) pairs, that are right; nothing for regression."""
    labels, mask = batch["labels"], batch["loss_mask"]
    if problem == "single_label_classification":
        return {"accuracy": accuracy(logits, labels, mask)}
    if problem == "multi_label_classification":
        return {"accuracy": masked_sum(((logits > 0) == (labels > 0)).mean(-1, dtype=jnp.float32), mask)}
    return {}


def choice_logits(mc_logits: Array, choice_mask: Array) -> Array:
    """[B C] with what is no choice (0 in `choice_mask`) far below every one that is."""
    return jnp.where(choice_mask > 0, mc_logits, -1e9)


def auxiliary_lm_loss(logits: Array, batch: Batch) -> SumWeight:
    """Next-token loss of a task's own texts: logits [... T V], `lm_labels` under `lm_loss_mask` [... T]
    (Radford et al. 2018, equation 5). The mask's weights make it a mean over texts of their means over tokens."""
    return cross_entropy(logits, batch["lm_labels"], batch["lm_loss_mask"])


def span_losses(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """Cross-entropy of an answer's first and last token, `start_positions` and `end_positions` [B]; their mean is the
    loss (run_squad.py of google-research/bert)."""
    return {
        f"{end}_loss": cross_entropy(getattr(output, f"{end}_logits"), batch[f"{end}_positions"], batch["loss_mask"])
        for end in ("start", "end")
    }


def span_accuracies(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """The share of windows whose first and last token are both right."""
    right = [
        getattr(output, f"{end}_logits").argmax(-1) == narrowed(batch[f"{end}_positions"]) for end in ("start", "end")
    ]
    return {"span_accuracy": masked_sum((right[0] & right[1]).astype(jnp.float32), batch["loss_mask"])}
