"""The fine-tuning runs of one task over learning rates and seeds; the checkpoints of the best run are kept.

Each run has a folder of its own, such as lr5e-05_seed0. When a run ends, its figures are written to result.json there,
and the checkpoints of every run except the best one are removed. So a run with a result is never repeated, and a run
that was cut off resumes from its own checkpoints.
"""

import contextlib
import copy
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.data.tasks.readers import data_digest, read_rows
from bertgpt.errors import InputError
from bertgpt.inference.predict import architecture_of

from .. import config as configs
from .. import hosts
from ..atomic_files import write_whole
from ..folders import locks, run_folder
from ..folders.checkpoints import Checkpoints
from ..reports import TIMINGS, read_metrics, say
from ..sections import RunConfig
from . import evaluating, finetuning, task_metrics
from .task_rows import rows_digest

RESULT = "result.json"
SET = {  # keys that the command sets -> what to give instead
    "model.init_from": "MODEL",
    "model.preset": "MODEL",
    "tokenizer.path": "MODEL",
    "data.train": "--data",
    "data.eval": "--data",
    "optimizer.learning_rate": "--learning-rates",
    "seed": "--seeds",
    "out": "--out",
    "task.kind": "",
    "task.text": "",
    "task.pair": "",
    "task.label": "",
}


class Trial(NamedTuple):
    """A finished run: its folder, learning rate and seed, and the held-out figures of its best checkpoint."""

    folder: Path
    learning_rate: float
    seed: int
    figures: dict[str, float]


class Grid(NamedTuple):
    """The runs of a task.

    Attributes:
        config: of all runs; learning rate, seed and out differ.
        folder: contains the runs' folders.
        rates: learning rates.
        seeds: number of seeds, from 0.
        figure: the held-out figure that decides which run is the best; higher is better.
    """

    config: RunConfig
    folder: Path
    rates: Sequence[float]
    seeds: int
    figure: str

    def runs(self) -> list[RunConfig]:
        """The configuration of each run."""
        found = []
        for rate in self.rates:
            for seed in range(self.seeds):
                config = copy.deepcopy(self.config)
                config.optimizer.learning_rate, config.seed = rate, seed
                config.out = str(self.folder / f"lr{rate:g}_seed{seed}")
                found.append(config)
        return found

    def trials(self) -> list[Trial]:
        """All finished runs in the folder, also those of earlier commands; larger learning rates first."""
        return sorted(map(_read, self.folder.glob(f"*/{RESULT}")), key=lambda trial: (-trial.learning_rate, trial.seed))

    def best(self) -> Trial:
        """The finished run with the best figure; of equal ones the first."""
        return max(self.trials(), key=lambda trial: trial.figures[self.figure])


def check_overrides(overrides: Sequence[str]) -> None:
    """
    Raises:
        InputError: an override is of a key that the command sets.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in SET:
            raise InputError(f"{key} is set by this command; " + (f"use {SET[key]}" if SET[key] else "remove it"))


def start(config: RunConfig, kind: str, out: Path) -> None:
    """Check that this machine can fine-tune `config.model.init_from` on a kind of task; nothing is written.

    The commit of a model on the hub is added to `config`: that of the runs in `out`, or else the current one.

    Raises:
        InputError: the extra `tasks` is not installed, the model cannot be read or is of the other family, the runs in
            `out` are of another model, or the command was started as several processes.
    """
    task_metrics.check_libraries()
    hosts.connect()
    if hosts.several():
        raise InputError("this command runs in one process, on all devices of one machine; start one process")
    for file in sorted(out.glob("*/*/config.yaml"))[:1]:
        old = configs.load(str(file))
        if old.model.init_from != config.model.init_from:
            raise InputError(
                f"{out} has runs of {old.model.init_from}, not {config.model.init_from}; give another --out"
            )
        configs.keep_decided(old, config)
    found = run_folder.inspect_run(run_folder.init_folder(config), config.model.init_step)
    if isinstance(found.tokenizer, str):
        raise InputError(found.tokenizer)
    architecture_of(kind, found.contents.config.architecture)


def check_unchanged(grid: Grid) -> None:
    """
    Raises:
        InputError: a run in the folder has other settings, or a finished run had other rows.
    """
    digest, config = rows_digest(grid.config), copy.deepcopy(grid.config)
    for file in sorted(grid.folder.glob("*/config.yaml")):
        out = file.parent
        if not (out / RESULT).is_file() and not Checkpoints(out / "checkpoints").steps():
            continue  # it ended before its first checkpoint, so it begins again
        old = configs.load(str(file))
        config.optimizer.learning_rate, config.seed = old.optimizer.learning_rate, old.seed
        differing = configs.differences(old, config)
        length = "steps" if config.train.epochs is None else "epochs"
        if getattr(old.train, length) != getattr(config.train, length):
            differing.append(f"train.{length} ({getattr(old.train, length)} -> {getattr(config.train, length)})")
        if differing:
            changes = ", ".join(differing)
            raise InputError(
                f"{out} was started with different settings: {changes}; restore them, or give another --out"
            )
        if (out / RESULT).is_file() and _load(out / RESULT)["data"] != digest:
            raise InputError(f"the data changed since {out} was made; restore the files, or give another --out")


def train(grid: Grid, name: str) -> None:
    """Train each run that is not finished, and keep the checkpoints of the best run only."""
    with locks.run_folder(grid.folder):
        digest, runs = rows_digest(grid.config), grid.runs()
        for number, config in enumerate(runs, 1):
            out = Path(config.out)
            if (out / RESULT).is_file():
                continue
            rate = config.optimizer.learning_rate
            say(f"{name}: run {number} of {len(runs)}, learning rate {rate:g}, seed {config.seed}")
            finetuning.finetune(config, grid.folder / "encoded")
            result = {"learning_rate": rate, "seed": config.seed, "data": digest, "figures": _figures(out)}
            write_whole(out / RESULT, json.dumps(result, indent=2) + "\n")
            keep_best(grid)
        keep_best(grid)  # the last command may have been killed before it did so


def keep_best(grid: Grid) -> None:
    """Remove the checkpoints of all finished runs except the best."""
    best = grid.best()
    for trial in grid.trials():
        if trial.folder != best.folder:
            for path in (trial.folder / "checkpoints", *trial.folder.glob("damaged_checkpoint_*")):
                shutil.rmtree(path, ignore_errors=True)


def _figures(out: Path) -> dict[str, float]:
    """The held-out figures of a run's best checkpoint, without times, which differ between two identical runs."""
    best = Checkpoints(out / "checkpoints").best()
    row = next(row for row in reversed(read_metrics(out)) if (row["step"], row["split"]) == (best, "eval"))
    return {name: value for name, value in row.items() if name not in (*TIMINGS, "split")}


def _read(file: Path) -> Trial:
    found = _load(file)
    return Trial(file.parent, found["learning_rate"], found["seed"], found["figures"])


def _load(file: Path) -> dict[str, Any]:
    """
    Raises:
        InputError: the file is not a result.
    """
    found = saved(file)
    with contextlib.suppress(KeyError, AttributeError):
        numbers = found["learning_rate"], found["seed"], *found["figures"].values()
        if isinstance(found["data"], str) and all(isinstance(value, int | float) for value in numbers):
            return found
    raise InputError(f"{file}: not the result of a run; remove its folder to repeat the run")


def predict(trial: Trial, data: Path, keep: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """The predictions of a run's best checkpoint for the rows of a file, reduced by `keep` to one JSON value per row.

    They are kept in the run's folder, and made again if the file changed.
    """
    file = trial.folder / "predictions" / f"{data.stem}.json"
    digest, found = data_digest(str(data)), saved(file)
    if found.get("data") == digest and isinstance(found.get("rows"), list):
        return found["rows"]
    say(f"predicting {data} with {trial.folder}")
    tuned = evaluating.load_tuned(run_folder.load_run(trial.folder), trial.folder)
    rows = [keep(prediction) for prediction in evaluating.predict(tuned, read_rows(str(data)))]
    file.parent.mkdir(exist_ok=True)
    write_whole(file, json.dumps({"data": digest, "rows": rows}) + "\n")
    return rows


def saved(file: Path) -> dict[str, Any]:
    """The object in a JSON file that this command writes; {} if the file is missing or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def summary(grid: Grid, names: dict[str, str], factor: float = 1.0) -> dict[str, Any]:
    """The results of a grid as JSON values.

    Args:
        grid: with at least one finished run.
        names: the held-out figure by the name of a metric.
        factor: makes a figure a percentage.

    Returns:
        `best` (run, learning_rate, seed and metrics), `mean` and `deviation` (the sample standard deviation; None for
        one seed) of the metrics over the `seeds` seeds with the best run's learning rate, and all `runs`.
    """

    def metrics(trial: Trial) -> dict[str, float]:
        return {name: factor * trial.figures[figure] for name, figure in names.items()}

    def described(trial: Trial) -> dict[str, Any]:
        return {"run": trial.folder.name, "learning_rate": trial.learning_rate, "seed": trial.seed, **metrics(trial)}

    best = grid.best()
    equal = [metrics(trial) for trial in grid.trials() if trial.learning_rate == best.learning_rate]
    values = {name: [found[name] for found in equal] for name in names}
    return {
        "best": described(best),
        "seeds": len(equal),
        "mean": {name: statistics.fmean(found) for name, found in values.items()},
        "deviation": {name: statistics.stdev(found) if len(found) > 1 else None for name, found in values.items()},
        "runs": [described(trial) for trial in grid.trials()],
    }
