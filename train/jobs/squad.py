"""SQuAD 1.1 and 2.0: fine-tuning as in the BERT paper, the scores, and predictions in the official format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.data.tasks.readers import read_all_rows
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.squad import squad_scores, threshold_scores
from bertgpt.errors import InputError

from .. import config as configs
from ..atomic_files import write_whole
from ..sections import RunConfig
from . import grid as grids
from .glue import NEVER
from .grid import Grid

RATES = (5e-5,)  # Devlin et al. 2019, 4.2 and 4.3
SETTINGS = (  # sequence length and stride of run_squad.py's documentation
    *("task.kind=question_answering", "data.sequence_length=384", "task.stride=128", "optimizer.warmup_fraction=0.1"),
    *(f"train.eval_every={NEVER}", "checkpoint.every=2000", "checkpoint.keep=1"),
)
METRICS = {"exact_match": "exact_match", "f1": "f1"}  # as metrics.jsonl names them; f1 decides the best run
NO_SPAN = 1e6  # null odds of a question for which no span is allowed


class Version(NamedTuple):
    """A version of SQuAD: the name in its files, its settings, and the paper's figures on the development set."""

    files: str
    settings: tuple[str, ...]
    published: dict[str, dict[str, float]]


VERSIONS = {  # single models (Devlin et al. 2019, tables 2 and 3)
    "1.1": Version(
        "v1.1",
        ("train.epochs=3", "train.batch_size=32"),
        {"exact_match": {"BERT-base": 80.8, "BERT-large": 84.1}, "f1": {"BERT-base": 88.5, "BERT-large": 90.9}},
    ),
    "2.0": Version(
        "v2.0",
        ("train.epochs=2", "train.batch_size=48", "task.null_threshold=0.0"),
        {"best_exact": {"BERT-large": 78.7}, "best_f1": {"BERT-large": 81.9}},
    ),
}


def run(
    model: str,
    data: Path,
    out: Path,
    versions: Sequence[str] | None,
    rates: Sequence[float],
    seeds: int,
    overrides: Sequence[str],
) -> dict[str, Any]:
    """Fine-tune a model on SQuAD, and write squad.json, predictions.json and null_odds.json.

    Args:
        model: a value of `model.init_from`.
        data: the folder with SQuAD's files.
        out: the folder of all runs; a second start resumes.
        versions: names in `VERSIONS`; None: each whose training file is in `data`.
        rates: learning rates to try.
        seeds: number of seeds of each rate.
        overrides: overrides of configuration keys.

    Returns:
        The content of squad.json.

    Raises:
        InputError: a mistake of the user, found before any training if possible.
    """
    grids.check_overrides(overrides)
    names = find(data, versions)
    chosen = {name: make_grid(model, data, out, name, rates, seeds, overrides) for name in names}
    for name in names:
        check_files(data, name)
    for grid in chosen.values():
        grids.start(grid.config, "question_answering", out)
        grids.check_unchanged(grid)
    file = out / "squad.json"
    results = {"model": model, "versions": grids.saved(file).get("versions", {})}  # also of earlier commands
    for name, grid in chosen.items():
        grids.train(grid, f"SQuAD {name}")
        results["versions"][name] = score(grid, name)
        write_whole(file, json.dumps(results, indent=2) + "\n")
    return results


def find(data: Path, versions: Sequence[str] | None) -> Sequence[str]:
    """The versions to run: the given ones, or else those whose training file is there.

    Raises:
        InputError: there is none.
    """
    found = versions or [name for name in VERSIONS if files_of(data, name)[0].is_file()]
    if not found:
        raise InputError(f"{data}: neither train-v1.1.json nor train-v2.0.json; give the folder with SQuAD's files")
    return found


def make_grid(
    model: str, data: Path, out: Path, name: str, rates: Sequence[float], seeds: int, overrides: Sequence[str]
) -> Grid:
    """The runs of a version."""
    settings = [*SETTINGS, *VERSIONS[name].settings, *overrides, f"model.init_from={model}"]
    config = configs.override(RunConfig(), settings)
    config.data.train, config.data.eval = map(str, files_of(data, name))
    return Grid(config, out / f"squad{name}", rates, seeds, METRICS["f1"])


def files_of(data: Path, name: str) -> tuple[Path, Path]:
    """The training file and the development file of a version."""
    return data / f"train-{VERSIONS[name].files}.json", data / f"dev-{VERSIONS[name].files}.json"


def check_files(data: Path, name: str) -> None:
    """Check that both files of a version are there, and that every question of version 1.1 has an answer.

    Raises:
        InputError: they are not, or a question has none.
    """
    for file in files_of(data, name):
        if not file.is_file():
            raise InputError(f"{file}: no such file; give the folder with SQuAD's files as --data")
        rows = read_all_rows(str(file))
        if not rows:
            raise InputError(f"{file}: no questions; give SQuAD's own file")
        unanswered = [row.place for row in rows if not answers_of(row)]
        if unanswered and name == "1.1":
            raise InputError(f"{unanswered[0]}: it has no answer, but this is SQuAD 1.1; give SQuAD's own file")


def answers_of(row: Row) -> list[str]:
    """The correct answers of a question of SQuAD."""
    return row.values["answers"]["text"]


def score(grid: Grid, name: str) -> dict[str, Any]:
    """The results of a version; writes predictions.json, and null_odds.json for SQuAD 2.0, of the best run.

    For SQuAD 2.0, predictions.json uses the null threshold with the best F1 on the development set.
    """
    dev = Path(str(grid.config.data.eval))
    found = grids.predict(grid.best(), dev, _reduced)
    golds = [answers_of(row) for row in read_all_rows(str(dev))]
    odds = [NO_SPAN if difference is None else difference for _, _, difference in found]
    predictions = {question: span for question, span, _ in found}
    thresholds = {}
    if grid.config.task.null_threshold is not None:
        thresholds = threshold_scores(list(predictions.values()), odds, golds)
        answered = [value <= thresholds["best_f1_thresh"] for value in odds]
        predictions = {key: predictions[key] if kept else "" for key, kept in zip(predictions, answered, strict=True)}
        _write(grid.folder / "null_odds.json", dict(zip(predictions, odds, strict=True)))
    _write(grid.folder / "predictions.json", predictions)
    return {
        **grids.summary(grid, METRICS),
        **thresholds,
        "predictions": squad_scores(list(predictions.values()), golds),
        "published_dev": VERSIONS[name].published,
    }


def _reduced(prediction: dict[str, Any]) -> list[Any]:
    """The id, the best span and the null score's lead over it; without a span "" and None."""
    spans = [entry["answer"] for entry in prediction["n_best"] if entry["start"] is not None]
    return [prediction["id"], spans[0] if spans else "", prediction.get("null_score_difference")]


def _write(file: Path, values: dict[str, Any]) -> None:
    write_whole(file, json.dumps(values, ensure_ascii=False, indent=1) + "\n")
