"""The data pipeline without the trainer: the README's loop, and sources as Grain reads them."""

import json
import re
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
from conftest import TINY

import bertgpt
from bertgpt import data
from bertgpt.data.text import store
from bertgpt.tokenizers import save_tokenizer
from train.__main__ import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
(LOOP,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "make_store" in code]
STEPS, ROWS, LENGTH = 12, 8, 32


@pytest.fixture
def folder(documents, wordpiece, tmp_path, monkeypatch):
    """The folder in which the README's code runs: a text and a tokenizer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    (tmp_path / "tokenizer").mkdir()
    save_tokenizer(wordpiece, tmp_path / "tokenizer")
    return tmp_path


def test_the_readmes_loop_has_25_lines():
    assert len([line for line in LOOP.splitlines() if line.strip()]) == 25


def losses_of_the_loop(order: np.ndarray) -> list[float]:
    """The losses that the README's code prints, with a tiny model without dropout, on given rows [steps B]."""
    sizes = TINY | {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    del sizes["vocab_size"]
    code = LOOP
    for old, new in {
        "bert_tiny(": f"bert_tiny(**{sizes}, ",
        "sequence_length=128": f"sequence_length={LENGTH}",
        "0.0, 100)": f"0.0, {STEPS})",
        "np.random.default_rng(0).permutation(3200).reshape(100, 32)": "ORDER",
        "print(number, value)": "FOUND.append(float(value))",
    }.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    found: list[float] = []
    exec(compile(code, "README.md", "exec"), {"ORDER": order, "FOUND": found})
    return found


def order_of_a_run(length: int, seed: int) -> np.ndarray:
    """The rows of a run's updates, as docs/data.md has them: each epoch in a random order of its own."""
    numbers = grain.MapDataset.range(length).shuffle(seed=seed).repeat()
    rows = numbers.map_with_index(lambda place, index: place // length * length + index)
    return np.array([rows[place] for place in range(STEPS * ROWS)]).reshape(STEPS, ROWS)


def test_the_readmes_loop_reaches_the_losses_of_the_trainer_on_the_same_rows(folder):
    splits = data.make_store("store", data.TextSource("text"), bertgpt.load_tokenizer("tokenizer"))
    source = data.SentenceRuns(splits["train"], bertgpt.load_tokenizer("tokenizer"), LENGTH, 0)
    found = losses_of_the_loop(order_of_a_run(len(source), seed=0))

    configuration = {
        "model": TINY | {"vocab_size": None, "preset": "bert_tiny", "hidden_dropout": 0, "attention_dropout": 0},
        "tokenizer": {"path": "tokenizer"},
        "data": {"train": "text", "store": "store", "sequence_length": LENGTH},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0, "weight_decay": 0, "clip_norm": 0, "eps": 1e-8},
        "train": {"objective": "mlm", "steps": STEPS, "batch_size": ROWS, "log_every": 1, "eval_examples": 8},
        "parallel": {"strategy": "jit"},
    }
    Path("run.yaml").write_text(json.dumps(configuration))
    changed = Path("store/meta.json").stat().st_mtime_ns
    assert main(["pretrain", "run.yaml", "out=run", "seed=0"]) == 0
    assert Path("store/meta.json").stat().st_mtime_ns == changed  # a run uses the store that Python made
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    expected = [line["loss"] for line in lines if line["split"] == "train"]
    assert len(expected) == STEPS
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert expected[-1] < expected[0]

    ids = source[0]["input_ids"][None]
    (ours, params), (theirs, trained) = (bertgpt.load_pretrained(name) for name in ("mine", run_export(folder)))
    np.testing.assert_allclose(
        ours.apply({"params": params}, ids).logits, theirs.apply({"params": trained}, ids).logits, atol=1e-4
    )


def run_export(folder: Path) -> Path:
    assert main(["export", "run", "exported", "--step", str(STEPS)]) == 0
    return folder / "exported"


# Stores.


def test_a_store_is_made_once_and_again_when_its_text_or_tokenizer_changes(folder, wordpiece, bpe, monkeypatch):
    made = []
    prepare = store.prepare
    monkeypatch.setattr(store, "prepare", lambda *given: made.append(given[0]) or prepare(*given))
    source = data.TextSource("text", eval_fraction=0.2)
    first = data.make_store("deep/store", source, wordpiece)
    assert list(first) == ["train", "eval"]
    again = data.make_store("deep/store", source, wordpiece)
    assert len(made) == 1
    np.testing.assert_array_equal(first["train"].tokens, again["train"].tokens)
    opened = data.open_store("deep/store")
    np.testing.assert_array_equal(first["eval"].tokens, opened["eval"].tokens)
    assert bertgpt.load_tokenizer("deep/store").to_str() == wordpiece.to_str()
    data.make_store("deep/store", data.TextSource("text", eval_fraction=0.3), wordpiece)
    data.make_store("deep/store", data.TextSource("text", eval_fraction=0.3), bpe)
    assert len(made) == 3
    with pytest.raises(bertgpt.InputError, match=r"nowhere/meta.json: not a token store"):
        data.open_store("nowhere")
    with pytest.raises(bertgpt.InputError, match="the store is gs://bucket/store, an address; give a folder"):
        data.make_store("gs://bucket/store", source, wordpiece)
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("not a store")
    with pytest.raises(bertgpt.InputError, match="notes: not a token store, so it is not replaced"):
        data.make_store("notes", source, wordpiece)
    assert Path("notes/mine.txt").exists()


# Sources.

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
(READERS,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_pages_data_sets_read_one_epoch_or_three(folder, wordpiece):
    store = data.make_store("store", data.TextSource("text"), wordpiece)
    names = {"tokenizer": wordpiece}
    exec(compile(READERS, "docs/data.md", "exec"), names)
    source, first, three = (names[name] for name in ("source", "first_epoch", "three_epochs"))
    assert len(source) == len(data.SentenceRuns(store["train"], wordpiece, 128, 0))
    for epochs, found in ((1, first), (3, three)):
        inputs = np.concatenate([found[step]["input_ids"] for step in range(len(found))])
        expected = source.batch(np.arange(epochs * len(source)))["input_ids"]
        assert sorted(map(tuple, inputs)) == sorted(map(tuple, expected))


def test_the_page_names_what_is_public():
    section = PAGE.split("## In your own loop")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)[(`]", section.split("A source has")[0])) & set(data.__all__)
    assert set(data.__all__) - named == {
        "encode",
        "MaskRule",
        "Packed",
        "RandomAccess",
        "Split",
        "TaskExamples",
        "TaskSettings",
        "task_tokens",
    }


@pytest.fixture(scope="module")
def sources(bert_split, gpt_split, wordpiece):
    pairs, runs = data.BertPairs(bert_split, wordpiece, 32, 0), data.SentenceRuns(bert_split, wordpiece, 32, 0)
    pieces = data.GptPieces(gpt_split, 32, 0)
    rows = [{"text": text, "label": label} for text in ("one", "two words") for label in ("a", "b")]
    tasks = data.task_examples(rows, data.TaskSettings(kind="classification"), wordpiece, 16)
    found = {"pairs": pairs, "runs": runs, "windows": data.GptWindows(gpt_split, 32, 0), "tasks": tasks}
    found |= {f"packed {name}": data.pack(part) for name, part in (("pairs", pairs), ("runs", runs), ("gpt", pieces))}
    return found | {
        "mixture": data.Mixture({"a": runs, "b": data.SentenceRuns(bert_split, wordpiece, 32, 1)}, {"a": 2, "b": 1}, 0)
    }


NAMES = ["pairs", "runs", "windows", "tasks", "packed pairs", "packed runs", "packed gpt", "mixture"]


@pytest.mark.parametrize("name", NAMES)
def test_grain_reads_a_source_as_it_is(name, sources):
    source = sources[name]
    read = grain.MapDataset.source(source).batch(4)[0]
    expected = source.batch(np.arange(4))
    assert read.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(read[key], value)
        assert read[key].dtype == value.dtype


@pytest.mark.parametrize("name", NAMES)
def test_rows_go_on_after_an_epoch_but_a_loop_ends(name, sources):
    source = sources[name]
    assert isinstance(source, data.RandomAccess)
    length = len(source)
    later = source[length]  # the first row of epoch 1
    np.testing.assert_array_equal(later["input_ids"], source.batch(np.array([length]))["input_ids"][0])
    assert sum(1 for _ in source) == length
    with pytest.raises(bertgpt.InputError, match="row -1 does not exist; rows are counted from 0"):
        source[-1]


def test_the_next_epoch_has_other_masks(sources):
    source = sources["runs"]
    epochs = [source.batch(np.arange(4) + epoch * len(source))["masked_positions"] for epoch in (0, 1)]
    assert (epochs[0] != epochs[1]).any()


# Masks.


def test_mask_tokens_masks_rows_as_the_model_takes_them(wordpiece):
    texts = ["abc def", "a much longer text with many words in it"]
    rows = [data.encode(wordpiece, text)["input_ids"][0] for text in texts]
    width = max(map(len, rows))
    pad = wordpiece.token_to_id("[PAD]")
    ids = np.stack([np.pad(row, (0, width - len(row)), constant_values=pad) for row in rows])
    batch = data.mask_tokens(ids, wordpiece, seed=3)
    assert batch["attention_mask"].sum(1).tolist() == [len(row) for row in rows]
    counts = batch["loss_mask"].sum(1)
    assert counts.tolist() == [max(1, round(0.15 * len(row))) for row in rows]
    for row in range(2):
        for place, label, weight in zip(
            *(batch[key][row] for key in ("masked_positions", "labels", "loss_mask")), strict=True
        ):
            if weight:
                assert ids[row, place] == label
                assert 0 < place < len(rows[row]) - 1
    changed = batch["input_ids"] != ids
    for row in range(2):
        assert set(np.flatnonzero(changed[row])) <= set(batch["masked_positions"][row])
    model = bertgpt.BertForMaskedLM(bertgpt.presets.bert_tiny(**TINY | {"vocab_size": 200, "max_positions": 64}))
    params = model.init(jax.random.key(0), ids)["params"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "masked_positions")}
    loss = bertgpt.losses.mlm_loss(model.apply({"params": params}, **inputs).logits, batch)
    assert loss.weight == counts.sum()


def test_the_masks_of_a_row_depend_on_its_number_alone(wordpiece):
    ids = np.repeat(data.encode(wordpiece, "some words that are split into many pieces")["input_ids"], 5, axis=0)
    together = data.mask_tokens(ids, wordpiece, seed=1)
    last = data.mask_tokens(ids[3:], wordpiece, seed=1, row=3)
    for name in together:
        np.testing.assert_array_equal(together[name][3:], last[name])
    assert len({tuple(row) for row in together["masked_positions"]}) > 1
    other = data.mask_tokens(ids, wordpiece, seed=2)
    assert (other["masked_positions"] != together["masked_positions"]).any()


def test_mask_tokens_follows_its_rule(wordpiece):
    ids = np.repeat(data.encode(wordpiece, "abc def ghi jkl mno " * 4)["input_ids"], 50, axis=0)
    everything = data.mask_tokens(ids, wordpiece, rule=data.MaskRule(rate=0.5, split=(1, 0, 0)))
    chosen = np.take_along_axis(everything["input_ids"], everything["masked_positions"], axis=1)
    assert (chosen[everything["loss_mask"] == 1] == wordpiece.token_to_id("[MASK]")).all()
    assert everything["loss_mask"].sum(1).tolist() == [round(0.5 * ids.shape[1])] * 50
    kept = data.mask_tokens(ids, wordpiece, rule=data.MaskRule(split=(0, 0, 1)))
    np.testing.assert_array_equal(kept["input_ids"], ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[7, 8, 9]]), "a row does not begin with [CLS]; encode texts with their special tokens"),
        (np.zeros((2, 0), int), "a row does not begin with [CLS]"),
        (np.array([7, 8]), "input_ids must be an integer array [B T], not int64 [2]"),
        (np.ones((1, 2)), "input_ids must be an integer array [B T], not float64 [1, 2]"),
        (np.array([[2, 200]]), "token ids from 2 to 200 do not fit the vocabulary of 200"),
    ],
)
def test_mask_tokens_refuses_what_it_cannot_mask(ids, message, wordpiece):
    with pytest.raises(bertgpt.InputError) as caught:
        data.mask_tokens(ids, wordpiece)
    assert message in str(caught.value)


# Tasks.


def test_task_examples_are_those_of_fine_tuning(wordpiece):
    rows = [{"text": "abc", "pair": "def ghi", "label": label} for label in ("yes", "no")]
    settings = data.TaskSettings(kind="classification", pair="pair")
    examples = data.task_examples(rows, settings, wordpiece, 16)
    assert examples.task.labels == ("no", "yes")
    batch = examples.batch(np.arange(2))
    assert batch["labels"].tolist() == [1, 0]
    expected = data.encode(wordpiece, "abc", "def ghi")
    length = expected["input_ids"].shape[1]
    np.testing.assert_array_equal(batch["input_ids"][0, :length], expected["input_ids"][0])
    np.testing.assert_array_equal(batch["token_type_ids"][0, :length], expected["token_type_ids"][0])
    assert batch["input_ids"].shape == (2, 16)
    ordered = data.task_examples(rows, settings, wordpiece, 16, labels=("yes", "no"))
    assert ordered.batch(np.arange(2))["labels"].tolist() == [0, 1]


def test_task_examples_of_gpt_and_from_a_file(bpe, tmp_path):
    tokenizer = bertgpt.add_tokens(bpe, data.task_tokens("classification"))
    (tmp_path / "rows.jsonl").write_text('{"text": "abc def", "label": "x"}\n{"text": "ghi", "label": "y"}\n')
    rows = list(data.read_rows(str(tmp_path / "rows.jsonl")))
    settings = data.TaskSettings(kind="classification")
    batch = data.task_examples(rows, settings, tokenizer, 16, causal=True).batch(np.arange(2))
    assert "lm_labels" in batch
    start, _, extract = (tokenizer.token_to_id(token) for token in data.task_tokens("classification"))
    first = batch["input_ids"][0][batch["attention_mask"][0] == 1]
    assert (first[0], first[-1]) == (start, extract)
    with pytest.raises(bertgpt.InputError, match="the length is 7 tokens; it must be at least 8"):
        data.task_examples(rows, settings, tokenizer, 7, causal=True)
    with pytest.raises(bertgpt.InputError, match="row 1: column 'text' is missing"):
        data.task_examples([{"label": "x"}, {"label": "y"}], settings, tokenizer, 16, causal=True)
