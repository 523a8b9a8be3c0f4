"""metrics.jsonl, the report and the picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_commands import fails

from bertgpt.errors import InputError
from train import config as configs
from train import curves
from train.__main__ import main
from train.comparison import label
from train.reports import Metrics, derived, has_nvidia, read_metrics, report, show_types
from train.sections import RunConfig


def test_rows_after_the_restored_step_are_dropped(tmp_path):
    with Metrics(tmp_path, 0) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, "train", {"loss": float(step)})
    with Metrics(tmp_path, 2) as metrics:
        metrics.write(3, "train", {"loss": 7.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 7.0)]


def test_a_file_that_somebody_removed_ends_the_run(tmp_path):
    with Metrics(tmp_path, 0) as metrics:
        metrics.write(1, "train", {"loss": 1.0})
        (tmp_path / "metrics.jsonl").unlink()
        for act in (metrics.sync, lambda: metrics.write(2, "train", {"loss": 1.0})):
            with pytest.raises(InputError, match=r"metrics.jsonl was removed while the run wrote to it"):
                act()


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "train"}) + '\n{"step": 2, "sp')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


@pytest.mark.parametrize("line", ['{"step": 2, "sp', "", "[2]", '{"step": "2", "split": "train"}', '{"step": 2}'])
def test_a_broken_line_in_the_middle_is_refused_and_nothing_is_dropped(tmp_path, line):
    text = f'{{"step": 1, "split": "train"}}\n{line}\n{{"step": 3, "split": "train"}}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.jsonl line 2: not a row of metrics"):
        Metrics(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_kill_may_take_the_last_line_end_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{"step": 2, "split": "train"}')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    assert read_metrics(tmp_path) == []


def test_derived_figures():
    figures = derived({"lm_loss": 2.0}, tokens_per_byte=0.25)
    assert figures["perplexity"] == pytest.approx(7.389, abs=1e-3)
    assert figures["bits_per_byte"] == pytest.approx(2.0 / 0.693147 * 0.25, abs=1e-5)
    recalls = {"mlm_loss": 3.0, "nsp_loss": 0.5, "nsp_recall_is_next": 0.9, "nsp_recall_not_next": 0.5}
    figures = derived({**recalls, "unigram_cross_entropy": 9.0}, 1.0)
    assert figures["nsp_balanced_accuracy"] == pytest.approx(0.7)
    assert "nsp_length_baseline" not in figures
    lengths = {"nsp_length_recall_is_next": 0.3, "nsp_length_recall_not_next": 0.8}
    assert derived(lengths, 1.0) == {"nsp_length_baseline": pytest.approx(0.55)}


def test_the_report_draws_and_compares_with_the_unigram(tmp_path):
    evaluation = {"loss": 6.9, "mlm_loss": 6.3, "nsp_loss": 0.6, "mlm_accuracy": 0.1, "nsp_balanced_accuracy": 0.62}
    with Metrics(tmp_path, 0) as metrics:
        metrics.write(1, "train", {"loss": 9.0, "mlm_loss": 8.3, "nsp_loss": 0.7})
        metrics.write(2, "eval", {**evaluation, "unigram_cross_entropy": 6.9, "examples": 5000})
    assert report(tmp_path)[-1].endswith("NSP balanced accuracy 0.620")  # a run from before the baseline
    with Metrics(tmp_path, 2) as metrics:
        baselines = {"unigram_cross_entropy": 6.9, "nsp_length_baseline": 0.5404, "examples": 5000}
        metrics.write(3, "eval", {**evaluation, **baselines})
    text = "\n".join(report(tmp_path))
    assert "NSP balanced accuracy 0.620 (segment-length baseline: 0.540)" in text
    assert "MLM loss 6.300 nats, 0.600 below the unigram baseline (6.900)" in text
    assert "5,000 held-out examples" in text
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_baselines_are_drawn_as_dotted_lines(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    figures = {"mlm_loss": 6.3, "nsp_balanced_accuracy": 0.62}
    with Metrics(tmp_path, 0) as metrics:
        metrics.write(1, "train", {"mlm_loss": 8.3})
        metrics.write(2, "eval", {**figures, "mlm_accuracy": 0.1, "unigram_cross_entropy": 6.9, "examples": 50})
    with Metrics(tmp_path, 2) as metrics:
        metrics.write(
            3,
            "eval",
            {**figures, "mlm_accuracy": 0.1, "unigram_cross_entropy": 6.8, "examples": 50, "nsp_length_baseline": 0.54},
        )
    report(tmp_path)
    dotted = {
        axis.get_title(): ([text.get_text() for text in axis.texts], list(line.get_ydata()))
        for axis in drawn[0].axes
        for line in axis.lines
        if line.get_linestyle() == ":"
    }
    assert dotted == {
        "MLM loss": (["unigram 6.800", "6.300"], [6.8, 6.8]),
        "NSP balanced accuracy": (["segment lengths 0.540", "0.620"], [0.54, 0.54]),
    }


def test_worse_than_the_unigram_is_told_as_such(tmp_path):
    losses = {"loss": 7.0, "lm_loss": 7.0, "bits_per_byte": 3.5, "perplexity": 1096.6}
    with Metrics(tmp_path, 0) as metrics:
        metrics.write(2, "eval", {**losses, "unigram_cross_entropy": 5.6, "examples": 50})
    text = "\n".join(report(tmp_path))
    assert "LM loss 7.000 nats, 1.400 above the unigram baseline (5.600)" in text
    assert "3.500 bits per byte, 25.0% above the unigram baseline (2.800)" in text


def test_figures_of_types_are_rows_and_labels_are_no_markup(capsys):
    rates = {"f1": 0.4, "precision": 0.5, "recall": 1 / 3}
    show_types({"[red]": rates | {"support": 1200}, "x[/]": rates | {"support": 0}})
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row] == [
        ["[red]", "0.5000", "0.3333", "0.4000", "1,200"],
        ["x[/]", "0.5000", "0.3333", "0.4000", "0"],
    ]


def test_an_idle_gpu_is_seen(tmp_path):
    assert not has_nvidia(str(tmp_path))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert has_nvidia(str(tmp_path))


def panels(monkeypatch, folder: Path, runs: dict[str, list[dict]]) -> dict[str, Any]:
    """The panels of a picture of some runs, by their titles."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    curves.draw(runs, folder / "curves.png")
    return {axis.get_title(): axis for axis in drawn[0].axes}


def made_rows(shift: float = 0.0) -> list[dict]:
    """A run of 200 rows with a steep beginning, and eight evaluations."""
    rng = np.random.default_rng(0)
    loss = 6 + 4 * np.exp(-np.arange(200) / 5) + shift
    rows = [{"step": 10 * (i + 1), "split": "train", "lm_loss": loss[i] + rng.normal(0, 0.1)} for i in range(200)]
    return rows + [{"step": 250 * i, "split": "eval", "lm_loss": 6 + shift, "accuracy": 0.5} for i in range(1, 9)]


def test_one_run_has_its_raw_losses_behind_the_smoothed_ones_and_its_last_value(tmp_path, monkeypatch):
    axis = panels(monkeypatch, tmp_path, {"run": made_rows()})["LM loss"]
    raw, smooth, held_out = axis.lines
    assert (raw.get_alpha(), smooth.get_label(), held_out.get_label()) == (0.25, "training", "held out")
    late = slice(50, 190)
    assert np.std(smooth.get_ydata()[late]) < 0.5 * np.std(raw.get_ydata()[late])
    assert (len(held_out.get_ydata()), held_out.get_marker()) == (8, "o")
    assert [text.get_text() for text in axis.texts] == ["6.000"]
    assert axis.get_ylim()[1] < 7.2  # the steep beginning leaves the panel
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "nats per token")


def test_runs_over_each_other_have_a_colour_each_and_readable_last_values(tmp_path, monkeypatch):
    runs = {"a": made_rows(), "b": made_rows(0.001), "c": made_rows(0.8)}
    axis = panels(monkeypatch, tmp_path, runs)["LM loss"]
    held_out = {line.get_label(): line for line in axis.lines if line.get_marker() == "o"}
    assert list(held_out) == ["a", "b", "c"]
    assert len({line.get_color() for line in held_out.values()}) == 3
    low, high = axis.get_ylim()
    places = [(text.xy[1] - low) / (high - low) for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == ["6.000", "6.001", "6.800"]
    assert places[1] - places[0] >= 0.069


def test_the_baselines_of_several_runs_have_one_name(tmp_path, monkeypatch):
    runs = {
        name: [*made_rows(), {"step": 2100, "split": "eval", "lm_loss": 6, "unigram_cross_entropy": value}]
        for name, value in (("a", 7.0), ("b", 7.01), ("c", 7.0))
    }
    axis = panels(monkeypatch, tmp_path, runs)["LM loss"]
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == ":"] == [7.0, 7.01]
    assert axis.texts[0].get_text() == "unigram 7.000, 7.010"
    assert axis.texts[0].xy[1] == 7.01


def test_smoothing_keeps_a_slope_and_spreading_the_order():
    line = np.arange(500.0)
    np.testing.assert_allclose(curves.smoothed(line), line)
    assert curves.smoothed(np.zeros(0)).shape == (0,)
    assert curves.spread([0.5, 0.5, 0.1], 0.1) == pytest.approx([0.45, 0.55, 0.1])
    assert curves.spread([], 0.1) == []


def make_run(folder: Path, *overrides: str) -> Path:
    with Metrics(folder.mkdir() or folder, 0) as metrics:
        metrics.write(1, "train", {"lm_loss": 8.5})
        metrics.write(2, "eval", {"lm_loss": 8.25, "examples": 1200, "seconds": 3.0})
    configs.save(configs.override(RunConfig(), [f"out={folder}", *overrides]), folder / "config.yaml")
    return folder


def test_several_runs_are_drawn_and_named_by_the_keys_that_differ(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    runs = [
        make_run(tmp_path / "runs" / "a", "optimizer.learning_rate=0.001", "data.store=one"),
        make_run(tmp_path / "runs" / "b", "seed=3", "data.store=two"),
        make_run(tmp_path / "runs" / "c"),
    ]
    assert main(["report", *map(str, runs)]) == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "curves: curves.png",
        "a: optimizer.learning_rate=0.001, seed=0",
        "b: optimizer.learning_rate=0.0001, seed=3",
        "c: optimizer.learning_rate=0.0001, seed=0",
    ]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert cells == [["step", *["2"] * 3], ["lm_loss", *["8.2500"] * 3], ["examples", *["1,200"] * 3]]
    assert main(["report", *map(str, runs[1:]), "--out", str(tmp_path / "both.png")]) == 0
    assert (tmp_path / "both.png").exists()


def test_runs_that_differ_in_folders_alone_have_their_names(tmp_path):
    runs = [make_run(tmp_path / name, f"data.store={name}") for name in "ab"]
    assert label(runs) == ["a", "b"]
    (runs[0] / "config.yaml").unlink()
    assert label([*runs, make_run(tmp_path / "c", "seed=1")]) == ["a", "b: seed=0", "c: seed=1"]


def test_what_cannot_be_compared_is_one_line(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    assert "is given twice" in fails(capsys, "report", run, run)
    assert "no metrics.jsonl with rows" in fails(capsys, "report", run, tmp_path / "empty")
    assert "it must end in .png" in fails(capsys, "report", run, "--out", tmp_path / "curves.pdf")
    assert "there is no folder" in fails(capsys, "report", run, "--out", tmp_path / "none" / "curves.png")
