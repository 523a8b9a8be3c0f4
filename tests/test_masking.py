"""Which tokens are predicted and what stands in their place."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bertgpt.data.pretraining import counter, masking

MASK, VOCAB = 4, 1000
CONTINUES = np.arange(VOCAB) % 3 == 2  # a third of the vocabulary goes on a word


def rows(count: int, length: int, seed: int = 0, lengths=None):
    """Random rows [CLS] ... [SEP] ... [SEP] padding: (input_ids, lengths, fixed, keys)."""
    rng = np.random.default_rng(seed)
    lengths = np.full(count, length) if lengths is None else lengths
    place = np.arange(length)
    middle = rng.integers(1, np.maximum(2, lengths - 1))
    fixed = (place == 0) | (place == middle[:, None]) | (place >= lengths[:, None] - 1)
    ids = rng.integers(5, VOCAB, (count, length)).astype(np.int32)
    return np.where(fixed, 3, ids).astype(np.int32), lengths, fixed, counter.keys(seed, np.arange(count))


def mask(batch, continues=None, vocab_size=VOCAB, rule=masking.PAPER) -> masking.Masked:
    of_tokens = None if continues is None else continues[batch[0]]
    return masking.mask_rows(*batch, MASK, vocab_size, of_tokens, rule=rule)


def chosen(masked: masking.Masked, row: int) -> list[int]:
    return masked.positions[row][masked.loss_mask[row] > 0].tolist()


def reference(batch, row: int, continues=None, rate: float = 0.15) -> list[int]:
    """The positions by a plain loop over the words of one row, a word being one token where `continues` is None."""
    ids, lengths, fixed, keys = (value[row] for value in batch)
    priority = counter.bits(np.array([keys]), np.arange(len(ids)))[0]
    words: list[list[int]] = []
    for place in range(len(ids)):
        if fixed[place]:
            continue
        if continues is not None and continues[ids[place]] and words and words[-1][-1] == place - 1:
            words[-1].append(place)
        else:
            words.append([place])
    found: list[int] = []
    for word in sorted(words, key=lambda word: priority[word[0]]):
        if len(found) + len(word) <= max(1, round(rate * int(lengths))):
            found += word
    return sorted(found)


@pytest.mark.parametrize(
    ("length", "count"),
    [(3, 1), (9, 1), (10, 2), (11, 2), (20, 3), (30, 4), (50, 8), (70, 10), (128, 19), (512, 77)],
)
def test_the_budget_is_15_percent_rounded_and_at_least_one(length, count):
    # 10 and 30: 1.5 and 4.5 go to the even neighbour; 50 and 70: 7.5 and 10.5
    assert masking.budget(np.array([length])).tolist() == [count]


@hypothesis.given(st.integers(1, 5000))
def test_the_budget_is_pythons_round(length):
    assert masking.budget(np.array([length])).tolist() == [max(1, round(0.15 * length))]


@pytest.fixture(scope="module")
def million():
    """2,000 rows of 512 tokens and their masking with BERT's vocabulary size."""
    batch = rows(2000, 512)
    return batch, mask(batch, vocab_size=30522)


def test_a_million_tokens_are_chosen_at_15_percent(million):
    _, masked = million
    assert masked.loss_mask.sum(axis=1).tolist() == [77.0] * 2000


def test_of_the_chosen_tokens_80_percent_are_masked_10_random_10_kept(million):
    _, masked = million
    new = np.take_along_axis(masked.input_ids, masked.positions, axis=1)
    assert abs((new == MASK).mean() - 0.8) < 0.004  # 154,000 draws: four standard deviations
    assert abs((new == masked.labels).mean() - 0.1) < 0.004
    other = new[(new != MASK) & (new != masked.labels)]
    assert abs(other.size / new.size - 0.1) < 0.004
    assert (other.min() < 30, other.max() >= 30522 - 30, other.max() < 30522) == (True, True, True)
    np.testing.assert_allclose(np.histogram(other, 10, (0, 30522))[0], other.size / 10, rtol=0.12)


def test_every_free_position_is_chosen_equally_often():
    ids, lengths, fixed, keys = rows(20_000, 24)
    fixed = (np.arange(24) == 0) | np.zeros_like(fixed)
    masked = mask((ids, lengths, fixed, keys))
    often = np.bincount(masked.positions.ravel(), minlength=24)
    assert often[0] == 0
    np.testing.assert_allclose(often[1:], 20_000 * 4 / 23, rtol=0.07)


def test_a_random_token_may_be_any_of_the_vocabulary():
    masked = mask(rows(500, 64), vocab_size=7)
    new = np.take_along_axis(masked.input_ids, masked.positions, axis=1)
    assert set(new[new != masked.labels].tolist()) == set(range(7))


@pytest.mark.parametrize("continues", [None, CONTINUES])
def test_labels_are_the_original_tokens(continues):
    batch = rows(50, 100, lengths=np.arange(51, 101))
    masked = mask(batch, continues)
    expected = np.take_along_axis(batch[0], masked.positions, axis=1)
    np.testing.assert_array_equal(masked.labels, np.where(masked.loss_mask > 0, expected, 0))


@pytest.mark.parametrize("continues", [None, CONTINUES])
def test_fixed_and_unchosen_tokens_stay(continues):
    batch = rows(100, 60, lengths=np.random.default_rng(1).integers(3, 61, 100))
    before, masked = batch[0].copy(), mask(batch, continues)
    is_chosen = np.zeros(before.shape, bool)
    row, place = np.nonzero(masked.loss_mask)
    is_chosen[row, masked.positions[row, place]] = True
    assert not (is_chosen & batch[2]).any()
    np.testing.assert_array_equal(masked.input_ids[~is_chosen], before[~is_chosen])
    np.testing.assert_array_equal(batch[0], before)  # the argument is not written to


def test_each_row_has_exactly_its_budget():
    lengths = np.arange(4, 101)
    masked = mask(rows(97, 100, lengths=lengths))
    assert masked.loss_mask.sum(axis=1).tolist() == [max(1, round(0.15 * length)) for length in lengths.tolist()]


def test_positions_ascend_and_unused_places_are_0():
    masked = mask(rows(97, 100, lengths=np.arange(4, 101)))
    assert masked.positions.shape == masked.labels.shape == masked.loss_mask.shape == (97, 15)
    for row in range(97):
        count = int(masked.loss_mask[row].sum())
        assert masked.loss_mask[row].tolist() == [1.0] * count + [0.0] * (15 - count)
        assert (np.diff(masked.positions[row, :count]) > 0).all()
        assert not masked.positions[row, count:].any()
        assert not masked.labels[row, count:].any()


def test_the_dtypes_are_those_of_the_batch():
    assert [value.dtype.name for value in mask(rows(2, 20))] == ["int32", "int32", "int32", "float32"]


@pytest.mark.parametrize("continues", [None, CONTINUES])
def test_an_example_does_not_depend_on_its_batch(continues):
    batch = rows(40, 80, lengths=np.arange(41, 81))
    together = mask(batch, continues)
    for order in ([7], [39, 7, 0], list(range(39, -1, -1))):
        alone = mask([value[order] for value in batch], continues)
        for name in masking.Masked._fields:
            np.testing.assert_array_equal(getattr(alone, name), getattr(together, name)[order])


def test_another_key_chooses_other_positions():
    ids, lengths, fixed, _ = rows(1, 512)
    first, second = (mask((ids, lengths, fixed, counter.keys(seed, np.arange(1)))) for seed in (0, 1))
    assert chosen(first, 0) != chosen(second, 0)


@pytest.mark.parametrize("continues", [None, CONTINUES])
def test_a_row_with_everything_fixed_gets_none(continues):
    ids, lengths, fixed, keys = rows(3, 40)
    fixed[1] = True
    masked = mask((ids, lengths, fixed, keys), continues)
    assert not masked.loss_mask[1].any()
    np.testing.assert_array_equal(masked.input_ids[1], ids[1])
    assert masked.loss_mask[[0, 2]].any(axis=1).all()


def test_a_row_with_fewer_free_tokens_than_its_budget_gives_all():
    ids, lengths, fixed, keys = rows(1, 40)
    fixed[0], fixed[0, [7, 30]] = True, False
    assert chosen(mask((ids, lengths, fixed, keys)), 0) == [7, 30]


RATES = st.one_of(st.just(0.15), st.floats(0.05, 0.6))


@hypothesis.given(st.integers(3, 90), st.integers(0, 1000), st.booleans(), RATES)
def test_the_choice_equals_a_plain_loop(length, seed, whole_words, rate):
    continues = CONTINUES if whole_words else None
    batch = rows(5, length, seed, np.random.default_rng(seed).integers(3, length + 1, 5))
    masked = mask(batch, continues, rule=masking.MaskRule(rate))
    assert [chosen(masked, row) for row in range(5)] == [reference(batch, row, continues, rate) for row in range(5)]


@hypothesis.given(st.integers(10, 90), st.integers(0, 1000), RATES)
def test_a_row_has_room_for_its_share(length, seed, rate):
    masked = mask(rows(5, length, seed), rule=masking.MaskRule(rate))
    assert masked.positions.shape == (5, max(1, round(rate * length)))
    free = length - 3  # at least: two of the three special tokens may be the same
    assert masked.loss_mask.sum(axis=1).min() >= min(free, max(1, round(rate * length)))


@pytest.mark.parametrize("split", [(0.5, 0.3, 0.2), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_the_chosen_tokens_are_split_as_asked(split):
    masked = mask(rows(2000, 128), vocab_size=30522, rule=masking.MaskRule(0.4, split))
    new = np.take_along_axis(masked.input_ids, masked.positions, axis=1)
    assert masked.loss_mask.all()
    shares = [(new == MASK).mean(), ((new != MASK) & (new != masked.labels)).mean(), (new == masked.labels).mean()]
    np.testing.assert_allclose(shares, split, atol=0.006)  # 102,000 draws: four standard deviations


@hypothesis.given(st.lists(st.integers(3, 64), min_size=1, max_size=16), st.floats(0.05, 0.6), st.integers(0, 9))
def test_a_packed_row_has_room_for_the_shares_of_its_examples(lengths, rate, room):
    most = masking.MaskRule(rate).most_packed(sum(lengths) + room, len(lengths), 3)
    assert most >= sum(max(1, round(rate * length)) for length in lengths)


def words_row(sizes: list[int], seed: int = 0):
    """One row of words of these sizes between two specials; 6 begins a word and 8 goes on it."""
    ids = np.array([[3, *(8 if piece else 6 for size in sizes for piece in range(size)), 3]], np.int32)
    length = ids.shape[1]
    return ids, np.array([length]), ids == 3, counter.keys(seed, np.arange(1))


def test_the_pieces_of_a_word_are_chosen_together():
    sizes = [1, 3, 2, 4, 1, 2, 5, 1, 3, 2] * 4
    ends = np.cumsum([1, *sizes]).tolist()
    for seed in range(20):
        found = set(chosen(mask(words_row(sizes, seed), CONTINUES), 0))
        words = [set(range(end - size, end)) for end, size in zip(ends[1:], sizes, strict=True)]
        assert all(word <= found or not word & found for word in words)
        assert found


def test_whole_words_do_not_exceed_the_budget():
    lengths = np.arange(10, 110)
    masked = mask(rows(100, 109, lengths=lengths), CONTINUES)
    assert (masked.loss_mask.sum(axis=1) <= masking.budget(lengths)).all()


def test_a_word_that_overflows_is_skipped_and_a_later_smaller_one_is_taken():
    batches = [words_row([3] * 4 + [1, 1], seed) for seed in range(50)]  # 16 tokens: a budget of 2
    assert all(chosen(mask(batch, CONTINUES), 0) == [13, 14] for batch in batches)


def test_a_row_of_words_that_all_overflow_gets_none():
    assert chosen(mask(words_row([3] * 4), CONTINUES), 0) == []


def test_a_piece_after_a_special_token_begins_a_word():
    # 20 tokens: a budget of 3; [SEP] ##8 ##8 ##8 [SEP] is one word of three pieces and all others are longer
    ids = np.array([[3, *[6, 8, 8, 8] * 3, 8, 3, 8, 8, 8, 3, 3]], np.int32)
    batch = ids, np.array([20]), ids == 3, counter.keys(0, np.arange(1))
    assert chosen(mask(batch, CONTINUES), 0) == [15, 16, 17]


def test_each_piece_of_a_whole_word_is_replaced_by_its_own_draw():
    batch = rows(2000, 128)
    masked = mask(batch, CONTINUES, vocab_size=30522)
    new = np.take_along_axis(masked.input_ids, masked.positions, axis=1)
    new = np.where(masked.loss_mask > 0, new, -1)
    assert abs((new == MASK).sum() / masked.loss_mask.sum() - 0.8) < 0.01
    joined = (np.diff(masked.positions, axis=1) == 1) & CONTINUES[masked.labels[:, 1:]] & (masked.loss_mask[:, 1:] > 0)
    both = (new[:, :-1] == MASK) & (new[:, 1:] == MASK)
    assert abs(both[joined].mean() - 0.64) < 0.03
