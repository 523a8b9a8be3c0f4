"""The order of rows: complete, resumable, independent of the number of processes."""

import itertools

import numpy as np
import pytest

from train import loader
from train.step import real_tokens


class Rows:
    """Ten examples that tell their row number."""

    def __len__(self):
        return 10

    def batch(self, rows):
        return {"row": rows, "loss_mask": np.ones((len(rows), 3)), "nsp_loss_mask": np.ones(len(rows), np.int32)}


def take(iterator, count):
    """The next batches' row numbers, [count B]."""
    return np.stack([batch["row"] for batch in itertools.islice(iterator, count)])


@pytest.fixture
def process(monkeypatch):
    """Pretends to be one of two processes."""

    def pretend(index):
        monkeypatch.setattr(loader.jax, "process_count", lambda: 2)
        monkeypatch.setattr(loader.jax, "process_index", lambda: index)

    return pretend


def test_an_epoch_has_every_row_once():
    first, second = take(loader.batches(Rows(), 2, seed=0), 10).reshape(2, 10)
    np.testing.assert_array_equal(sorted(first), range(10))
    np.testing.assert_array_equal(sorted(second), range(10, 20))  # row r is example r % 10 of epoch r // 10


def test_the_next_epoch_has_another_order():
    first, second = take(loader.batches(Rows(), 2, seed=0), 10).reshape(2, 10)
    assert list(first) != list(range(10))
    assert list(second - 10) != list(first)


def test_batches_cross_epochs_without_losing_a_row():
    rows = take(loader.batches(Rows(), 4, seed=0), 5).ravel()
    np.testing.assert_array_equal(sorted(rows), range(20))


def test_batches_of_one_row_have_the_same_rows():
    alone = take(loader.batches(Rows(), 1, seed=0), 14).ravel()
    np.testing.assert_array_equal(alone, take(loader.batches(Rows(), 2, seed=0), 7).ravel())


def test_the_order_hangs_on_the_seed():
    first, again, other = (take(loader.batches(Rows(), 5, seed=seed), 2) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("start", [4, 12, 40])
def test_a_start_at_row_r_skips_r_rows(start):
    whole = take(loader.batches(Rows(), 4, seed=1), 13)
    np.testing.assert_array_equal(take(loader.batches(Rows(), 4, seed=1, start_row=start), 3), whole[start // 4 :][:3])


def test_two_processes_hold_the_halves_of_every_batch(process):
    whole = take(loader.batches(Rows(), 4, seed=1, start_row=8), 4)
    halves = []
    for index in range(2):
        process(index)
        halves.append(take(loader.batches(Rows(), 4, seed=1, start_row=8), 4))
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)


def test_the_ragged_last_evaluation_batch_counts_exactly():
    batches = list(loader.eval_batches(Rows(), 4, seed=0, examples=6))
    np.testing.assert_array_equal([batch["nsp_loss_mask"] for batch in batches], [[1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(batches[1]["loss_mask"], [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]])
    assert len(np.unique([batch["row"] for batch in batches])) == 8  # only masks are blanked


def test_a_full_last_evaluation_batch_is_left_whole():
    batches = list(loader.eval_batches(Rows(), 4, seed=0, examples=8))
    assert [batch["nsp_loss_mask"].sum() for batch in batches] == [4, 4]


def test_evaluation_goes_over_the_epoch_where_more_examples_are_asked_for():
    batches = list(loader.eval_batches(Rows(), 4, seed=0, examples=13))
    assert sum(batch["nsp_loss_mask"].sum() for batch in batches) == 13


def test_evaluation_has_the_same_rows_at_every_call():
    first, again = (take(loader.eval_batches(Rows(), 4, seed=0, examples=6), 2) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_two_processes_evaluate_exactly_the_examples(process):
    whole = list(loader.eval_batches(Rows(), 4, seed=0, examples=7))
    halves = []
    for index in range(2):
        process(index)
        halves.append(list(loader.eval_batches(Rows(), 4, seed=0, examples=7)))
    for name in ("row", "nsp_loss_mask", "loss_mask"):
        for one, first, second in zip(whole, *halves, strict=True):
            np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), one[name])


def test_real_tokens_are_counted_by_the_attention_mask_else_the_loss_mask():
    batch = {"loss_mask": np.array([[1, 0, 0]]), "attention_mask": np.array([[1, 1, 0]])}
    assert real_tokens(batch) == 2
    assert real_tokens({"loss_mask": batch["loss_mask"]}) == 1
