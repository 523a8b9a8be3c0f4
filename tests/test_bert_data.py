"""BERT's pretraining examples: sentence pairs, masked, as batches."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bertgpt.data.pretraining import pair_plans, plans, sentence_pairs
from bertgpt.data.pretraining.masking import MaskRule
from bertgpt.data.pretraining.pair_plans import Pairs, from_records, to_records
from bertgpt.data.text.store import Split
from bertgpt.errors import InputError
from bertgpt.tokenizers import load_tokenizer

WORDS = "my dog is cute he likes play ##ing the man went to store bought a gallon milk penguin are flight ##less birds"
NEVER_CUT = 10_000  # tokens, more than any two documents have


@pytest.fixture(scope="module", params=[plans.SENTENCES, 16], ids=["one block", "many blocks"], autouse=True)
def block(request):
    """Documents are planned all at once, or 16 sentences at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "SENTENCES", request.param)
        yield request.param


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """A tokenizer with the pieces of the BERT paper's examples."""
    path = tmp_path_factory.mktemp("paper") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]))
    return load_tokenizer(path)


def encoded(tokenizer, *texts: str) -> tuple[str, list[int]]:
    """The pieces, joined, and the segments."""
    batch = sentence_pairs.encode(tokenizer, *texts)
    return " ".join(map(tokenizer.id_to_token, batch["input_ids"][0])), batch["token_type_ids"][0].tolist()


def make_split(documents: list[list[int]]) -> Split:
    """Documents given as the lengths of their sentences; the tokens are 5, 6, 7, ..."""
    lengths = np.concatenate(documents)
    return Split(
        np.arange(5, 5 + lengths.sum(), dtype=np.uint32),
        np.cumsum([0, *lengths]),
        np.cumsum([0, *map(len, documents)]),
        np.zeros(0, np.int64),
        0,
    )


def random_split(count: int, seed: int = 0, most: int = 12) -> Split:
    rng = np.random.default_rng(seed)
    return make_split([rng.integers(1, 20, rng.integers(1, most + 1)).tolist() for _ in range(count)])


def plan_pairs(split: Split, max_tokens: int, seed: int = 0, balanced: bool = True) -> Pairs:
    return from_records(pair_plans.plan_pairs(split, max_tokens, np.random.default_rng(seed), balanced)[0])


def document_of(split: Split, token: np.ndarray) -> np.ndarray:
    """The document in which each token stands."""
    return np.searchsorted(split.sentences[split.documents], token, side="right") - 1


def planned(pairs: sentence_pairs.BertPairs, row: int) -> list[int]:
    """The fields of the plan for one row."""
    records, shift, _ = pairs.plan(row // len(pairs))
    return [int(field) for field in from_records(records[(row % len(pairs) + shift) % len(records)])]


def assert_equal_rows(batch: dict, rows: list[dict]) -> None:
    for index, row in enumerate(rows):
        assert row.keys() == batch.keys()
        for name, value in row.items():
            np.testing.assert_array_equal(value, batch[name][index], err_msg=name)


splits = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), min_size=2, max_size=12).map(make_split)


def test_one_text_is_segment_0(paper):
    assert encoded(paper, "my dog is cute") == ("[CLS] my dog is cute [SEP]", [0, 0, 0, 0, 0, 0])


def test_a_second_text_is_segment_1(paper):
    pieces, segments = encoded(paper, "My dog is cute", "he likes playing")
    assert pieces == "[CLS] my dog is cute [SEP] he likes play ##ing [SEP]"
    assert segments == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_the_papers_isnext_example(paper):
    pieces, segments = encoded(paper, "the man went to [MASK] store", "he bought a gallon [MASK] milk")
    assert pieces == "[CLS] the man went to [MASK] store [SEP] he bought a gallon [MASK] milk [SEP]"
    assert segments == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert pair_plans.IS_NEXT == 0


def test_the_papers_notnext_example(paper):
    pieces, segments = encoded(paper, "the man [MASK] to the store", "penguin [MASK] are flightless birds")
    assert pieces == "[CLS] the man [MASK] to the store [SEP] penguin [MASK] are flight ##less birds [SEP]"
    assert segments == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert pair_plans.NOT_NEXT == 1


def test_encode_gives_a_batch_of_one(paper):
    batch = sentence_pairs.encode(paper, "my dog", "is")
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "input_ids": ((1, 6), "int32"),
        "token_type_ids": ((1, 6), "int32"),
    }


@pytest.mark.parametrize("count", [0, 3])
def test_other_than_one_or_two_texts_are_refused(paper, count):
    with pytest.raises(InputError, match=f"takes one or two texts, not {count}"):
        sentence_pairs.encode(paper, *["my dog"] * count)


def test_a_single_document_is_refused():
    with pytest.raises(InputError, match="at least two documents"):
        plan_pairs(make_split([[3, 4, 5]]), 20)


@pytest.mark.parametrize("balanced", [True, False])
def test_a_is_a_run_of_sentences_of_one_document(balanced):
    split = random_split(300)
    plan = plan_pairs(split, NEVER_CUT, balanced=balanced)
    assert np.isin(plan.a_start, split.sentences).all()
    assert np.isin(plan.a_start + plan.a_length, split.sentences).all()
    last = plan.a_start + plan.a_length - 1
    np.testing.assert_array_equal(document_of(split, plan.a_start), document_of(split, last))


def test_b_of_isnext_goes_on_where_a_ends_in_the_same_document():
    split = random_split(300)
    plan = plan_pairs(split, NEVER_CUT)
    plan = Pairs(*(field[plan.label == pair_plans.IS_NEXT] for field in plan))
    np.testing.assert_array_equal(plan.b_start, plan.a_start + plan.a_length)
    assert np.isin(plan.b_start + plan.b_length, split.sentences).all()
    last = plan.b_start + plan.b_length - 1
    np.testing.assert_array_equal(document_of(split, plan.a_start), document_of(split, last))


@hypothesis.given(splits, st.integers(2, 40), st.integers(0, 99), st.booleans())
def test_b_of_notnext_is_one_run_of_another_document(split, max_tokens, seed, balanced):
    plan = plan_pairs(split, max_tokens, seed, balanced)
    other = plan.label == pair_plans.NOT_NEXT
    a, b = document_of(split, plan.a_start[other]), document_of(split, plan.b_start[other])
    assert (a != b).all()
    np.testing.assert_array_equal(b, document_of(split, (plan.b_start + plan.b_length)[other] - 1))


def test_b_of_notnext_may_come_from_every_other_document():
    split = make_split([[3, 3, 3]] * 6)
    plans = [plan_pairs(split, 30, seed) for seed in range(60)]
    found = {
        pair
        for plan in plans
        for pair, label in zip(
            zip(document_of(split, plan.a_start), document_of(split, plan.b_start), strict=True),
            plan.label,
            strict=True,
        )
        if label == pair_plans.NOT_NEXT
    }
    assert found == {(a, b) for a in range(6) for b in range(6) if a != b}


@hypothesis.given(splits, st.integers(2, 60), st.integers(0, 99), st.booleans())
def test_pairs_fit_and_both_halves_have_a_token(split, max_tokens, seed, balanced):
    plan = plan_pairs(split, max_tokens, seed, balanced)
    assert (plan.a_length + plan.b_length <= max_tokens).all()
    assert (plan.a_length >= 1).all()
    assert (plan.b_length >= 1).all()
    assert set(plan.label) <= {0, 1}


@pytest.mark.parametrize("max_tokens", [5, 20, 61, 125])
@pytest.mark.parametrize("count", [50, 51, 400])
def test_both_labels_are_equally_many(count, max_tokens):
    for seed in range(8):
        is_next, not_next = np.bincount(plan_pairs(random_split(count, seed), max_tokens, seed).label, minlength=2)
        assert is_next == not_next


def test_a_chunk_of_one_sentence_is_notnext_where_unbalanced():
    split = make_split([[4]] * 50 + [[4, 4, 4, 4]] * 50)
    plan = plan_pairs(split, NEVER_CUT, balanced=False)
    single = document_of(split, plan.a_start) < 50
    assert single.sum() == 50
    assert (plan.label[single] == pair_plans.NOT_NEXT).all()
    assert (plan.label[~single] == pair_plans.IS_NEXT).any()


def test_unbalanced_chunks_of_several_sentences_take_a_label_by_a_coin():
    split = make_split([[4, 4]] * 4000)
    plan = plan_pairs(split, 8, balanced=False)
    labels = plan.label[plan.a_start % 8 == 0]  # the first chunk of each document
    assert len(labels) == 4000
    single = 0.1 * 3 / 7  # of one sentence: 10 % of the documents aim at 2 to 8 tokens, and the first has 4
    assert abs(labels.mean() - (1 + single) / 2) < 0.032  # four standard deviations


def test_unbalanced_short_documents_give_more_notnext():
    assert plan_pairs(random_split(500, most=3), 40, balanced=False).label.mean() > 0.6


def test_excess_notnext_pairs_of_one_sentence_chunks_go_first():
    label = np.array([1, 1, 0, 1, 1, 0, 1])
    single = np.array([1, 0, 0, 0, 1, 0, 0], bool)
    for seed in range(10):
        keep = pair_plans._drop(label, single, 3, np.random.default_rng(seed))
        assert keep.tolist()[:1] + keep.tolist()[4:5] == [False, False]
        assert label[keep].sum() == 2


def test_excess_pairs_are_spread_over_the_blocks_in_proportion():
    tallies = np.array([[0, 10, 30], [50, 10, 10], [0, 0, 60]])  # IsNext, NotNext of several sentences, of one
    assert pair_plans._excess(tallies).tolist() == [21, 7, 42]  # 70 of the 100 of one sentence
    assert pair_plans._excess(np.array([[1, 5, 2], [2, 3, 1]])).tolist() == [
        2 + 3,
        1 + 2,
    ]  # all of one, and 5
    assert pair_plans._excess(np.array([[0, 3, 4], [0, 1, 1]])).tolist() == [0, 0]  # nothing to balance
    assert pair_plans._excess(np.array([[7, 3, 4]])).tolist() == [0]


@hypothesis.given(st.lists(st.integers(0, 2**40), min_size=1, max_size=9), st.data())
def test_records_hold_pairs_of_texts_of_any_size(starts, data):
    column = st.lists(st.integers(1, 2**16 - 1), min_size=len(starts), max_size=len(starts))
    labels = data.draw(st.lists(st.integers(0, 1), min_size=len(starts), max_size=len(starts)))
    fields = [starts, data.draw(column), starts[::-1], data.draw(column), labels]
    records = to_records(Pairs(*map(np.array, fields)))
    assert (records.shape, records.dtype) == ((len(starts), 2), np.uint64)
    assert [field.tolist() for field in from_records(records)] == fields
    assert pair_plans.count_labels(records).tolist() == [labels.count(0), labels.count(1)]


def test_longer_documents_make_up_for_short_ones_before_them():
    split = make_split([[4]] * 40 + [[4, 4]] * 60)  # 40 NotNext pairs, then 50 IsNext; balanced by itself, 60 give 30
    for seed in range(5):
        records, left_out = pair_plans.plan_pairs(split, 10, np.random.default_rng(seed))
        assert pair_plans.count_labels(records).min() >= 50
        assert left_out <= 10


def test_one_sentence_documents_keep_their_pairs_though_all_are_notnext():
    assert plan_pairs(make_split([[5]] * 20), 20).label.tolist() == [1] * 20


def test_pairs_left_out_for_the_balance_are_counted():
    split = make_split([[1]] * 20 + [[1, 1]] * 4)  # 24 chunks, whatever length they aim at
    for seed in range(5):
        plan, left_out = pair_plans.plan_pairs(split, 10, np.random.default_rng(seed))
        assert (len(plan), left_out) == (8, 16)
        plan, left_out = pair_plans.plan_pairs(split, 10, np.random.default_rng(seed), balanced=False)
        assert pair_plans.count_labels(plan)[pair_plans.NOT_NEXT] >= 20
        assert left_out == 0
    assert pair_plans.plan_pairs(make_split([[5]] * 20), 20, np.random.default_rng(0))[1] == 0


@hypothesis.given(splits, st.integers(1, 5))
def test_documents_of_one_sentence_are_counted_in_blocks(split, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "BLOCK", block)
        share = sentence_pairs.one_sentence_share(split.documents)
    assert share == pytest.approx((np.diff(split.documents) == 1).mean())


def make_plan(rows: list[tuple[int, int, int]]) -> np.ndarray:
    """Records of pairs given as the lengths of A and B and the label."""
    a_length, b_length, label = np.array(rows).T
    return to_records(Pairs(np.zeros_like(label), a_length, np.zeros_like(label), b_length, label))


def of_lengths(rows: list[tuple[int, int]], length: int = 12) -> dict[str, np.ndarray]:
    """The keys of a batch that tell the lengths of A and B."""
    segments = [[0] * (a + 2) + [1] * (b + 1) for a, b in rows]
    pad = [length - len(row) for row in segments]
    return {
        "token_type_ids": np.array([row + [0] * more for row, more in zip(segments, pad, strict=True)]),
        "attention_mask": np.array([[1] * len(row) + [0] * more for row, more in zip(segments, pad, strict=True)]),
    }


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_lengths_that_decide_the_label_predict_it(block, monkeypatch):
    monkeypatch.setattr(plans, "BLOCK", block)
    rows = [(2, 3, 0), (5, 3, 1), (2, 4, 1), (5, 4, 0)]  # neither length says anything alone
    baseline = sentence_pairs.fit_lengths([make_plan(rows * 25)], 9)
    assert baseline.predict(of_lengths([row[:2] for row in rows])).tolist() == [0, 1, 1, 0]


def test_lengths_that_say_nothing_predict_one_label():
    rows = [(a, b, label) for a in (2, 5) for b in (3, 4) for label in (0, 1)]
    baseline = sentence_pairs.fit_lengths([make_plan(rows * 25)], 9)
    assert len(set(baseline.predict(of_lengths([row[:2] for row in rows])).tolist())) == 1


def test_the_likelier_label_is_that_of_equally_frequent_labels():
    rows = [(2, 3, 0)] * 4 + [(2, 3, 1)] * 6 + [(5, 3, 1)] * 54  # 6 of 60 NotNext pairs, all IsNext pairs
    baseline = sentence_pairs.fit_lengths([make_plan(rows)], 9)
    assert baseline.predict(of_lengths([(2, 3), (5, 3)])).tolist() == [0, 1]


@pytest.mark.parametrize(("pairs", "bins"), [(10, 2), (800, 2), (1800, 3), (5000, 5), (10**6, 16)])
def test_bins_follow_the_number_of_pairs(pairs, bins):
    rng = np.random.default_rng(0)
    plan = make_plan(np.stack([rng.integers(1, 60, pairs), rng.integers(1, 60, pairs), rng.integers(0, 2, pairs)], 1))
    baseline = sentence_pairs.fit_lengths([plan], 125)
    assert baseline.label.shape == (bins, bins)
    assert baseline.a_bin.shape == baseline.b_bin.shape == (126,)
    if pairs > 10:
        counts = np.bincount(baseline.a_bin[from_records(plan).a_length], minlength=bins)
        assert counts.min() > 0.5 * pairs / bins


def test_a_batch_tells_the_lengths_of_its_plan(bert_split, wordpiece):
    pairs = sentence_pairs.BertPairs(bert_split, wordpiece, 40, 0)
    rows = np.arange(len(pairs))
    lengths = np.arange(38)
    table = np.arange(38 * 38).reshape(38, 38)  # every pair of lengths has a label of its own
    found = sentence_pairs.LengthBaseline(lengths, lengths, table).predict(pairs.batch(rows))
    expected = [planned(pairs, row) for row in rows.tolist()]
    assert found.tolist() == [a * 38 + b for _, a, _, b, _ in expected]


def test_every_sentence_is_used_where_nothing_is_dropped_or_cut():
    split = random_split(60)
    plan = plan_pairs(split, NEVER_CUT, balanced=False)
    used = np.zeros(len(split.tokens), int)
    for a_start, a_length, b_start, b_length, label in zip(*plan, strict=True):
        used[a_start : a_start + a_length] += 1
        used[b_start : b_start + b_length] += label == pair_plans.IS_NEXT
    assert (used == 1).all()


def test_chunks_reach_the_target_length():
    split = make_split([[2] * 300] * 40)
    plan = plan_pairs(split, 40)
    total = plan.a_length + plan.b_length
    document = document_of(split, plan.a_start)
    short = np.array([(total[document == index] < 40).mean() > 0.5 for index in range(40)])
    assert 0 < short.sum() <= 12  # 10 % of the documents have a shorter target
    assert (total == 40).mean() > 0.6


def test_a_chunk_that_fits_exactly_is_not_cut():
    split = make_split([[2] * 300] * 40)
    plan = plan_pairs(split, 40)
    full = (plan.label == pair_plans.IS_NEXT) & (plan.a_length + plan.b_length == 40)
    assert full.sum() > 100
    assert np.isin(plan.a_start[full], split.sentences).all()
    np.testing.assert_array_equal(plan.b_start[full], (plan.a_start + plan.a_length)[full])


def cut_by_loop(a: int, b: int, max_tokens: int) -> tuple[int, int]:
    """Google's truncate_seq_pair, lengths alone."""
    while a + b > max_tokens:
        if a > b:
            a -= 1
        else:
            b -= 1
    return a, b


@hypothesis.given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 80))
@hypothesis.example(7, 7, 9)
@hypothesis.example(3, 40, 6)
def test_truncation_equals_a_loop_token_by_token(a, b, max_tokens):
    plan = Pairs(*(np.array([value]) for value in (100, a, 200, b, 0)))
    cut = pair_plans._truncate(plan, max_tokens, np.random.default_rng(a * 41 + b))
    assert (int(cut.a_length[0]), int(cut.b_length[0])) == cut_by_loop(a, b, max_tokens)
    assert 100 <= cut.a_start[0] <= cut.a_start[0] + cut.a_length[0] <= 100 + a
    assert 200 <= cut.b_start[0] <= cut.b_start[0] + cut.b_length[0] <= 200 + b


def test_truncation_takes_from_front_and_back_alike():
    plan = Pairs(*(np.full(2000, value) for value in (0, 40, 0, 40, 0)))
    cut = pair_plans._truncate(plan, 40, np.random.default_rng(0))
    for start in (cut.a_start, cut.b_start):  # of 20 cuts, those at the front
        assert abs(start.mean() - 10) < 0.2
        assert abs(start.var() - 5) < 0.7


def test_a_plan_follows_seed_and_epoch_alone(bert_split, wordpiece):
    plan, shift, _ = sentence_pairs.BertPairs(bert_split, wordpiece, 32, 3).plan(1)
    again = sentence_pairs.BertPairs(bert_split, wordpiece, 32, 3)
    again.plan(0)
    np.testing.assert_array_equal(plan, again.plan(1)[0])
    assert again.plan(1)[1] == shift
    for other in (
        again.plan(0)[0],
        again.plan(2)[0],
        sentence_pairs.BertPairs(bert_split, wordpiece, 32, 4).plan(1)[0],
    ):
        assert not np.array_equal(from_records(plan).a_length, from_records(other).a_length)


def test_an_epoch_shows_each_pair_of_its_plan_once(wordpiece):
    pairs = sentence_pairs.BertPairs(random_split(50), wordpiece, 32, 0)
    plan = from_records(pairs.plan(0)[0])
    assert sorted(planned(pairs, row) for row in range(len(pairs))) == sorted(map(list, zip(*plan, strict=True)))
    assert len(pairs) == len(plan.label)


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_layout_is_cls_a_sep_b_sep_padding(bert_split, wordpiece, epoch):
    pairs = sentence_pairs.BertPairs(bert_split, wordpiece, 40, 0)
    rows = np.arange(epoch * len(pairs), epoch * len(pairs) + 30)
    batch = pairs.batch(rows)
    originals = batch["input_ids"].copy()
    row, place = np.nonzero(batch["loss_mask"])
    originals[row, batch["masked_positions"][row, place]] = batch["labels"][row, place]
    for index, number in enumerate(rows.tolist()):
        a_start, a, b_start, b, label = planned(pairs, number)
        first, second = bert_split.tokens[a_start : a_start + a], bert_split.tokens[b_start : b_start + b]
        padding = 40 - 3 - a - b
        assert originals[index].tolist() == [2, *first, 3, *second, 3] + [0] * padding
        assert batch["token_type_ids"][index].tolist() == [0] * (a + 2) + [1] * (b + 1) + [0] * padding
        assert batch["attention_mask"][index].tolist() == [1] * (a + b + 3) + [0] * padding
        assert batch["next_sentence_label"][index] == label
        assert batch["loss_mask"][index].sum() == max(1, round(0.15 * (a + b + 3)))
    assert set(batch["attention_mask"][:, -1].tolist()) == {0, 1}  # some row has padding, some is full


def test_the_shapes_and_dtypes_of_a_batch(bert_split, wordpiece):
    batch = sentence_pairs.BertPairs(bert_split, wordpiece, 40, 0).batch(np.arange(4))
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "input_ids": ((4, 40), "int32"),
        "token_type_ids": ((4, 40), "int32"),
        "attention_mask": ((4, 40), "int32"),
        "masked_positions": ((4, 6), "int32"),
        "labels": ((4, 6), "int32"),
        "loss_mask": ((4, 6), "float32"),
        "next_sentence_label": ((4,), "int32"),
        "nsp_loss_mask": ((4,), "float32"),
    }
    assert batch["nsp_loss_mask"].tolist() == [1.0] * 4


@pytest.mark.parametrize("whole_word", [False, True])
def test_no_special_token_is_chosen(bert_split, wordpiece, whole_word):
    pairs = sentence_pairs.BertPairs(bert_split, wordpiece, 40, 0, MaskRule(whole_word=whole_word))
    batch = pairs.batch(np.arange(len(pairs)))
    assert batch["labels"][batch["loss_mask"] > 0].min() >= 5


def test_whole_words_are_chosen_by_the_tokenizers_continuation_pieces(bert_split, wordpiece):
    goes_on = np.array([(wordpiece.id_to_token(index)).startswith("##") for index in range(wordpiece.get_vocab_size())])
    pairs = sentence_pairs.BertPairs(bert_split, wordpiece, 64, 0, MaskRule(whole_word=True))
    batch = pairs.batch(np.arange(40))
    masked = [
        set(row[mask > 0].tolist()) for row, mask in zip(batch["masked_positions"], batch["loss_mask"], strict=True)
    ]
    for number, positions in enumerate(masked):
        a_start, a, b_start, b, _ = planned(pairs, number)
        first = goes_on[bert_split.tokens[a_start : a_start + a]]
        second = goes_on[bert_split.tokens[b_start : b_start + b]]
        joins = [place + 2 for place in np.flatnonzero(first[1:])]
        joins += [place + a + 3 for place in np.flatnonzero(second[1:])]
        assert all((place in positions) == (place - 1 in positions) for place in joins)
    assert sum(map(len, masked)) > 100


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_row_is_the_same_whatever_stands_beside_it(bert_split, wordpiece, whole_word):
    rule = MaskRule(whole_word=whole_word)
    pairs = sentence_pairs.BertPairs(bert_split, wordpiece, 32, 0, rule)
    rows = np.array([5, 0, len(pairs) - 1, len(pairs), 2 * len(pairs) + 3, 7])  # across the bounds of epochs
    alone = [sentence_pairs.BertPairs(bert_split, wordpiece, 32, 0, rule)[row] for row in rows.tolist()]
    assert_equal_rows(pairs.batch(rows), alone)
    assert_equal_rows(pairs.batch(rows[::-1]), alone[::-1])


def test_masking_is_made_anew_in_another_epoch(wordpiece):
    pairs = sentence_pairs.BertPairs(make_split([[10, 10]] * 15), wordpiece, 64, 0)
    first, second = (pairs.batch(np.arange(len(pairs)) + epoch * len(pairs)) for epoch in (0, 1))
    alike = (first["token_type_ids"] == second["token_type_ids"]).all(axis=1)
    assert alike.any()
    assert (first["masked_positions"] != second["masked_positions"]).any(axis=1)[alike].all()


def test_a_tokenizer_without_mask_is_refused(bert_split, bpe):
    with pytest.raises(InputError, match=r"the tokenizer has no \["):
        sentence_pairs.BertPairs(bert_split, bpe, 32, 0)
