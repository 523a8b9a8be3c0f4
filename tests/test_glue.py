"""GLUE and SQuAD in one command: the files, the scores, a whole run that is cut off and resumed, mistakes."""

import argparse
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from glue_folders import BAD, GOOD, glue_files, tiny_bert, write_glue, write_squad
from hypothesis import strategies as st

from bertgpt.data.tasks.glue import TASKS, read_glue, server_label
from bertgpt.data.tasks.squad import exact_match, f1, threshold_scores
from bertgpt.errors import InputError
from train.__main__ import main
from train.jobs import glue, grid, task_metrics
from train.loop import TrainLoop
from train.reports import read_metrics
from train.sections import RunConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*randomly initialized, to be trained")
QUICK = ["data.sequence_length=24", "train.batch_size=8", "parallel.strategy=jit"]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Contains a tiny BERT as `bert`, and the files of all tasks as `GLUE`."""
    folder = tmp_path_factory.mktemp("glue")
    tiny_bert(folder / "bert")
    write_glue(folder / "GLUE", glue_files())
    return folder


def command(folder, out, *options, verb="glue", data="GLUE"):
    return [verb, str(folder / "bert"), "--data", str(folder / data), "--out", str(out), *options, *QUICK]


def refused(capsys, arguments):
    """The one line on stderr of a command that must exit with 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# The files


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_read_from_its_own_layout(name, folder):
    task, text = TASKS[name], f'{BAD[0]} "near' + " " * (name == "SST-2")
    labels = {
        "QNLI": ("not_entailment", "entailment"),
        "MNLI": ("contradiction", "entailment"),
        "STS-B": ("0.0", "1.375"),
    }
    labels["RTE"] = labels["QNLI"]
    second = {"pair": "saw who"} if task.pair else {}
    for file in ("train.tsv", *task.dev.values()):
        first, other, *rest = read_glue(folder / "GLUE" / name / file, task)
        assert first.values == {"text": text, **second, "label": labels.get(name, ("0", "1"))[0]}
        assert other.values["label"] == labels.get(name, ("0", "1"))[1]
        assert other.values["text"].startswith(GOOD[0])
        assert len(rest) == 6
    assert glue.test_files(folder / "GLUE", task).keys() == task.test.keys()
    for path in glue.test_files(folder / "GLUE", task).values():
        rows = list(read_glue(path, task, labelled=False))
        assert [row.values["id"] for row in rows] == [str(n) for n in range(8)]
        assert rows[0].values == {"text": text.rstrip(), **second, "id": "0"}


@pytest.mark.parametrize("text", ["", "  ", "\u200b", "\ufffd", "\u0301 "])
def test_a_text_without_content_is_read_as_a_full_stop(text, tmp_path):
    (tmp_path / "test.tsv").write_text(f"index\tsentence1\tsentence2\n7\t{text}\tant\u0301\n", encoding="utf-8")
    (row,) = read_glue(tmp_path / "test.tsv", TASKS["RTE"], labelled=False)
    assert row.values == {"id": "7", "text": ".", "pair": "ant\u0301"}


def test_damaged_rows_of_qqp_are_skipped_while_they_are_few(tmp_path, capsys):
    files = glue_files(100)
    write_glue(tmp_path, files)
    with (tmp_path / "QQP/train.tsv").open("a") as file:
        file.write("917\t1\t2\twhat is\n\n")
    glue.write_rows(tmp_path, tmp_path / "rows", "QQP")
    assert "QQP/train.tsv: 1 rows with the wrong number of cells are skipped" in capsys.readouterr().err
    assert len((tmp_path / "rows/train.jsonl").read_text().splitlines()) == 100
    (tmp_path / "QQP/dev.tsv").write_text(files["QQP/dev.tsv"] + "917\t1\t2\n918\n")
    with pytest.raises(InputError, match=r"QQP/dev.tsv line 102: the wrong number of cells, in 2 rows"):
        glue.write_rows(tmp_path, tmp_path / "rows", "QQP")


def test_predictions_are_spelled_as_the_server_expects():
    assert server_label({"label": "not_entailment", "probability": 0.9}) == "not_entailment"
    assert [server_label({"score": score}) for score in (-0.1, 2.5, 5.7)] == ["0.000000", "2.500000", "5.000000"]


# Scores, against the formulas written out

BITS = st.lists(st.tuples(st.sampled_from("01"), st.sampled_from("01")), min_size=1, max_size=30)


@hypothesis.settings(max_examples=20)
@hypothesis.given(BITS)
def test_matthews_f1_and_accuracy_are_their_formulas(pairs):
    golds, labels = map(list, zip(*pairs, strict=True))
    tp, tn, fp, fn = (pairs.count((gold, label)) for gold, label in ("11", "00", "01", "10"))
    root = float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    found = task_metrics.class_scores(golds, labels, ("0", "1"))
    assert found["matthews"] == pytest.approx((tp * tn - fp * fn) / root if root else 0)
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0)
    assert found["accuracy"] == pytest.approx((tp + tn) / len(pairs))


def ranks(values):
    """The mean of the ranks that equal values share."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


def correlation(xs, ys):
    xs, ys = (np.array(values) - np.mean(values) for values in (xs, ys))
    return float((xs * ys).sum() / np.sqrt((xs**2).sum() * (ys**2).sum()))


@hypothesis.given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20))
def test_pearson_and_spearman_are_their_formulas_with_ties(pairs):
    golds, scores = ([float(value) for value in values] for values in zip(*pairs, strict=True))
    found = task_metrics.number_scores(golds, scores)
    constant = len(set(golds)) == 1 or len(set(scores)) == 1
    assert found["pearson"] == pytest.approx(0 if constant else correlation(golds, scores), abs=1e-9)
    assert found["spearman"] == pytest.approx(0 if constant else correlation(ranks(golds), ranks(scores)), abs=1e-9)


ANSWERS = st.sampled_from([[], ["ant bee"], ["ant"], ["bee", "cow"], ["the"]])
QUESTIONS = st.lists(st.tuples(st.sampled_from(["", "ant", "bee cow", "dog"]), st.integers(-3, 3), ANSWERS), min_size=1)


@hypothesis.given(QUESTIONS)
def test_the_best_thresholds_are_those_of_the_official_loop(questions):
    spans, odds, answers = zip(*questions, strict=True)
    found = threshold_scores(spans, odds, answers)
    for name, score in (("exact", exact_match), ("f1", f1)):
        points = best = float(sum(not texts for texts in answers))  # by answering no question
        threshold = 0.0
        for number in sorted(range(len(odds)), key=odds.__getitem__):
            if answers[number]:
                points += score(spans[number], [text for text in answers[number] if text != "the"])
            elif spans[number]:
                points -= 1
            if points > best:
                best, threshold = points, odds[number]
        assert found[f"best_{name}"] == pytest.approx(100 * best / len(odds))
        assert found[f"best_{name}_thresh"] == threshold


def test_the_average_is_that_of_the_papers_nine_columns():
    for column, published in enumerate(glue.AVERAGE):
        tasks = {
            name: {part: {metric: both[column] for metric, both in figures.items()} for part in ("best", "mean")}
            for name, figures in glue.PUBLISHED.items()
        }
        assert round(glue.average(tasks)["best"], 1) == published
        del tasks["RTE"]
        assert glue.average(tasks) is None


def test_the_runs_have_the_papers_settings():
    config = glue.configs.override(RunConfig(), glue.SETTINGS)
    runs = glue.make_grid(config, Path("out"), "MNLI", glue.RATES, 2).runs()
    assert [(run.optimizer.learning_rate, run.seed) for run in runs] == [
        (rate, seed) for rate in (5e-5, 4e-5, 3e-5, 2e-5) for seed in (0, 1)
    ]
    assert {(run.train.batch_size, run.train.epochs, run.optimizer.warmup_fraction) for run in runs} == {(32, 3, 0.1)}
    assert runs[3].out == "out/MNLI/lr4e-05_seed1"
    assert runs[0].data.eval == {part: f"out/MNLI/rows/dev_{part}.jsonl" for part in ("matched", "mismatched")}


def test_the_best_run_alone_keeps_its_checkpoints(tmp_path):
    runs = grid.Grid(RunConfig(), tmp_path, (), 0, "f1")
    for rate, seed, score in ((2e-5, 0, 0.5), (5e-5, 0, 0.5), (5e-5, 1, 0.8), (2e-5, 1, 0.8), (5e-5, 2, 0.2)):
        out = tmp_path / f"lr{rate:g}_seed{seed}"
        (out / "checkpoints").mkdir(parents=True)
        result = {"learning_rate": rate, "seed": seed, "data": "x", "figures": {"f1": score}}
        (out / "result.json").write_text(json.dumps(result))
    assert runs.best().folder.name == "lr5e-05_seed1"  # of two equal ones the first
    grid.keep_best(runs)
    assert list(tmp_path.glob("*/checkpoints")) == [tmp_path / "lr5e-05_seed1/checkpoints"]
    found = grid.summary(runs, {"F1": "f1"}, 100)
    assert found["best"] == {"run": "lr5e-05_seed1", "learning_rate": 5e-5, "seed": 1, "F1": 80}
    assert (found["seeds"], found["mean"], found["deviation"]) == (
        *(3, {"F1": pytest.approx(50)}),
        {"F1": pytest.approx(30)},
    )
    (tmp_path / "lr2e-05_seed0/result.json").write_text('{"learning_rate": 2e-5, "seed": 0, "figures": {}}')
    with pytest.raises(InputError, match=r"lr2e-05_seed0/result.json: not the result of a run; remove its folder"):
        runs.best()


# Whole commands


def test_a_command_that_is_cut_off_resumes_and_ends_the_same(folder, tmp_path, monkeypatch, capsys):
    options = ["--tasks", "cola", "--learning-rates", "1e-2", "--seeds", "2", "train.epochs=6"]
    assert main(command(folder, tmp_path, *options)) == 0
    printed = capsys.readouterr().out
    assert "CoLA: run 2 of 2, learning rate 0.01, seed 1" in printed
    assert "52.1" in printed
    check_what_is_kept(tmp_path)
    results = [tmp_path / name for name in ("glue.json", "submission/CoLA.tsv")]
    texts = [file.read_text() for file in results]
    shutil.rmtree(tmp_path / "CoLA/lr0.01_seed1")
    results[0].unlink()
    advance = TrainLoop.advance

    def interrupted(loop):
        advance(loop)
        if loop.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainLoop, "advance", interrupted)
    with pytest.raises(SystemExit):
        main(command(folder, tmp_path, *options))
    monkeypatch.undo()
    assert not results[0].exists()
    assert "learning rate 0.01, seed 0" not in capsys.readouterr().out
    assert main(command(folder, tmp_path, *options)) == 0
    assert "resuming from step 3" in capsys.readouterr().out
    assert [file.read_text() for file in results] == texts
    monkeypatch.setattr(grid.evaluating, "predict", None)  # nothing is trained or predicted again
    assert main(command(folder, tmp_path, *options)) == 0
    check_refusals(folder, tmp_path, options, capsys)


def check_what_is_kept(out):
    """The best run is the one of the higher score, and it alone has checkpoints."""
    found = json.loads((out / "glue.json").read_text())["tasks"]["CoLA"]
    scores = {run["run"]: run["matthews"] for run in found["runs"]}
    assert list(scores) == ["lr0.01_seed0", "lr0.01_seed1"]
    assert found["best"]["matthews"] == max(scores.values())
    assert found["mean"]["matthews"] == pytest.approx(sum(scores.values()) / 2)
    assert found["deviation"]["matthews"] == pytest.approx(abs(np.subtract(*scores.values())) / 2**0.5)
    *_, row = read_metrics(out / "CoLA" / found["best"]["run"])
    assert (row["step"], 100 * row["matthews"]) == (6, found["best"]["matthews"])
    assert [path.parent.name for path in out.glob("CoLA/*/checkpoints")] == [found["best"]["run"]]
    header, *lines = (out / "submission/CoLA.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    assert [line.split("\t")[0] for line in lines] == [str(n) for n in range(8)]
    assert {line.split("\t")[1] for line in lines} <= {"0", "1"}
    # the rows to predict are those of training, so the predictions have the score that was reported
    predicted = task_metrics.class_scores(["0", "1"] * 4, [line.split("\t")[1] for line in lines])["matthews"]
    assert predicted == pytest.approx(found["best"]["matthews"] / 100)


def check_refusals(folder, out, options, capsys):
    """A second start with other settings or other data."""
    told = refused(capsys, [*command(folder, out, *options), "train.epochs=5"])
    assert "lr0.01_seed0 was started with different settings: train.epochs (6.0 -> 5.0); restore" in told
    told = refused(capsys, [*command(folder, out, *options), "model.hidden_dropout=0.3"])
    assert "model.hidden_dropout (None -> 0.3)" in told
    other = shutil.copytree(folder / "bert", out / "other")
    told = refused(capsys, ["glue", str(other), *command(folder, out, *options)[2:]])
    assert f"{out} has runs of {folder / 'bert'}, not {other}; give another --out" in told
    file = folder / "GLUE/CoLA/dev.tsv"
    text = file.read_text()
    file.write_text(text.replace("near", "saw"))
    assert f"the data changed since {out}/CoLA/lr0.01_seed0 was made" in refused(capsys, command(folder, out, *options))
    file.write_text(text)


def test_mnli_has_two_development_sets_and_the_diagnostic(folder, tmp_path, capsys):
    options = ["--tasks", "MNLI", "--learning-rates", "1e-2", "--seeds", "1", "train.epochs=1"]
    assert main(command(folder, tmp_path, *options)) == 0
    found = json.loads((tmp_path / "glue.json").read_text())
    assert found["average"] is None
    assert found["tasks"]["MNLI"]["mean"].keys() == {"accuracy_matched", "accuracy_mismatched"}
    assert found["tasks"]["MNLI"]["published_test"]["accuracy_mismatched"] == {"BERT-base": 83.4, "BERT-large": 85.9}
    printed = capsys.readouterr().out
    assert re.search(r"MNLI-m +│ accuracy .* 84.6 .* 86.7 .*\n.* MNLI-mm +│ accuracy .* 83.4 .* 85.9", printed)
    assert "test files in" in printed
    for name in ("MNLI-m", "MNLI-mm", "AX"):
        header, *lines = (tmp_path / "submission" / f"{name}.tsv").read_text().splitlines()
        assert (header, len(lines)) == ("index\tprediction", 8)
        assert {line.split("\t")[1] for line in lines} <= {"contradiction", "entailment", "neutral"}


def test_squad_has_the_best_threshold_and_official_predictions(folder, tmp_path, capsys):
    write_squad(folder / "SQuAD", "v2.0")
    options = ["train.epochs=2", "--learning-rates", "1e-3"]
    assert main(command(folder, tmp_path, *options, verb="squad", data="SQuAD")) == 0
    assert "best F1 at" in capsys.readouterr().out
    found = json.loads((tmp_path / "squad.json").read_text())["versions"]["2.0"]
    spans, odds = (
        json.loads((tmp_path / "squad2.0" / f"{name}.json").read_text()) for name in ("predictions", "null_odds")
    )
    assert list(spans) == list(odds) == [f"q{n}" for n in range(6)]
    golds = [[] if n % 3 == 2 else [GOOD[n % 4]] for n in range(6)]
    for (question, span), texts in zip(spans.items(), golds, strict=True):
        assert (span == "") == (odds[question] > found["best_f1_thresh"]), texts
    scored = [f1(span, texts) for span, texts in zip(spans.values(), golds, strict=True)]
    assert found["predictions"]["f1"] == pytest.approx(100 * np.mean(scored))
    assert found["best_f1"] >= max(found["mean"]["f1"], 100 / 3) - 1e-9
    assert found["published_dev"]["best_f1"] == {"BERT-large": 81.9}


# Mistakes, before any training


def test_a_mistake_is_one_line_and_leaves_nothing(folder, tmp_path):
    files = glue_files()
    files["RTE/dev.tsv"] = files["RTE/dev.tsv"].replace("sentence2", "hypothesis")
    write_glue(tmp_path / "GLUE", files)
    arguments = ["glue", str(folder / "bert"), "--data", str(tmp_path / "GLUE"), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "train", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {tmp_path}/GLUE/RTE/dev.tsv line 1: no column 'sentence2' (columns: index, sentence1, hypothesis, "
        "label); use GLUE's own file, unchanged\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("MNLI/dev_mismatched.tsv", None, "MNLI/dev_mismatched.tsv: no such file; give the folder of GLUE's download"),
        ("CoLA/train.tsv", "sentence\tlabel\nant\t1\n", "line 1: 2 cells, not 4 (source, label, star, sentence); use"),
        ("SST-2/dev.tsv", "sentence\tlabel\nant\t2\n", "line 2: label '2' is not one of 0, 1; use GLUE's own file"),
        (
            "STS-B/train.tsv",
            "sentence1\tsentence2\tscore\na\tb\tnan\n",
            "line 2: score 'nan' is not a number from 0 to",
        ),
        ("QNLI/test.tsv", "index\tquestion\tsentence\n", "QNLI/test.tsv: no rows; give the folder of GLUE's"),
        ("WNLI/test.tsv", "sentence1\tsentence2\n0\t1\n", "line 1: no column 'index' (columns: sentence1, sentence2)"),
    ],
)
def test_a_missing_or_wrong_file_is_told(path, text, message, folder, tmp_path, capsys):
    files = {name: content for name, content in glue_files().items() if name != path}
    write_glue(tmp_path / "GLUE", files | ({path: text} if text else {}))
    arguments = ["glue", str(folder / "bert"), "--data", str(tmp_path / "GLUE"), "--out", str(tmp_path / "out")]
    assert message in refused(capsys, arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "CoLA,SST"], "--tasks: unknown name 'sst'; choose from MNLI, QQP,"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--learning-rates", "5e-5,x"], "--learning-rates is '5e-5,x'; give numbers between 0 and 1"),
        (["optimizer.learning_rate=1e-4"], "optimizer.learning_rate is set by this command; use --learning-rates"),
        (["task.pair=b"], "task.pair is set by this command; remove it"),
        (["train.epoch=1"], "unknown key train.epoch; did you mean train.epochs?"),
        (["--out", "gs://bucket/x"], "--out is gs://bucket/x, an address"),
    ],
)
def test_a_wrong_option_is_told(options, message, folder, tmp_path, capsys):
    assert message in refused(capsys, [*command(folder, tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_squads_mistakes_are_told(folder, tmp_path, capsys):
    arguments = ["squad", str(folder / "bert"), "--data", str(tmp_path / "SQuAD"), "--out", str(tmp_path / "out")]
    assert "neither train-v1.1.json nor train-v2.0.json" in refused(capsys, arguments)
    write_squad(tmp_path / "SQuAD", "v2.0")
    assert "SQuAD/train-v1.1.json: no such file" in refused(capsys, [*arguments, "--versions", "1.1"])
    for part in ("train", "dev"):
        (tmp_path / "SQuAD" / f"{part}-v2.0.json").rename(tmp_path / "SQuAD" / f"{part}-v1.1.json")
    told = refused(capsys, arguments)
    assert "train-v1.1.json question q2: it has no answer, but this is SQuAD 1.1" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("verb", "seeds"), [("glue", 3), ("squad", 1)])
def test_without_options_the_seeds_are_those_of_the_page(verb, seeds):
    parser = argparse.ArgumentParser()
    importlib.import_module(f"train.cli.{verb}").add_arguments(parser)
    options = parser.parse_args(["model", "--data", "folder"])
    assert (options.seeds, options.out, options.learning_rates) == (seeds, f"runs/{verb}", None)
