"""Losses against literal values; sums that add up to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bertgpt import ModelOutput, losses

LOG3 = 1.0986123  # logits (0, log 3) are probabilities (1/4, 3/4)
LOGITS = np.array([[0, LOG3], [0, LOG3], [LOG3, 0]], np.float32)
LABELS = np.array([0, 1, 0])


def test_cross_entropy_is_the_negative_log_probability():
    total = losses.cross_entropy(LOGITS, LABELS, np.array([1, 1, 1]))
    np.testing.assert_allclose(total.sum, 1.3862944 + 0.28768207 + 0.28768207, rtol=1e-6)  # log 4 + 2 log 4/3
    assert total.weight == 3


def test_masked_positions_do_not_count():
    total = losses.cross_entropy(LOGITS, LABELS, np.array([0, 1, 0]))
    np.testing.assert_allclose(total, (0.28768207, 1), rtol=1e-6)


def test_float_masks_weigh():
    total = losses.cross_entropy(LOGITS, LABELS, np.array([0.5, 2.0, 0.0]))
    np.testing.assert_allclose(total, (0.5 * 1.3862944 + 2 * 0.28768207, 2.5), rtol=1e-6)
    np.testing.assert_allclose(total.mean(), 0.5074046, rtol=1e-6)


def test_label_zero_counts():
    total = losses.cross_entropy(LOGITS[:1], np.array([0]), np.array([1]))
    np.testing.assert_allclose(total, (1.3862944, 1), rtol=1e-6)


def test_cross_entropy_stays_finite_for_huge_logits():
    total = losses.cross_entropy(jnp.array([[1e4, 0.0]]), jnp.array([1]), jnp.array([1]))
    np.testing.assert_allclose(total.sum, 1e4, rtol=1e-6)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    total = losses.cross_entropy(jnp.array([[1.0, 0.0]], jnp.bfloat16), jnp.array([1]), jnp.array([1]))
    assert total.sum.dtype == jnp.float32
    np.testing.assert_allclose(total.sum, 1.3132617, rtol=1e-6)


def test_all_zero_mask_gives_zero_loss_and_zero_gradient():
    def loss(logits):
        return losses.cross_entropy(logits, LABELS, np.zeros(3)).mean()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(LOGITS))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((3, 2)))


def test_accuracy_is_the_share_of_highest_logits():
    total = losses.accuracy(LOGITS, LABELS, np.array([1, 1, 1]))
    np.testing.assert_allclose(total.mean(), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(losses.accuracy(LOGITS, LABELS, np.array([1.0, 0.5, 0.0])), (0.5, 1.5))


def test_mean_of_means_is_not_the_mean():
    values, mask = np.array([[4.0, 0, 0], [1, 1, 1]]), np.array([[1, 0, 0], [1, 1, 1]])
    rows = [losses.masked_sum(value, row).mean() for value, row in zip(values, mask, strict=True)]
    assert np.mean(rows) == 2.5
    assert losses.masked_sum(values, mask).mean() == 1.75


@given(
    arrays(np.float32, (6, 4), elements=st.floats(-8, 8, width=32)),
    arrays(int, 6, elements=st.integers(0, 3)),
    arrays(np.float32, 6, elements=st.floats(0, 2, width=32)),
    st.integers(0, 6),
)
def test_sums_of_parts_are_the_sums_of_the_whole(logits, labels, mask, cut):
    whole = losses.cross_entropy(logits, labels, mask)
    parts = [losses.cross_entropy(logits[part], labels[part], mask[part]) for part in (slice(cut), slice(cut, None))]
    np.testing.assert_allclose(parts[0].sum + parts[1].sum, whole.sum, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts[0].weight + parts[1].weight, whole.weight, rtol=1e-5)


@pytest.fixture(scope="module")
def bert():
    """Three pairs with one masked position each; the last pair has no NSP label, the first no masked token."""
    output = ModelOutput(last_hidden_state=jnp.zeros(()), mlm_logits=LOGITS[:, None], nsp_logits=LOGITS)
    labels = {"labels": LABELS[:, None], "next_sentence_label": np.array([1, 0, 0])}
    return output, labels | {"loss_mask": np.array([[0], [1], [1]]), "nsp_loss_mask": np.array([1, 1, 0])}


def test_bert_losses_are_each_under_their_own_mask(bert):
    sums = losses.bert_losses(*bert)
    np.testing.assert_allclose(sums["mlm_loss"], (2 * 0.28768207, 2), rtol=1e-6)
    np.testing.assert_allclose(sums["nsp_loss"], (0.28768207 + 1.3862944, 2), rtol=1e-6)


def test_bert_accuracies_are_each_under_their_own_mask(bert):
    sums = losses.bert_accuracies(*bert)
    assert {name: tuple(map(float, value)) for name, value in sums.items()} == {
        "mlm_accuracy": (2, 2),
        "nsp_accuracy": (1, 2),
        "nsp_recall_is_next": (0, 1),
        "nsp_recall_not_next": (1, 1),
    }


def test_gpt_loss_and_accuracy_take_labels_as_they_are():
    output = ModelOutput(last_hidden_state=jnp.zeros(()), logits=LOGITS[None])
    batch = {"labels": LABELS[None], "loss_mask": np.array([[1, 1, 0]])}
    np.testing.assert_allclose(losses.gpt_losses(output, batch)["lm_loss"], (1.6739764, 2), rtol=1e-6)
    np.testing.assert_allclose(losses.gpt_accuracies(output, batch)["lm_accuracy"], (1, 2))
