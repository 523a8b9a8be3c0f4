"""Losses and accuracies as (sum, weight) pairs under a mask. The mean is taken once, after all pairs have been added.

A mean of means is wrong if devices, micro-batches or rows have different numbers of counted positions.

Where the mask is 0, the label may have any value, such as -100: it adds exactly 0 to the loss and to the gradient.
Elsewhere, a label outside 0 to V - 1 makes the loss and the gradient NaN. Labels may be 64-bit NumPy integers, but not
as arguments of a jitted function, since JAX truncates them to 32 bits first.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from bertgpt.errors import InputError
from bertgpt.ids import narrowed
from bertgpt.losses.chunked_cross_entropy import LMHead, summed_cross_entropy, summed_loss_and_hits

Batch = dict[str, Any]


class SumWeight(NamedTuple):
    """A weighted sum and the sum of its weights, both float32 scalars."""

    sum: Array
    weight: Array

    def mean(self) -> Array:
        """Return sum / weight; 0 if the weight is 0."""
        return jnp.where(self.weight > 0, self.sum / jnp.where(self.weight > 0, self.weight, 1), 0)


def masked_sum(values: Array, mask: Array) -> SumWeight:
    """Return the sum of values under a mask of the same shape; a mask value is 0, 1 or any other weight."""
    chex.assert_equal_shape([values, mask])  # the weight of a broadcast mask would be wrong
    mask = mask.astype(jnp.float32)
    return SumWeight((values * mask).sum(), mask.sum())


def cross_entropy(logits: Array | LMHead, labels: Array, mask: Array) -> SumWeight:
    """Return -log softmax(logits)[label] in nats. logits [... V] or an `LMHead`; labels int [...]; mask [...].

    Raises:
        InputError: labels or mask have another shape, or labels are not integers.
    """
    labels, weights, total = _weighted(logits, labels, mask)
    if isinstance(logits, LMHead):
        return SumWeight(summed_cross_entropy(logits, labels, weights), total)
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return SumWeight(((jax.nn.logsumexp(logits, axis=-1) - picked) * weights).sum(), total)


def _weighted(logits: Array | LMHead, labels: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Return the labels, with 0 for those out of range; the weights, with NaN at a label that is out of range and
    counts; and the sum of the mask."""
    *shape, classes = logits.shape
    _check_shapes(shape, labels=labels, mask=mask)
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels are {labels.dtype}; they must be integers")
    labels, mask = jnp.asarray(narrowed(labels), jnp.int32), jnp.asarray(mask, jnp.float32)
    exists = (labels >= 0) & (labels < classes)
    return jnp.where(exists, labels, 0), jnp.where(exists | (mask == 0), mask, jnp.nan), mask.sum()


def _check_shapes(shape: Sequence[int], **arrays: Array) -> None:
    """Reject arrays of another shape, since a broadcast array would be counted wrongly."""
    for name, array in arrays.items():
        if array.shape != tuple(shape):
            raise InputError(f"{name} of shape {array.shape} does not fit the logits; it must be {tuple(shape)}")


def accuracy(logits: Array | LMHead, labels: Array, mask: Array) -> SumWeight:
    """Return the share of labels that have the highest logit. Shapes as in `cross_entropy`."""
    if isinstance(logits, LMHead):
        return loss_and_accuracy(logits, labels, mask)[1]
    _check_shapes(logits.shape[:-1], labels=labels, mask=mask)
    return masked_sum((logits.argmax(-1) == narrowed(labels)).astype(jnp.float32), mask)


def loss_and_accuracy(logits: Array | LMHead, labels: Array, mask: Array) -> tuple[SumWeight, SumWeight]:
    """Return `cross_entropy` and `accuracy`; the logits of an `LMHead` are computed once for both."""
    if not isinstance(logits, LMHead):
        return cross_entropy(logits, labels, mask), accuracy(logits, labels, mask)
    existing, weights, total = _weighted(logits, labels, mask)
    counts = jnp.where(jnp.isnan(weights), 0, weights)
    loss, hits = summed_loss_and_hits(logits, existing, weights, counts)
    return SumWeight(loss, total), SumWeight(hits, total)


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
    """BERT's two pretraining losses. The training loss is the sum of their means."""
    return mlm_losses(output, batch) | {"nsp_loss": nsp_loss(output.nsp_logits, batch)}


def bert_scores(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """Loss and accuracy of both objectives, and the recall of each NSP class (their mean is the balanced accuracy)."""
    label, mask = batch["next_sentence_label"], batch["nsp_loss_mask"]
    return mlm_scores(output, batch) | {
        "nsp_loss": nsp_loss(output.nsp_logits, batch),
        "nsp_accuracy": accuracy(output.nsp_logits, label, mask),
        "nsp_recall_is_next": accuracy(output.nsp_logits, label, mask * (label == 0)),
        "nsp_recall_not_next": accuracy(output.nsp_logits, label, mask * (label == 1)),
    }


def mlm_losses(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """The loss of masked language modelling alone."""
    return {"mlm_loss": mlm_loss(output.mlm_logits, batch)}


def mlm_scores(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """The loss, and the share of masked tokens whose original token has the highest logit."""
    loss, right = loss_and_accuracy(output.mlm_logits, batch["labels"], batch["loss_mask"])
    return {"mlm_loss": loss, "mlm_accuracy": right}


def gpt_losses(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """GPT-1's pretraining loss."""
    return {"lm_loss": lm_loss(output.logits, batch)}


def gpt_scores(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """The loss, and the share of next tokens that have the highest logit."""
    loss, right = loss_and_accuracy(output.logits, batch["labels"], batch["loss_mask"])
    return {"lm_loss": loss, "lm_accuracy": right}


def class_loss(logits: Array, batch: Batch, problem: str) -> SumWeight:
    """The loss of a classifier. If rows are packed, every array has an axis K after B.

    Args:
        logits: [B L] for L classes; [B 1] for regression.
        batch: `labels` and `loss_mask` [B]. For one class, labels are int [B]. For several, they are zeros and ones,
            float [B L], and the binary cross-entropy is averaged over L. For regression, they are float [B], and the
            loss is the squared error.
        problem: "single_label_classification", "multi_label_classification" or "regression".
    """
    labels, mask = batch["labels"], batch["loss_mask"]
    if problem == "single_label_classification":
        return cross_entropy(logits, labels, mask)
    logits = logits.astype(jnp.float32)
    if problem == "multi_label_classification":
        _check_shapes(logits.shape, labels=labels)
        labels = jnp.where(mask[..., None] != 0, labels, 0)
        # -log sigmoid(x) where the label is 1, -log sigmoid(-x) where it is 0
        return masked_sum((jax.nn.softplus(logits) - logits * labels).mean(-1), mask)
    return masked_sum((logits[..., 0] - jnp.where(mask != 0, labels, 0)) ** 2, mask)


def class_accuracy(logits: Array, batch: Batch, problem: str) -> dict[str, SumWeight]:
    """The share of correct rows, or of correct (row, label) pairs for multi-label; {} for regression."""
    labels, mask = batch["labels"], batch["loss_mask"]
    if problem == "single_label_classification":
        return {"accuracy": accuracy(logits, labels, mask)}
    if problem == "multi_label_classification":
        return {"accuracy": masked_sum(((logits > 0) == (labels > 0)).mean(-1, dtype=jnp.float32), mask)}
    return {}


def choice_logits(mc_logits: Array, choice_mask: Array) -> Array:
    """Return mc_logits [B C] with -1e9 where `choice_mask` is 0 (no choice)."""
    return jnp.where(choice_mask > 0, mc_logits, -1e9)


def auxiliary_lm_loss(logits: Array, batch: Batch) -> SumWeight:
    """Next-token loss on the texts of a task: logits [... T V], `lm_labels` under `lm_loss_mask` [... T]
    (Radford et al. 2018, equation 5). The weights of the mask average over the tokens of each text, then over texts.
    """
    return cross_entropy(logits, batch["lm_labels"], batch["lm_loss_mask"])


def span_losses(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """Cross-entropy of an answer's first and last token, `start_positions` and `end_positions` [B]. The loss is their
    mean (run_squad.py of google-research/bert).
    """
    return {
        f"{end}_loss": cross_entropy(getattr(output, f"{end}_logits"), batch[f"{end}_positions"], batch["loss_mask"])
        for end in ("start", "end")
    }


def span_accuracies(output: Any, batch: Batch) -> dict[str, SumWeight]:
    """The share of windows whose first and last token are both correct."""
    right = [
        getattr(output, f"{end}_logits").argmax(-1) == narrowed(batch[f"{end}_positions"]) for end in ("start", "end")
    ]
    return {"span_accuracy": masked_sum((right[0] & right[1]).astype(jnp.float32), batch["loss_mask"])}
