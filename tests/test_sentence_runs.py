"""Examples of masked language modelling alone: runs of sentences that together are the text, cut anew in each epoch."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from test_bert_data import make_split
from test_packing import table

from bertgpt.data.pretraining.masking import MaskRule
from bertgpt.data.pretraining.packing import Packed
from bertgpt.data.pretraining.sentence_runs import SentenceRuns, pack_runs
from bertgpt.tokenizers import train_wordpiece

WORDS = train_wordpiece(["a b c d e f g"], 30)
NO_MASKS = MaskRule(rate=1e-9, split=(0, 0, 1))  # one token is chosen, and stays
SPLITS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), min_size=1, max_size=8).map(make_split)


def tokens(source, epoch: int) -> list[int]:
    """The tokens of all runs of an epoch in order, without special tokens."""
    ids = source.batch(np.arange(len(source)) + epoch * len(source))["input_ids"]
    return ids[ids >= 5].tolist()  # those of `make_split` are 5, 6, 7, ...


def lengths(source: SentenceRuns, epoch: int) -> list[int]:
    return (source.lengths(epoch) - 2).tolist()


def runs(documents: list[list[int]], length: int) -> SentenceRuns:
    return SentenceRuns(make_split(documents), WORDS, length, 0, NO_MASKS)


def test_a_row_is_a_run_of_whole_sentences():
    row = runs([[3, 2]], 9)[0]
    assert {name: value.tolist() for name, value in row.items()} == {
        "input_ids": [2, 5, 6, 7, 8, 9, 3, 0, 0],
        "attention_mask": [1] * 7 + [0] * 2,
        "masked_positions": [row["masked_positions"][0]],
        "labels": [row["masked_positions"][0] + 4],
        "loss_mask": [1.0],
    }
    assert {name: str(value.dtype) for name, value in row.items()} == dict.fromkeys(row, "int32") | {
        "loss_mask": "float32"
    }


def test_documents_of_one_row_are_never_cut_and_never_joined():
    for epoch in range(5):
        assert lengths(runs([[3, 2], [4], [6]], 8), epoch) == [5, 4, 6]


def test_two_rows_are_cut_at_every_sentence_that_leaves_two():
    source = runs([[2, 2, 2, 2, 2]], 8)  # at most 6 tokens: 4 + 6 or 6 + 4
    assert {tuple(lengths(source, epoch)) for epoch in range(20)} == {(4, 6), (6, 4)}


def test_a_long_sentence_fills_consecutive_rows():
    source = runs([[20]], 8)  # 6 a row: four rows, with room for 24
    found = {tuple(lengths(source, epoch)) for epoch in range(50)}
    assert all(len(cut) == 4 and sum(cut) == 20 and max(cut) <= 6 for cut in found)
    assert len(found) > 4  # cut anew
    assert lengths(runs([[2, 6, 2]], 8), 0) == [2, 6, 2]  # a sentence that fits is not cut


def test_long_documents_are_cut_anew_to_their_end():
    source = runs([[3] * 1000], 34)  # at most 30 of 32 tokens: 100 rows
    ends = np.array([source.plan(epoch)[1:-1] for epoch in range(6)])
    assert np.ptp(ends[:, -10:], axis=0).min() == 0  # ten sentences fill a row, and 100 rows are full: no freedom
    source = runs([[3] * 997], 34)
    ends = np.array([source.plan(epoch)[1:-1] for epoch in range(6)])
    assert np.ptp(ends, axis=0).min() > 0


@hypothesis.given(SPLITS, st.integers(8, 40), st.integers(0, 3))
def test_every_token_is_in_one_row_of_an_epoch_and_sentences_are_whole(split, length, epoch):
    source = SentenceRuns(split, WORDS, length, 1, NO_MASKS)
    bounds, longest = source.plan(epoch), length - 2
    assert bounds[0] == 0
    assert bounds[-1] == len(split.tokens)
    assert 0 < np.diff(bounds).min() <= np.diff(bounds).max() <= longest
    assert set(split.sentences[split.documents]) <= set(bounds)  # no run crosses the end of a document
    for cut in set(bounds) - set(split.sentences):
        place = np.searchsorted(split.sentences, cut)
        assert split.sentences[place] - split.sentences[place - 1] > longest
    assert tokens(source, epoch) == split.tokens.tolist()


def fewest(sentences: list[int], longest: int) -> int:
    """The fewest runs of a document, by trying every cut."""
    pieces = [1 if size > longest else size for size in sentences for _ in range(size if size > longest else 1)]
    best = [0] + [10**9] * len(pieces)
    for end in range(1, len(pieces) + 1):
        for begin in range(end):
            if sum(pieces[begin:end]) <= longest:
                best[end] = min(best[end], best[begin] + 1)
    return best[-1]


@hypothesis.given(st.lists(st.integers(1, 12), min_size=1, max_size=10), st.integers(8, 14))
def test_a_document_has_as_few_runs_as_possible(sentences, length):
    assert len(runs([sentences], length)) == fewest(sentences, length - 2)


@hypothesis.given(SPLITS, st.integers(16, 64), st.integers(0, 3))
def test_packed_rows_hold_every_run_of_an_epoch_once(split, length, epoch):
    runs = SentenceRuns(split, WORDS, length, 1, NO_MASKS)
    source = pack_runs(runs)
    packs = table(source, epoch)
    assert len(packs) == len(source) <= len(runs)
    assert sorted(tokens(source, epoch)) == split.tokens.tolist()
    assert sorted(packs[packs >= 0]) == list(range(len(runs)))
    assert (packs >= 0).any(1).all()  # no row is empty


def test_spare_rows_let_almost_every_epoch_keep_its_first_cuts():
    source = runs([[1] * 80] * 400, 64)
    pack_runs(source)
    drawn = []
    cut = source._cut
    source._cut = lambda rng: drawn.append(rng) or cut(rng)
    for epoch in range(1, 21):
        source.plan(epoch)
    assert len(drawn) == 20  # these need from 577 to 600 rows, and epoch 0 needs 580


def test_cuts_that_pack_badly_are_drawn_again():
    source = runs([[2, 2, 2, 2, 2]] * 3, 8)
    source.accepts = lambda histogram: histogram.tolist() == [0] * 6 + [3, 0, 3]
    assert [sorted(lengths(source, epoch)) for epoch in range(1, 4)] == [[4] * 3 + [6] * 3] * 3
    fallback = runs([[2, 2, 2, 2, 2]] * 3, 8)
    first = lengths(fallback, 0)
    fallback.accepts = lambda histogram: False
    assert lengths(fallback, 5) == first


def test_a_row_depends_on_the_store_the_seed_and_its_number_only(bert_split, wordpiece):
    source, again = (SentenceRuns(bert_split, wordpiece, 32, 7) for _ in range(2))
    numbers = np.array([5, 3 * len(source) + 1, 2 * len(source), 5])
    batch = source.batch(numbers)
    for place, row in enumerate(numbers.tolist()):
        for name, value in again[row].items():
            np.testing.assert_array_equal(batch[name][place], value)
    other = SentenceRuns(bert_split, wordpiece, 32, 8).batch(numbers)
    assert (other["input_ids"] != batch["input_ids"]).any()


def test_each_epoch_has_new_masks(bert_split, wordpiece):
    source = SentenceRuns(bert_split, wordpiece, 32, 0)
    source.plan = lambda epoch: bounds  # the same cuts
    bounds = SentenceRuns(bert_split, wordpiece, 32, 0).plan(0)
    one, two = (source.batch(np.arange(20) + epoch * len(source)) for epoch in (0, 1))
    assert (one["masked_positions"] != two["masked_positions"]).any(1).mean() > 0.9


@pytest.mark.parametrize("rule", [MaskRule(0.05), MaskRule(0.4), MaskRule(0.15, whole_word=True)])
def test_a_packed_run_is_masked_as_if_alone(bert_split, wordpiece, rule):
    source = SentenceRuns(bert_split, wordpiece, 64, 0, rule)
    packed: Packed = pack_runs(source)
    batch, members = packed.batch(np.arange(len(packed)) + len(packed)), table(packed, 1)
    row, place = 3, 0
    run = members[(row + packed.plan(1)[1]) % len(packed), place]
    alone = source.rows(np.array([1]), np.array([run]), 64)
    size = int(alone["attention_mask"].sum())
    begin = int(np.flatnonzero(batch["pack_ids"][row] == place + 1)[0])
    np.testing.assert_array_equal(batch["input_ids"][row, begin : begin + size], alone["input_ids"][0, :size])
    assert batch["loss_mask"].sum(1).max() <= packed.most_masked
    assert "cls_positions" not in batch
