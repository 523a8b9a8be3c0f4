"""Attention masks against literal matrices."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bertgpt.model import masks

PADDED = np.array([[1, 1, 1, 0], [1, 0, 0, 0]])
PACKED = np.array([[0, 0, 1, 1], [7, 7, 7, 2]])


def test_padding_mask_hides_padded_keys_from_every_query():
    mask = masks.padding_mask(PADDED)
    assert mask.shape == (2, 1, 1, 4)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask[:, 0, 0], [[True, True, True, False], [True, False, False, False]])


def test_padding_mask_takes_any_nonzero_number_as_a_token():
    np.testing.assert_array_equal(masks.padding_mask(np.array([[2.0, -1.0, 0.0]]))[0, 0, 0], [True, True, False])


def test_causal_mask_is_the_lower_triangle():
    mask = masks.causal_mask(4)
    assert mask.shape == (1, 1, 4, 4)
    np.testing.assert_array_equal(mask[0, 0], [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])


def test_packed_mask_keeps_examples_apart():
    mask = masks.packed_mask(PACKED)
    assert mask.shape == (2, 1, 4, 4)
    np.testing.assert_array_equal(mask[0, 0], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    np.testing.assert_array_equal(mask[1, 0], [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]])


def test_nothing_forbidden_gives_no_mask():
    assert masks.dense_mask(4, causal=False) is None


def test_causal_packed_and_padded_combine():
    mask = masks.dense_mask(4, causal=True, attention_mask=PADDED, pack_ids=PACKED)
    assert mask.shape == (2, 1, 4, 4)
    np.testing.assert_array_equal(mask[0, 0], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(mask[1, 0], [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_packed_and_padded_combine_without_causal():
    mask = masks.dense_mask(4, causal=False, attention_mask=PADDED, pack_ids=PACKED)
    np.testing.assert_array_equal(mask[0, 0], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]])


def test_causal_alone_is_one_mask_for_every_row():
    np.testing.assert_array_equal(masks.dense_mask(3, causal=True), masks.causal_mask(3))


@given(st.booleans(), arrays(int, (2, 5), elements=st.integers(0, 1)), arrays(int, (2, 5), elements=st.integers(0, 2)))
def test_query_sees_key_exactly_where_no_mask_forbids_it(causal, attention_mask, pack_ids):
    mask = masks.dense_mask(5, causal=causal, attention_mask=attention_mask, pack_ids=pack_ids)
    for (b, _, t, s), seen in np.ndenumerate(np.asarray(mask)):
        assert seen == (attention_mask[b, s] == 1 and pack_ids[b, t] == pack_ids[b, s] and (s <= t or not causal))
