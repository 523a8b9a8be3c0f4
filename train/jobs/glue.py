"""GLUE: fine-tuning on its nine tasks as in the BERT paper, the scores, and the files for the test server."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertgpt.data.tasks.glue import TASKS, GlueTask, read_glue, server_label
from bertgpt.errors import InputError

from .. import config as configs
from ..atomic_files import whole_file, write_whole
from ..reports import warn
from ..sections import RunConfig
from . import grid as grids
from .grid import Grid

RATES = (5e-5, 4e-5, 3e-5, 2e-5)  # Devlin et al. 2019, 4.1, as is the batch size and the number of epochs
NEVER = 10**9  # steps: an evaluation only at the end, since the paper names no choice among checkpoints of a run
SETTINGS = (
    *("data.sequence_length=128", "optimizer.warmup_fraction=0.1", "train.batch_size=32", "train.epochs=3"),
    *(f"train.eval_every={NEVER}", "checkpoint.every=2000", "checkpoint.keep=1"),
)
FEW, MANY = {"accuracy": "accuracy"}, {"f1": "f1", "accuracy": "accuracy"}
METRICS = {  # by task, the held-out figure of each metric; the first is the paper's, and decides the best run
    "MNLI": {"accuracy_matched": "matched/accuracy", "accuracy_mismatched": "mismatched/accuracy"},
    "QQP": MANY,
    "QNLI": FEW,
    "SST-2": FEW,
    "CoLA": {"matthews": "matthews"},
    "STS-B": {"spearman": "spearman", "pearson": "pearson"},
    "MRPC": MANY,
    "RTE": FEW,
    "WNLI": FEW,
}
PUBLISHED = {  # BERT-base and BERT-large on the test set (Devlin et al. 2019, table 1)
    "MNLI": {"accuracy_matched": (84.6, 86.7), "accuracy_mismatched": (83.4, 85.9)},
    "QQP": {"f1": (71.2, 72.1)},
    "QNLI": {"accuracy": (90.5, 92.7)},
    "SST-2": {"accuracy": (93.5, 94.9)},
    "CoLA": {"matthews": (52.1, 60.5)},
    "STS-B": {"spearman": (85.8, 86.5)},
    "MRPC": {"f1": (88.9, 89.3)},
    "RTE": {"accuracy": (66.4, 70.1)},
}
AVERAGE = (79.6, 82.1)  # of these nine columns: WNLI is left out, and both sets of MNLI count


def run(
    model: str,
    data: Path,
    out: Path,
    tasks: Sequence[str],
    rates: Sequence[float],
    seeds: int,
    overrides: Sequence[str],
) -> dict[str, Any]:
    """Fine-tune a model on tasks of GLUE, and write glue.json, and submission/ if there are test files.

    Args:
        model: a value of `model.init_from`.
        data: the folder of GLUE's download.
        out: the folder of all runs; a second start resumes.
        tasks: names in `TASKS`.
        rates: learning rates to try.
        seeds: number of seeds of each rate.
        overrides: overrides of configuration keys.

    Returns:
        The content of glue.json.

    Raises:
        InputError: a mistake of the user, found before any training if possible.
    """
    grids.check_overrides(overrides)
    config = configs.override(RunConfig(), [*SETTINGS, *overrides, f"model.init_from={model}"])
    for name in tasks:
        check_files(data, name)
    grids.start(config, "classification", out)
    chosen = {name: make_grid(config, out, name, rates, seeds) for name in tasks}
    for name, grid in chosen.items():
        write_rows(data, grid.folder / "rows", name)
        grids.check_unchanged(grid)
    for name, grid in chosen.items():
        grids.train(grid, name)
        write_results(model, out)
        write_submission(grid, name, out / "submission")
    return write_results(model, out)


def make_grid(config: RunConfig, out: Path, name: str, rates: Sequence[float], seeds: int) -> Grid:
    """The runs of a task, on the rows that `write_rows` writes."""
    task, rows = TASKS[name], out / name / "rows"
    evals = {part: str(rows / Path(file).with_suffix(".jsonl")) for part, file in task.dev.items()}
    columns = [f"task.kind={task.kind}", *(["task.pair=pair"] if task.pair else [])]
    config = configs.override(config, columns)
    config.data.train = str(rows / "train.jsonl")
    config.data.eval = evals.get("", evals)
    return Grid(config, out / name, rates, seeds, next(iter(METRICS[name].values())))


def check_files(data: Path, name: str) -> None:
    """Check that the files of a task are there, with the columns that it needs.

    Raises:
        InputError: a file is missing, or has another layout.
    """
    task = TASKS[name]
    for file in ("train.tsv", *task.dev.values()):
        _first_row(data / name / file, task, True)
    for path in test_files(data, task).values():
        _first_row(path, task, False)


def _first_row(path: Path, task: GlueTask, labelled: bool) -> None:
    if next(read_glue(path, task, labelled), None) is None:
        raise InputError(f"{path}: no rows; give the folder of GLUE's download, unchanged")


def test_files(data: Path, task: GlueTask) -> dict[str, Path]:
    """The test files that are there, by the name that the test server gives them."""
    return {name: data / file for name, file in task.test.items() if (data / file).is_file()}


def write_rows(data: Path, folder: Path, name: str) -> None:
    """Write the rows of a task as JSONL, in the columns `text`, `pair` and `label`, or `id` in test files.

    Raises:
        InputError: a row cannot be used.
    """
    task = TASKS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("train.tsv", *task.dev.values()):
        skipped: list[str] = []
        rows = read_glue(data / name / file, task, skip=skipped.append if task.has_damage else None)
        count = _write(folder / Path(file).with_suffix(".jsonl"), rows)
        if len(skipped) > count // 100:
            raise InputError(f"{skipped[0]}: the wrong number of cells, in {len(skipped)} rows; use GLUE's own file")
        if skipped:
            warn(f"{data / name / file}: {len(skipped)} rows with the wrong number of cells are skipped")
    for test, path in test_files(data, task).items():
        _write(folder / f"{test}.jsonl", read_glue(path, task, labelled=False))


def _write(path: Path, rows: Any) -> int:
    """Write rows atomically, one JSON object per line, and return their number."""
    count = 0
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row.values, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def write_submission(grid: Grid, name: str, folder: Path) -> None:
    """Predict the test files of a task with its best run, and write them in the format of the test server."""
    for test in TASKS[name].test:
        rows = grid.folder / "rows" / f"{test}.jsonl"
        if rows.is_file():
            found = grids.predict(grid.best(), rows, lambda prediction: [prediction["id"], server_label(prediction)])
            folder.mkdir(exist_ok=True)
            lines = ["index\tprediction", *(f"{index}\t{label}" for index, label in found)]
            write_whole(folder / f"{test}.tsv", "\n".join(lines) + "\n")


def write_results(model: str, out: Path) -> dict[str, Any]:
    """Write glue.json from the finished runs in `out`, also those of earlier commands, and return its content."""
    tasks = {}
    for name, metrics in METRICS.items():
        grid = make_grid(RunConfig(), out, name, (), 0)
        if grid.trials():
            tasks[name] = grids.summary(grid, metrics, 100) | {"published_test": _published(PUBLISHED.get(name, {}))}
    results = {"model": model, "tasks": tasks, "average": average(tasks)}
    write_whole(out / "glue.json", json.dumps(results, indent=2) + "\n")
    return results


def _published(figures: dict[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    return {name: {"BERT-base": base, "BERT-large": large} for name, (base, large) in figures.items()}


def average(tasks: dict[str, Any]) -> dict[str, Any] | None:
    """The mean of the nine columns of the paper's table 1, of best runs and of means over seeds; None if one is
    missing."""
    if not PUBLISHED.keys() <= tasks.keys():
        return None
    columns = [(name, metric) for name, metrics in PUBLISHED.items() for metric in metrics]
    means = {part: statistics.fmean(tasks[name][part][metric] for name, metric in columns) for part in ("best", "mean")}
    return means | {"published_test": {"BERT-base": AVERAGE[0], "BERT-large": AVERAGE[1]}}
