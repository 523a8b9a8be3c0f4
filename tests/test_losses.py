"""Losses against literal values; sums that add up to the whole."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bertgpt import InputError, ModelOutput, losses
from bertgpt.losses import chunked_cross_entropy
from bertgpt.losses.chunked_cross_entropy import LMHead

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
    sums = losses.bert_scores(*bert)
    assert {name: tuple(map(float, value)) for name, value in sums.items() if not name.endswith("_loss")} == {
        "mlm_accuracy": (2, 2),
        "nsp_accuracy": (1, 2),
        "nsp_recall_is_next": (0, 1),
        "nsp_recall_not_next": (1, 1),
    }


def test_gpt_loss_and_accuracy_take_labels_as_they_are():
    output = ModelOutput(last_hidden_state=jnp.zeros(()), head_logits=LOGITS[None])
    batch = {"labels": LABELS[None], "loss_mask": np.array([[1, 1, 0]])}
    np.testing.assert_allclose(losses.gpt_losses(output, batch)["lm_loss"], (1.6739764, 2), rtol=1e-6)
    np.testing.assert_allclose(losses.gpt_scores(output, batch)["lm_accuracy"], (1, 2))


MASK = np.array([1.0, 0.0, 2.0], np.float32)


def test_one_class_is_cross_entropy():
    batch = {"labels": LABELS, "loss_mask": MASK}
    problem = "single_label_classification"
    assert losses.class_loss(LOGITS, batch, problem) == losses.cross_entropy(LOGITS, LABELS, MASK)
    assert losses.class_accuracy(LOGITS, batch, problem)["accuracy"] == (2.0, 3.0)


def test_several_labels_are_binary_cross_entropies_averaged_over_them():
    batch = {"labels": np.array([[1, 0], [0, 0], [1, 1]], np.float32), "loss_mask": MASK}
    total = losses.class_loss(LOGITS, batch, "multi_label_classification")
    log2, low, high = 0.6931472, 0.28768207, 1.3862944  # -log of 1/2, 3/4, 1/4
    np.testing.assert_allclose(total, ((log2 + high) / 2 + 2 * (low + log2) / 2, 3), rtol=1e-6)
    accuracy = losses.class_accuracy(LOGITS, batch, "multi_label_classification")["accuracy"]
    np.testing.assert_allclose(accuracy, (0.0 + 2 * 0.5, 3))  # a logit of 0 is no


def test_a_number_is_a_squared_error():
    batch = {"labels": np.array([1.0, 5.0, -1.0], np.float32), "loss_mask": MASK}
    numbers = np.array([[3.0], [0.0], [0.0]], np.float32)
    np.testing.assert_allclose(losses.class_loss(numbers, batch, "regression"), (4 + 2, 3))
    assert losses.class_accuracy(numbers, batch, "regression") == {}


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_packed_classes_are_those_of_rows_of_their_own(problem):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 1 if problem == "regression" else 3)).astype(np.float32)
    labels = {"single_label_classification": rng.integers(0, 3, 6), "regression": rng.normal(size=6)}
    batch = {"labels": labels.get(problem, rng.integers(0, 2, (6, 3))), "loss_mask": np.array([1, 1, 0, 1, 0, 0])}
    packed = {name: value.reshape(2, 3, *value.shape[1:]) for name, value in batch.items()}
    pairs = [
        (losses.class_loss(x, given, problem), losses.class_accuracy(x, given, problem))
        for x, given in ((logits, batch), (logits.reshape(2, 3, -1), packed))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *pairs)


def test_no_choice_is_never_chosen():
    logits = losses.choice_logits(np.array([[0.0, LOG3, 9.0]]), np.array([[1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(losses.cross_entropy(logits, np.array([1]), np.array([1.0])).sum, 0.28768207, rtol=1e-6)


def test_spans_have_a_loss_for_each_end_and_are_right_where_both_are():
    starts, ends = LOGITS, LOGITS[::-1]
    output = ModelOutput(last_hidden_state=None, start_logits=starts, end_logits=ends)
    batch = {"start_positions": np.array([1, 1, 0]), "end_positions": np.array([0, 1, 0]), "loss_mask": MASK}
    found = losses.span_losses(output, batch)
    assert found["start_loss"] == losses.cross_entropy(starts, batch["start_positions"], MASK)
    assert found["end_loss"] == losses.cross_entropy(ends, batch["end_positions"], MASK)
    assert losses.span_accuracies(output, batch)["span_accuracy"] == (1.0, 3.0)


def test_the_auxiliary_loss_is_a_mean_over_texts_of_their_means():
    logits = np.log(np.array([[[1, 3], [1, 3], [1, 3]], [[1, 3], [1, 3], [1, 3]]], np.float32))
    batch = {"lm_labels": np.array([[0, 0, 1], [1, 0, 0]]), "lm_loss_mask": np.array([[0.5, 0.5, 0], [1, 0, 0]])}
    total = losses.auxiliary_lm_loss(logits, batch)
    np.testing.assert_allclose(total.mean(), (1.3862944 + 0.28768207) / 2, rtol=1e-6)


CLASSES = st.integers(-3, 6) | st.sampled_from([-100, 2**31 - 1, -(2**31)])
WEIGHTS = arrays(np.float32, 6, elements=st.sampled_from([0.0, 0.5, 1.0, 2.0]))


def blocked(logits):
    """The same logits as a head in blocks: unit vectors times them."""
    return LMHead(jnp.eye(6)[None], jnp.asarray(logits).T)


@pytest.fixture(scope="module")
def value_and_gradient():
    """(logits [6 4], labels [6], mask [6]) -> loss and its gradient, from the logits and in blocks."""

    def plain(logits, labels, mask):
        return losses.cross_entropy(logits, labels, mask).sum

    def in_blocks(logits, labels, mask):
        return losses.cross_entropy(blocked(logits), labels[None], mask[None]).sum

    return [jax.jit(jax.value_and_grad(loss)) for loss in (plain, in_blocks)]


@given(arrays(np.int32, 6, elements=CLASSES), WEIGHTS)
def test_loss_and_accuracy_in_one_pass_are_those_of_two(labels, mask):
    logits = np.sin(np.arange(24, dtype=np.float32)).reshape(6, 4)
    loss, right = losses.loss_and_accuracy(blocked(logits), labels[None], mask[None])
    expected = losses.cross_entropy(logits, labels, mask), losses.accuracy(logits, labels, mask)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(right, expected[1])
    assert losses.loss_and_accuracy(logits, labels, mask)[1] == expected[1]


def test_an_evaluation_computes_the_logits_once():
    def products(score):
        head = LMHead(jnp.ones((2, 3, 4)), jnp.ones((5, 4)))
        batch = {"labels": np.zeros((2, 3), int), "loss_mask": np.ones((2, 3))}
        output = ModelOutput(None, mlm_logits=head, head_logits=head)
        return str(jax.make_jaxpr(lambda: score(output, batch))()).count("dot_general")

    assert products(losses.mlm_scores) == products(losses.gpt_scores) == 1


@pytest.mark.parametrize(("platform", "rows", "blocks"), [("cpu", 8, 4), ("tpu", 8, 1), ("gpu", 8, 1), ("tpu", 64, 6)])
def test_an_accelerator_has_one_block_where_the_logits_fit(monkeypatch, platform, rows, blocks):
    monkeypatch.setattr(chunked_cross_entropy, "target_device", lambda: SimpleNamespace(platform=platform))
    head = LMHead(*(jax.ShapeDtypeStruct(shape, np.float32) for shape in ((rows, 512, 1), (40478, 1))))
    labels, mask = (jax.ShapeDtypeStruct((rows, 512), dtype) for dtype in (np.int32, np.float32))
    gradient = jax.grad(lambda head, *given: losses.cross_entropy(head, *given).sum)
    assert f"length={blocks}" in str(jax.make_jaxpr(gradient)(head, labels, mask))


@given(arrays(np.int32, 6, elements=CLASSES), WEIGHTS)
def test_a_label_that_is_no_class_is_nan_where_it_counts_and_nothing_elsewhere(value_and_gradient, labels, mask):
    logits = np.sin(np.arange(24, dtype=np.float32)).reshape(6, 4)
    wrong = (labels < 0) | (labels >= 4)
    for derive in value_and_gradient:
        value, gradient = derive(logits, labels, mask)
        if (wrong & (mask != 0)).any():
            assert np.isnan(value)
            assert np.isnan(gradient).any()
        else:
            expected, slope = derive(logits, np.where(mask != 0, labels, 3), mask)
            assert value == expected
            np.testing.assert_array_equal(gradient, slope)
            np.testing.assert_array_equal(gradient[mask == 0], np.zeros_like(gradient[mask == 0]))


@pytest.mark.parametrize("label", [-100, -1, 4, 9])
def test_labels_that_do_not_count_may_be_anything_in_every_loss(label):
    ignored = np.full(2, label)
    off, on = np.zeros(2), np.array([1.0, 0.0])
    logits = jnp.asarray(np.sin(np.arange(8.0)).reshape(2, 4), jnp.float32)
    mixed = np.array([2, label])

    def losses_of(logits, labels, mask):
        output = ModelOutput(None, mlm_logits=logits, nsp_logits=logits, start_logits=logits, end_logits=logits)
        batch = {"labels": labels, "loss_mask": mask, "next_sentence_label": labels, "nsp_loss_mask": mask}
        batch |= {"start_positions": labels, "end_positions": labels, "lm_labels": labels, "lm_loss_mask": mask}
        sums = losses.bert_losses(output, batch) | losses.span_losses(output, batch)
        sums |= losses.gpt_losses(ModelOutput(None, head_logits=logits), batch)
        sums["auxiliary"] = losses.auxiliary_lm_loss(logits, batch)
        sums["class"] = losses.class_loss(logits, batch, "single_label_classification")
        wide = batch | {"labels": np.stack([labels] * 4, 1) / 1.0}
        sums["multi"] = losses.class_loss(logits, wide, "multi_label_classification")
        sums["number"] = losses.class_loss(logits[:, :1], batch, "regression")
        return {name: value.sum for name, value in sums.items()}

    for value in losses_of(logits, ignored, off).values():
        assert value == 0
    wanted = losses_of(logits, np.array([2, 0]), on)
    found, slopes = losses_of(logits, mixed, on), jax.jacrev(losses_of)(logits, mixed, on)
    for name, value in wanted.items():
        assert found[name] == value, name
        assert np.isfinite(slopes[name]).all(), name
        assert not slopes[name][1].any(), name
    counted = losses_of(logits, mixed, np.ones(2))
    kept = {"multi", "number"}  # their labels are numbers, and any number counts
    assert {name for name, value in counted.items() if np.isfinite(value)} == kept


def test_a_missing_number_that_does_not_count_may_be_nan():
    logits = jnp.ones((2, 1))
    for problem, labels in (("regression", [0.0, np.nan]), ("multi_label_classification", [[0.0], [np.nan]])):
        batch = {"labels": np.array(labels, np.float32), "loss_mask": np.array([1.0, 0.0])}
        value, slope = jax.value_and_grad(lambda x, b=batch, p=problem: losses.class_loss(x, b, p).sum)(logits)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("logits", [np.zeros((2, 3, 4), np.float32), LMHead(np.ones((2, 3, 5)), np.ones((4, 5)))])
@pytest.mark.parametrize(
    ("labels", "mask", "message"),
    [
        (
            np.zeros((2, 1), int),
            np.ones((2, 3)),
            r"labels of shape \(2, 1\) does not fit the logits; it must be \(2, 3\)",
        ),
        (np.zeros((2, 3), int), np.ones((2, 1)), r"mask of shape \(2, 1\) does not fit the logits"),
        (np.zeros((2, 3)), np.ones((2, 3)), "labels are float64; they must be integers"),
    ],
)
def test_labels_and_masks_that_do_not_fit_are_refused(logits, labels, mask, message):
    with pytest.raises(InputError, match=message):
        losses.cross_entropy(logits, labels, mask)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int64])
def test_labels_of_any_integer_type_are_held_against_a_large_vocabulary(kind):
    logits = jnp.zeros((2, 300))
    assert jnp.isfinite(losses.cross_entropy(logits, np.array([0, 100], kind), np.ones(2)).sum)
    wrong = np.array([-1]).astype(kind)  # 255 in uint8, which is a class
    assert jnp.isnan(losses.cross_entropy(logits[:1], wrong, np.ones(1)).sum) == (kind != np.uint8)


@pytest.mark.parametrize("label", [np.array([2**32 + 5]), np.array([2**63], np.uint64), np.array([-(2**63)])], ids=str)
def test_a_label_of_64_bits_is_not_cut(label):
    logits = jnp.zeros((1, 8)).at[0, int(label[0] % 2**32)].set(1)
    assert np.isnan(losses.cross_entropy(logits, label, np.ones(1)).sum)
    assert losses.cross_entropy(logits, label, np.zeros(1)).sum == 0
    assert losses.accuracy(logits, label, np.ones(1)).sum == 0
    head = LMHead(logits[None], jnp.eye(8))
    assert np.isnan(losses.cross_entropy(head, label[None], np.ones((1, 1))).sum)
    assert losses.accuracy(head, label[None], np.ones((1, 1))).sum == 0
    batch = {"start_positions": label, "end_positions": label, "loss_mask": np.ones(1)}
    output = ModelOutput(None, start_logits=logits, end_logits=logits)
    assert losses.span_accuracies(output, batch)["span_accuracy"].sum == 0
