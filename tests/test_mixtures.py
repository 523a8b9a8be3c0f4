"""Mixtures of sources by weight, and several held-out sets."""

import collections
import functools
import itertools
import json
import signal
import time
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import yaml
from hypothesis import strategies as st

from bertgpt.data.pretraining import plans
from bertgpt.data.pretraining.masking import MaskRule
from bertgpt.data.pretraining.mixture import Mixture
from bertgpt.data.pretraining.sentence_pairs import BertPairs, pack_pairs
from bertgpt.data.text import store, store_shards, text_source
from bertgpt.data.text.text_source import TextSource
from bertgpt.errors import InputError
from train import config as configs
from train import loader
from train.jobs import finetuning, pretraining
from train.reports import eval_lines, read_metrics, report
from train.watching import Stop

SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 32, "max_positions": 32}


class Numbers:
    """Rows that tell their source and number, and how often they were planned."""

    def __init__(self, source: int, count: int) -> None:
        self.source, self.count, self.planned = source, count, []

    def __len__(self) -> int:
        return self.count

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"source": np.full(len(rows), self.source), "row": rows, "text": np.repeat(rows[:, None], 3, 1)}


@pytest.fixture
def texts(documents, tmp_path) -> list[Path]:
    """Three files of 80, 30 and 10 documents."""
    found = []
    for name, (begin, end) in {"books": (0, 80), "wiki": (80, 110), "news": (110, 120)}.items():
        found.append(tmp_path / f"{name}.jsonl")
        found[-1].write_text("".join(json.dumps({"text": text}) + "\n" for text in documents[begin:end]))
    return found


def mixed(counts, weights, seed: int = 3) -> Mixture:
    names = [f"s{number}" for number in range(len(counts))]
    sources = {name: Numbers(number, count) for number, (name, count) in enumerate(zip(names, counts, strict=True))}
    return Mixture(sources, dict(zip(names, weights, strict=True)), seed)


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 3000), st.floats(0.1, 10)), min_size=1, max_size=4), st.integers(0, 2)
)
def test_a_mixture_reads_each_source_by_its_weight_and_repeats_a_row_after_all_others(parts, epoch):
    counts, weights = zip(*parts, strict=True)
    mixture = mixed(counts, weights)
    batch = mixture.batch(np.arange((epoch + 1) * len(mixture)))
    for number, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        here = batch["row"][batch["source"] == number]
        share = len(mixture) * weight / sum(weights)
        assert abs(len(here) - (epoch + 1) * share) <= epoch + 1  # whole rows in each epoch
        assert share <= max(count, 1000) + 1
        for turn in range(0, len(here), count):  # an epoch of the source after the other
            rows = here[turn : turn + count]
            assert len(np.unique(rows)) == len(rows)
            assert (rows // count == turn // count).all()
    np.testing.assert_array_equal(batch["text"][:, 1], batch["row"])


def test_neighbours_in_a_source_come_from_everywhere_in_its_text_in_each_epoch_elsewhere():
    batch = mixed([4000, 2000], [1, 1]).batch(np.arange(8000))
    rows = batch["row"][batch["source"] == 1]
    first, second = rows[:2000], rows[2000:] - 2000
    for order in (first, second):
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.09  # four standard deviations
        assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.09
    assert (first != second).mean() > 0.99
    other = mixed([4000, 2000], [1, 1], seed=4).batch(np.arange(8000))["row"]
    assert (other != batch["row"]).mean() > 0.99


def test_a_source_that_would_never_be_read_is_refused():
    with pytest.raises(InputError, match=r"s1 has none of the 1,000 rows of an epoch by its weight 0.0001; raise"):
        mixed([30, 7], [1, 0.0001])


def test_a_row_of_a_mixture_depends_on_its_number_alone():
    mixture = mixed([3000, 700], [1, 2])
    assert len(mixture) == 1050  # until the second source has given all its rows
    rows = np.array([5, 1049, 2000, 5, 20])
    batch = mixture.batch(rows)
    for place, row in enumerate(rows.tolist()):
        assert {name: value.tolist() for name, value in mixture[row].items()} == {
            name: value[place].tolist() for name, value in batch.items()
        }
    assert {name: value.dtype for name, value in batch.items()} == dict.fromkeys(batch, np.dtype(np.int64))
    for start in (0, 1050):
        epoch = [batch["source"] for batch in itertools.islice(loader.batches(mixture, 50, 3, start), 21)]
        assert collections.Counter(np.concatenate(epoch).tolist()) == {0: 350, 1: 700}
        assert all(5 < (part == 0).sum() < 30 for part in epoch)  # shuffled together


def test_a_shuffled_run_on_a_mixture_makes_each_plan_of_its_sources_once(bert_split, wordpiece):
    """Also if a source is read several times: no batch has rows of more epochs than a source keeps plans."""
    sources = {name: BertPairs(bert_split, wordpiece, 32, number) for number, name in enumerate("ab")}
    made = {name: collections.Counter() for name in sources}
    for name, source in sources.items():
        find = source._find_plan
        source.plan = functools.lru_cache(plans.KEPT)(
            lambda epoch, name=name, find=find: (made[name].update([epoch]), find(epoch))[1]
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertgpt.data.pretraining.mixture.LEAST", 1)
        mixture = Mixture(sources, {"a": 1, "b": 2}, 0)
    rows = 6 * len(mixture)
    for _ in itertools.islice(loader.batches(mixture, 8, 0), rows // 8):
        pass
    length = len(sources["b"])
    assert set(made["b"]) == set(range(-(-6 * mixture.rows()["b"] // length)))
    assert max(made["b"].values()) == 1
    assert max(made["a"].values()) == 1


def test_the_next_epochs_of_all_sources_are_planned_ahead():
    mixture = mixed([3000, 700], [1, 2])
    for source in mixture.sources.values():
        source.plan = source.planned.append
    ahead = loader.planned_ahead(mixture, 5 * 1050)
    for rows in np.arange(5 * 1050).reshape(-1, 50):
        ahead.batch(rows)
    planned = [source.planned for source in mixture.sources.values()]
    for _ in range(100):
        if list(map(len, planned)) == [0, 4]:
            break
        time.sleep(0.05)
    assert list(map(sorted, planned)) == [[], [1, 2, 3, 4]]  # 1,750 rows of 3,000, 3,500 of 700


@pytest.mark.parametrize(
    ("addresses", "names"),
    [
        (["text/wiki.jsonl.gz", "books"], ["wiki", "books"]),
        (["a/wiki/*.jsonl", "b/wiki/*.jsonl", "gs://wiki"], ["wiki", "wiki_2", "wiki_3"]),
        (["package:snownlp/data/news articles.txt", "*"], ["news_articles", "text"]),
        (["中文.txt", "./a.b/"], ["中文", "a"]),
    ],
)
def test_sources_are_named_by_their_addresses(addresses, names):
    assert text_source.source_names(addresses) == dict(zip(names, addresses, strict=True))


def prepared(folder: Path, source: TextSource, wordpiece) -> dict[str, list[int]]:
    store.prepare(folder, source, wordpiece, {})
    return {name: store.open_split(folder, name).tokens.tolist() for name in store.split_names(folder)}


def test_a_store_of_a_mixture_has_a_split_of_each_source_and_its_held_out_text(texts, wordpiece, tmp_path):
    weights = {str(path): number for number, path in enumerate(texts, 1)}
    mixture = TextSource(weights, eval_fraction=0.3)
    found = prepared(tmp_path / "mixture", mixture, wordpiece)
    names = ["books", "wiki", "news"]
    assert list(found) == [f"{kind}.{name}" for kind in ("train", "eval") for name in names]
    for path, name in zip(texts, names, strict=True):
        alone = prepared(tmp_path / name, TextSource(str(path), eval_fraction=0.3), wordpiece)
        assert (found[f"train.{name}"], found[f"eval.{name}"]) == (alone["train"], alone["eval"])
    wanted = {"sha256": store.tokenizer_hash(wordpiece)}
    other = TextSource(dict.fromkeys(weights, 1), eval_fraction=0.3)
    assert store.stale_reason(tmp_path / "mixture", other, wanted) is None  # weights are not part of a store
    listed = TextSource(list(weights), eval_fraction=0.3)
    assert store.stale_reason(tmp_path / "mixture", listed, wanted) == "train changed"
    assert store.fault(tmp_path / "mixture") is None
    all_of_them = list(mixture.documents("train"))
    assert len(all_of_them) + len(list(mixture.documents("eval"))) == 120


def test_named_held_out_sets_are_splits_of_their_own_also_made_in_parts(texts, wordpiece, tmp_path):
    books, wiki, news = map(str, texts)
    source = TextSource({books: 1.0}, {"encyclopedia": wiki, "papers": news})
    found = prepared(tmp_path / "store", source, wordpiece)
    assert list(found) == ["train.books", "eval.encyclopedia", "eval.papers"]
    files, parts = source.files(), []
    halves = files._replace(eval=files.eval[:1]), files._replace(train=[], eval=files.eval[1:])
    for number, part in enumerate(halves):
        parts.append(tmp_path / str(number))
        store_shards.make_part(parts[-1], source, part, wordpiece, store_shards.stamps(part))
    store_shards.merge(tmp_path / "merged", parts, wordpiece)
    for name in found:
        for array in ("tokens.bin", "sentences.bin", "documents.bin", "counts.bin"):
            merged = (tmp_path / "merged" / name / array).read_bytes()
            assert merged == (tmp_path / "store" / name / array).read_bytes()


def test_a_file_in_two_sources_and_a_source_without_text_are_refused(texts, wordpiece, tmp_path):
    books, wiki, _ = map(str, texts)
    both = TextSource({books: 1, str(tmp_path / "*.jsonl"): 1})
    with pytest.raises(InputError, match=f"data.train: {books} is in books and in .*; leave it out of one of them"):
        both.files()
    (tmp_path / "empty.txt").write_text("\n")
    for source, message in (
        (TextSource({books: 1, str(tmp_path / "empty.txt"): 1}), "data.train: .*empty.txt contains no text"),
        (TextSource(books, {"a": wiki, "b": str(tmp_path / "empty.txt")}), "data.eval: .*empty.txt contains no"),
        (TextSource({books: 1}, eval_fraction=1e-9), "books.jsonl has too few documents to hold 0.00% out"),
    ):
        with pytest.raises(InputError, match=message):
            store.prepare(tmp_path / "store", source, wordpiece, {})


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.train={a.txt: 3, 'b c.txt': 0.5}", {"a.txt": 3.0, "b c.txt": 0.5}),
        ("data.train={~/a.txt: 1}", {str(Path.home() / "a.txt"): 1.0}),
        ("data.eval={news: n.txt, wiki-2: w.txt}", {"news": "n.txt", "wiki-2": "w.txt"}),
    ],
)
def test_mappings_on_the_command_line_and_in_a_saved_file(override, value, plan_settings, tmp_path):
    config = configs.override(plan_settings("bert_tiny")[0], [override])
    key = override.split("=")[0]
    assert configs.flatten(configs.to_dict(config))[key] == value
    configs.save(config, tmp_path / "saved.yaml")
    assert configs.flatten(configs.to_dict(configs.load(str(tmp_path / "saved.yaml"))))[key] == value


@pytest.mark.parametrize(
    "override",
    [
        "data.train={a.txt: 0}",
        "data.train={a.txt: -1}",
        "data.train={a.txt: much}",
        "data.train={a.txt: .inf}",
        "data.train={}",
        "data.train={1: 2}",
        "data.eval={a b: c}",
        "data.eval={'a.b': c}",
        "data.eval={a: 1}",
        "data.eval={a: ''}",
        "data.eval={}",
    ],
)
def test_other_mappings_are_refused(override, plan_settings):
    with pytest.raises(
        InputError, match=f"{override.split('=')[0]} is .*it must be a path or a list of paths, or paths"
    ):
        configs.override(plan_settings("bert_tiny")[0], [override])


def run_of(tmp_path: Path, *overrides: str, **data) -> configs.RunConfig:
    """A short run."""
    values = {
        "model": {"preset": "bert_tiny", **SIZES},
        "tokenizer": {"vocab_size": 200},
        "data": {"eval_fraction": 0.2, "sequence_length": 32, "workers": 1, **data},
        "train": {"steps": 4, "batch_size": 8, "log_every": 2, "eval_every": 2, "eval_examples": 16},
        "parallel": {"strategy": "jit"},
        "checkpoint": {"every": 2},
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return configs.load(str(tmp_path / "run.yaml"), overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.objective=mlm_nsp", "data.pack=true"],
        ["train.objective=mlm", "data.whole_word=true"],
        ["model.preset=gpt1"],
    ],
    ids=["pairs", "runs", "windows"],
)
def test_a_run_on_a_mixture_scores_the_held_out_text_of_each_source(overrides, texts, tmp_path, capsys):
    books, wiki, _ = map(str, texts)
    best_on = "books" if "data.pack=true" in overrides else "wiki"
    config = run_of(tmp_path, *overrides, f"checkpoint.best_on={best_on}", train={books: 3.0, wiki: 1.0})
    pretraining.pretrain(config)
    scored = [row for row in read_metrics(tmp_path / "run") if row["split"] == "eval"]
    for row in scored:
        names = {name for name in row if "/" not in name} - {"step", "split", "seconds"}
        for of_set in ("books", "wiki"):
            assert {name.partition("/")[2] for name in row if name.startswith(f"{of_set}/")} == names
        assert {name: row[name] for name in names} == {name: row[f"{best_on}/{name}"] for name in names}
        assert row["books/loss"] != row["wiki/loss"]
    output = capsys.readouterr().out
    assert "books: 75.0% of the rows; the run reads its " in output
    assert "wiki: 25.0% of the rows; the run reads its " in output
    assert f"step 4 held-out books: examples {scored[-1]['books/examples']:,}  loss" in output
    assert "step 4 held-out wiki: " in output
    assert [line.split(":")[0] for line in report(tmp_path / "run")[-2:]] == [
        "step 4 held-out books",
        "step 4 held-out wiki",
    ]


def test_a_signal_in_the_second_set_cuts_the_whole_evaluation_which_is_made_up_for(texts, tmp_path, monkeypatch):
    books, wiki, _ = map(str, texts)
    config = run_of(tmp_path, "train.objective=mlm", train={books: 3.0, wiki: 1.0})
    calls, requested = itertools.count(1), Stop.requested

    def at_the_fifth_call(stop: Stop) -> bool:  # two steps, two batches of the first set, then one of the second
        stop.received = signal.SIGTERM if next(calls) == 5 else None
        return requested(stop)

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "requested", at_the_fifth_call)
        with pytest.raises(SystemExit, match="143"):
            pretraining.pretrain(config)
    assert not [row for row in read_metrics(tmp_path / "run") if row["split"] == "eval"]
    pretraining.pretrain(config)
    scored = [row for row in read_metrics(tmp_path / "run") if row["split"] == "eval"]
    assert [row["step"] for row in scored] == [2, 4]
    assert all({"books/loss", "wiki/loss"} <= row.keys() for row in scored)


def test_a_set_that_does_not_exist_cannot_decide(texts, tmp_path):
    books, wiki, _ = map(str, texts)
    for train, known in ((books, "one held-out set, without a name"), ({books: 1, wiki: 1}, "books, wiki")):
        config = run_of(tmp_path, "checkpoint.best_on=news", train=train)
        with pytest.raises(InputError, match=f"checkpoint.best_on is news; this run has {known}"):
            pretraining.pretrain(config)


def test_the_baselines_are_those_of_the_mixture():
    counts = [np.array([8, 0, 2]), np.array([0, 30, 0])]
    mixed = pretraining.mixed_counts(counts, [3, 1])  # of 40 tokens, three quarters are of the first source
    np.testing.assert_allclose(mixed, [24, 10, 6])
    assert pretraining.mixed_counts(counts[:1], [3]) is counts[0]


def test_one_set_has_one_line_and_several_have_one_each():
    one = {"examples": 4, "loss": 0.5, "seconds": 1.0}
    assert eval_lines(3, one) == ["step 3 held-out: examples 4  loss 0.5"]
    several = {"loss": 0.5, "a/loss": 0.5, "b/loss": 0.25, "seconds": 1.0}
    assert eval_lines(3, several) == ["step 3 held-out a: loss 0.5", "step 3 held-out b: loss 0.25"]


@pytest.mark.filterwarnings("ignore:.*randomly initialized")
def test_fine_tuning_scores_each_set_and_the_named_one_decides(texts, tmp_path, capsys):
    config = run_of(tmp_path, "train.objective=mlm", train=str(texts[0]))
    pretraining.pretrain(config)
    for name, words in {"train": "good bad fine poor", "near": "good bad", "far": "great awful"}.items():
        labels = {word: "yes" if word in ("good", "fine", "great") else "no" for word in words.split()}
        rows = [{"text": f"{word} {n}", "label": label} for word, label in labels.items() for n in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = {name: str(tmp_path / f"{name}.jsonl") for name in ("near", "far")}
    overrides = ["model.preset=null", f"model.init_from={tmp_path / 'run'}", "task.kind=classification"]
    overrides.append(f"out={tmp_path / 'tuned'}")
    tuned = run_of(tmp_path, *overrides, "checkpoint.best_on=far", train=str(tmp_path / "train.jsonl"), eval=sets)
    finetuning.finetune(tuned)
    row = read_metrics(tmp_path / "tuned")[-1]
    assert row["accuracy"] == row["far/accuracy"]
    assert (row["near/examples"], row["far/examples"]) == (8, 8)
    assert "8 of 8 rows of data.eval.near are also in data.train" in capsys.readouterr().err
    with pytest.raises(InputError, match="data.train has weights, which are for pretraining"):
        finetuning.finetune(
            run_of(tmp_path, *overrides, f"out={tmp_path / 'other'}", train={str(tmp_path / "train.jsonl"): 1.0})
        )


def test_packed_pairs_of_a_mixture_have_the_rows_of_their_sources(bert_split, wordpiece):
    sources = [pack_pairs(BertPairs(bert_split, wordpiece, 32, seed, MaskRule())) for seed in (0, 1)]
    mixture = Mixture(dict(zip("ab", sources, strict=True)), {"a": 1, "b": 1}, 0)
    rows = np.array([0, len(mixture) - 1, 3])
    of_source, inner = mixture.place(rows)
    batch = mixture.batch(rows)
    for place in range(3):
        for name, value in sources[of_source[place]][int(inner[place])].items():
            np.testing.assert_array_equal(batch[name][place], value)
