"""Evaluation of a fine-tuned model, and its predictions for new rows."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.data.tasks.classification import most_choices
from bertgpt.data.tasks.making import named_by_number
from bertgpt.data.tasks.readers import read_all_rows
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import encode_rows
from bertgpt.data.tasks.templates import END
from bertgpt.errors import InputError, excerpt
from bertgpt.inference.predict import SPECS, kind_of, predict_rows, respond, task_data
from bertgpt.model.blocks import Model

from .. import config as configs
from .. import evaluation, parallel
from ..addresses import copied
from ..atomic_files import write_whole
from ..folders.checkpoints import Checkpoints
from ..folders.run_folder import Run
from ..job import CompiledSteps
from ..progress import Bar
from ..reports import say, say_numbered
from ..sections import RunConfig
from ..step import eval_step
from . import finetuning, task_metrics, task_rows

MOST_DRAWN = 50  # most classes that confusion.png shows
READ = ("task.", "data.", "train.batch_size=")  # keys that evaluate and predict read
CHUNK = 32  # rows per batch of predictions


class Tuned(NamedTuple):
    """A fine-tuned model, the configuration by which rows are read, the kind of task, and the folder of the model."""

    run: Run
    config: RunConfig
    kind: str
    folder: Path


def load_tuned(run: Run, folder: str | Path, overrides: Sequence[str] = ()) -> Tuned:
    """Return the fine-tuned model of a run folder, or of a model folder with a task head.

    Args:
        run: the result of `load_run`.
        folder: the folder or address that it was loaded from.
        overrides: overrides of `task.` and `data.` keys.

    Raises:
        InputError: the model has no task head.
    """
    here = copied(folder)
    kind, saved = kind_of(run.model), here / "config.yaml"
    if kind == "sft" and run.tokenizer.token_to_id(END) is None:
        raise InputError(f"{folder}: this GPT-1 was not fine-tuned on responses; use generate")
    if saved.is_file():
        config = configs.load(str(saved))
    else:
        config = RunConfig()
        config.data.sequence_length = run.model.config.max_positions
    config = configs.override(config, overrides)
    for given in overrides:
        if not given.startswith(READ):
            raise InputError(f"{excerpt(given)}: has no effect on a trained model; give keys of task. and data. only")
    config.task.kind = config.task.kind or kind
    if config.task.kind != kind:
        raise InputError(f"{folder}: its model is for {kind}, not for task.kind {config.task.kind}")
    return Tuned(run, config, kind, here)


def evaluate(tuned: Tuned, out: Path, batch_size: int | None = None) -> dict[str, Any]:
    """Score the held-out rows, and write evaluation.json and, for classes, confusion.png to `out`.

    Returns:
        Figures by name; for tags that mark entities also `by_type`, the figures of each entity type
        (`task_metrics.type_scores`).

    Raises:
        InputError: there are no rows, or the rows that the run held out cannot be reproduced.
    """
    task_metrics.check_libraries()
    config = tuned.config
    rows = held_out_rows(tuned)
    tuned = with_names(tuned, rows)
    run, data = tuned.run, _task_data(tuned, rows)
    with Bar("encoding", len(rows), "rows") as bar:
        examples = list(bar.over(encode_rows(data, rows)))
    finetuning.say_encoded(examples, "eval")
    job = finetuning.job_for(config.task, data, run.model, run.params, examples, {"": examples})
    found: list[dict[str, Any]] = []
    figures = functools.partial(finetuning.figures, data, examples, predictions=found)
    held_out = job.deciding._replace(figures=figures)
    inputs = sum(len(example.features) for example in examples)
    config.train.batch_size = min(batch_size or config.train.batch_size, inputs)
    config.train.accumulate = 1
    strategy = parallel.Jit()
    score = strategy.compile_eval(functools.partial(eval_step, objective=job.objective))
    job = job._replace(evals={"": held_out})
    compiled = CompiledSteps(config, job, strategy, score, score, lambda step: 0)
    scores: dict[str, Any] | None = evaluation.evaluate(compiled, run.params)
    assert scores is not None  # there is no signal handler that could interrupt it
    by_type = task_metrics.score_types(data, examples, found)
    scores |= {"by_type": by_type} if by_type else {}
    write(out, tuned, scores)
    if tuned.kind == "classification" and len(data.labels) <= MOST_DRAWN:
        golds = [data.gold(example.row) for example in examples]  # type: ignore[attr-defined]
        labels = [prediction["label"] for prediction in found]
        task_metrics.draw_confusion(golds, labels, data.labels, out / "confusion.png")  # type: ignore[attr-defined]
    return scores


def with_names(tuned: Tuned, rows: Sequence[Row]) -> Tuned:
    """Return the model with the names 0, 1, ... for its classes, if they have no names and the rows these labels."""
    config = tuned.run.model.config
    names = () if config.labels else named_by_number(tuned.config.task, config.num_labels, rows)
    if not names:
        return tuned
    say_numbered(str(tuned.folder), len(names))
    model = tuned.run.model.clone(config=dataclasses.replace(config, labels=names))
    return tuned._replace(run=tuned.run._replace(model=model))


def held_out_rows(tuned: Tuned) -> list[Row]:
    """The rows of data.eval, or the share of data.train that the run held out."""
    config = tuned.config
    if not config.data.eval:
        if not config.data.train:
            raise InputError("data.eval is missing; give a file of rows: --data PATH")
        if tuned.run.step:  # a model folder has no held-out rows
            checkpoints = Checkpoints(tuned.folder / "checkpoints")
            task_rows.check_held_out(checkpoints, tuned.run.step, "give other labelled rows: --data PATH")
        return task_rows.read_splits(config)["eval"]
    task, sets = config.task, task_rows.eval_sets(config.data.eval)
    name = ""
    if "" not in sets:
        name = configs.deciding_set(config, list(sets))
        say(f"scoring {name}, which decided on the best checkpoint; for another set of data.eval, give --data PATH")
    rows = read_all_rows(sets[name], word_column=task.word_column, tag_column=task.tag_column)
    if not rows:
        raise InputError(f"data.eval: no rows in {sets[name]}")
    return rows


def write(out: Path, tuned: Tuned, scores: dict[str, Any]) -> None:
    """Write evaluation.json atomically."""
    out.mkdir(parents=True, exist_ok=True)
    data = tuned.config.data
    sets = task_rows.eval_sets(data.eval)
    rows = sets[configs.deciding_set(tuned.config, list(sets))] if sets and "" not in sets else data.eval or data.train
    record = {"kind": tuned.kind, "step": tuned.run.step, "data": rows, **scores}
    write_whole(out / "evaluation.json", json.dumps(record, indent=2) + "\n")


def predict(tuned: Tuned, rows: Iterable[Row], max_new_tokens: int = 64) -> Iterator[dict[str, Any]]:
    """Predict rows; yield one JSON object per row, with the columns of `shown` and the prediction.

    Raises:
        InputError: a row lacks a column, or has an invalid value.
    """
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield from _predict(tuned, chunk, max_new_tokens)
            chunk = []
    if chunk:
        yield from _predict(tuned, chunk, max_new_tokens)


def _predict(tuned: Tuned, rows: list[Row], max_new_tokens: int) -> Iterator[dict[str, Any]]:
    run, data = tuned.run, _task_data(tuned, rows)
    if tuned.kind == "sft":
        texts = respond(run.model, run.params, data, rows, max_new_tokens)
        found: list[dict[str, Any]] = [{"response": text} for text in texts]
    else:
        found = predict_rows(run.model, run.params, data, rows, SPECS[tuned.kind].outputs, CHUNK)
    for row, prediction in zip(rows, found, strict=True):
        named = {column: row.values[column] for column in shown(tuned) if column in row.values}
        yield _rounded(named | prediction)


def shown(tuned: Tuned) -> tuple[str, ...]:
    """The columns of a row that are repeated in its prediction."""
    task = tuned.config.task
    return {
        "question_answering": ("id", task.question),
        "tagging": ("id",),
        "sft": ("id", task.prompt),
    }.get(tuned.kind, ("id", task.text, *([task.pair] if task.pair else [])))


def main_column(tuned: Tuned) -> str:
    """The column that a line of plain text fills."""
    task = tuned.config.task
    columns = {"question_answering": task.context, "tagging": task.words, "sft": task.prompt}
    return columns.get(tuned.kind, task.text)


def _task_data(tuned: Tuned, rows: Sequence[Row]) -> Any:
    model: Model = tuned.run.model
    config = tuned.config
    length = config.data.sequence_length
    choices = most_choices(rows, config.task.choices)
    return task_data(config.task, model.config, tuned.run.tokenizer, length, choices)


def _rounded(value: Any) -> Any:
    """Round all floats in nested values to 6 decimals."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
