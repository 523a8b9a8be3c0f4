"""Windows over contiguous text."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bertgpt.data.pretraining.windows import GptWindows
from bertgpt.data.text.store import Split


def windows(count: int, length: int, seed: int = 0) -> GptWindows:
    """Windows of a text whose tokens are 0, 1, 2, ..."""
    empty = np.zeros(0, np.int64)
    return GptWindows(Split(np.arange(count, dtype=np.uint16), empty, empty, empty, 0), length, seed)


def epoch(source: GptWindows, number: int) -> dict[str, np.ndarray]:
    return source.batch(np.arange(number * len(source), (number + 1) * len(source)))


def test_the_windows_of_a_small_text():
    batch = epoch(windows(8, 3), 0)
    assert batch["input_ids"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, 5, 6], [7, 0, 1]]
    assert batch["loss_mask"].tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert [value.dtype.name for value in batch.values()] == ["int32", "int32", "float32"]


def test_labels_are_the_input_shifted_by_one(gpt_split):
    batch = GptWindows(gpt_split, 16, 0).batch(np.arange(10))
    np.testing.assert_array_equal(batch["labels"][:, :-1], batch["input_ids"][:, 1:])
    np.testing.assert_array_equal(batch["input_ids"].ravel(), gpt_split.tokens[:160])
    np.testing.assert_array_equal(batch["labels"].ravel(), gpt_split.tokens[1:161])


@hypothesis.given(st.integers(2, 70), st.integers(1, 20), st.integers(0, 4))
def test_an_epoch_predicts_every_token_but_its_first_once(count, length, number):
    source = windows(count, length)
    batch = epoch(source, number)
    first = batch["input_ids"][0, 0]
    predicted = batch["labels"][batch["loss_mask"] > 0]
    assert batch["loss_mask"].sum() == count - 1
    assert predicted.tolist() == [(first + step) % count for step in range(1, count)]
    assert number or first == 0


def test_each_later_epoch_begins_at_an_offset_of_its_own():
    firsts = [int(epoch(windows(1000, 50), number)["input_ids"][0, 0]) for number in range(6)]
    assert firsts[0] == 0
    assert len(set(firsts)) == 6
    assert firsts == [int(epoch(windows(1000, 50), number)["input_ids"][0, 0]) for number in range(6)]
    assert firsts[1:] != [int(epoch(windows(1000, 50, 1), number)["input_ids"][0, 0]) for number in range(1, 6)]


@pytest.mark.parametrize(("count", "length", "expected"), [(9, 4, 2), (10, 4, 3), (5, 4, 1), (3, 4, 1), (1, 4, 1)])
def test_the_number_of_windows(count, length, expected):
    assert len(windows(count, length)) == expected


def test_a_text_shorter_than_a_window_comes_round_without_weight():
    batch = epoch(windows(3, 7), 0)
    assert batch["input_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert batch["loss_mask"].tolist() == [[1, 1, 0, 0, 0, 0, 0]]


def test_a_row_is_the_same_whatever_stands_beside_it():
    source = windows(101, 10)
    rows = np.array([9, 10, 35, 0, 10])  # across the bounds of epochs
    batch = source.batch(rows)
    for index, row in enumerate(rows.tolist()):
        for name, value in source[row].items():
            np.testing.assert_array_equal(value, batch[name][index])
