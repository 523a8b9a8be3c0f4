"""Random numbers as a pure function of key and counter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertgpt.data.pretraining import counter


def test_bits_are_splitmix64():
    # the first outputs of Vigna's splitmix64.c for seed 0
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert counter.bits(np.zeros(1, np.uint64), np.arange(3)).tolist() == [expected]


def test_a_key_depends_on_its_seed_and_row_alone():
    rows = np.array([5, 0, 123456])
    assert counter.keys(7, rows).tolist() == [counter.keys(7, rows[i : i + 1])[0] for i in range(3)]


def test_keys_of_different_seeds_and_rows_differ():
    keys = np.concatenate([counter.keys(seed, np.arange(1000)) for seed in (-1, 0, 1, 2, 1 << 40)])
    assert len(np.unique(keys)) == 5000


def test_bits_of_different_keys_and_counters_differ():
    assert len(np.unique(counter.bits(counter.keys(0, np.arange(100)), np.arange(100)))) == 10_000


def test_uniform_begins_at_0_and_ends_below_1():
    assert counter.uniform(np.array([0, 1 << 63, 2**64 - 1], np.uint64)).tolist() == [0.0, 0.5, 1 - 2.0**-53]


def test_uniform_is_uniform():
    numbers = counter.uniform(counter.bits(counter.keys(0, np.arange(100)), np.arange(1000)))
    histogram = np.histogram(numbers, 10, (0, 1))[0]
    assert histogram.sum() == 100_000
    np.testing.assert_allclose(histogram, 10_000, atol=400)  # four standard deviations


def test_neighbouring_rows_and_counters_are_uncorrelated():
    numbers = counter.uniform(counter.bits(counter.keys(0, np.arange(300)), np.arange(300)))
    assert abs(np.corrcoef(numbers[1:].ravel(), numbers[:-1].ravel())[0, 1]) < 0.015
    assert abs(np.corrcoef(numbers[:, 1:].ravel(), numbers[:, :-1].ravel())[0, 1]) < 0.015


@given(st.integers(1, 5000), st.integers(0, 3), st.integers(0, 2**32))
def test_permuted_puts_numbers_in_an_order_of_its_key(count, seed, row):
    keys = np.repeat(counter.keys(seed, np.array([row])), count)
    order = counter.permuted(np.arange(count), count, keys)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    few = np.array([0, count // 2, count - 1])
    np.testing.assert_array_equal(counter.permuted(few, count, keys[few]), order[few])


@pytest.mark.parametrize("count", [1000, 4096, 4097])
def test_a_permutation_looks_random(count):
    orders = [
        counter.permuted(np.arange(count), count, np.repeat(key, count)) for key in counter.keys(0, np.arange(50))
    ]
    close = 4 / count**0.5
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < close
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < close
    assert abs(np.mean([order[0] for order in orders]) / count - 0.5) < 0.17  # four standard deviations
    assert len({order[7] for order in orders}) > 40
