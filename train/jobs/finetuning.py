"""Fine-tuning: the job of a configuration with a task, from labelled rows."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

import bertgpt
from bertgpt import losses
from bertgpt.checkpoints.adapt import adapt, add_tokens, config_for
from bertgpt.config import ModelConfig
from bertgpt.data.pretraining.packing import Packed, most_examples
from bertgpt.data.tasks.classification import find_labels, most_choices
from bertgpt.data.tasks.readers import data_digest, read_all_rows
from bertgpt.data.tasks.tagging import find_tags
from bertgpt.data.tasks.task import Example, Row, TaskData, TaskExamples, TaskSettings
from bertgpt.errors import InputError
from bertgpt.inference.predict import SPECS, architecture_of, decode_all, task_data, task_tokens
from bertgpt.tokenizers import load_tokenizer, vocabulary_size

from .. import config as configs
from .. import hosts, loop, parallel
from ..config import RunConfig
from ..folders import locks
from ..folders import run as runs
from ..folders.checkpoints import Checkpoints
from ..jobs import task_metrics as metrics
from ..loop import Job
from ..reports import report, say, warn
from ..step import Task, gpt_task

CLASSIFIED = ("classification", "multi_label")
HELD_OUT = "inputs-1"  # names the rule of `_hold_out` in checkpoints; another rule needs another name
INPUTS = {"question_answering": "context", "tagging": "words", "multiple_choice": "text and choices", "sft": "prompt"}
PACKED = {"gpt": ("sft",), "bert": ("tagging", "classification", "multi_label", "regression")}


class Base(NamedTuple):
    """What a run starts from: any model, or the run itself where it goes on (`params` None, and its last `step`)."""

    config: ModelConfig
    tokenizer: Tokenizer
    model: nn.Module | None = None
    params: Any = None
    step: int = 0


def finetune(config: RunConfig) -> None:
    """Runs a configuration to its end, from its newest checkpoint where there is one.

    Leaves in `config.out` what `loop.run` does, and curves.png.

    Raises:
        InputError: the user's mistake, found before anything is written where possible.
        NotFiniteError: the training diverged; the last good checkpoint is kept.
    """
    out = Path(config.out)
    if config.task.kind is None:
        raise InputError(f"task.kind is missing; choose one of {', '.join(SPECS)}")
    metrics.check_libraries()
    hosts.connect()
    hosts.check_same({"command": "finetune", **configs.flatten(configs.to_dict(config))})
    hosts.check_shared(out)
    with locks.run_folder(out):
        _finetune(config, out)


def _finetune(config: RunConfig, out: Path) -> None:
    loop.check_out(out, config)
    strategy = parallel.make_strategy(config.parallel)
    parallel.check_batch(config.train.batch_size, config.train.accumulate, strategy)
    rows = read_splits(config)
    base = find_base(config)
    job = make_job(config, base, rows)
    decide_steps(config, job)
    if base.step and loop.is_finished(out, base.step, config.train.steps):
        return
    if config.data.eval:
        warn_of_shared(config.task, rows)
    elif base.step:
        check_held_out(out, base.step, "start a new run with another out")
    loop.run(config, job, strategy)
    if hosts.is_first():
        for line in report(out):
            say(line)


def decide_steps(config: RunConfig, job: Job) -> None:
    """`train.epochs`, where it is given, as `train.steps`."""
    if config.train.epochs is not None:
        rows_seen = config.train.epochs * len(job.train_source)
        config.train.steps = max(1, math.ceil(rows_seen / config.train.batch_size))


def read_splits(config: RunConfig) -> dict[str, list[Row]]:
    """The rows of training and evaluation; without data.eval a share of the first is held out.

    Raises:
        InputError: data.train is absent, a split has no row, or a row to divide lacks a column that the task reads.
    """
    data = config.data
    if not data.train:
        raise InputError("data.train is missing; give a file of rows: data.train=PATH")
    columns = {"word_column": config.task.word_column, "tag_column": config.task.tag_column}
    rows = {"train": read_all_rows(data.train, **columns)}
    if data.eval:
        try:
            rows["eval"] = read_all_rows(data.eval, **columns)
        except InputError as error:
            raise InputError(f"data.eval: {error}") from error
    for split, found in rows.items():
        if not found:
            raise InputError(f"data.{split}: no rows in {getattr(data, split)}")
    return rows if data.eval else _hold_out(config, rows["train"])


def _hold_out(config: RunConfig, rows: list[Row]) -> dict[str, list[Row]]:
    """A share of the rows for evaluation. A hash of a row's input decides, so that rows with equal inputs are on one
    side, and neither labels, nor unused columns, nor the order of rows matter."""
    share = config.data.eval_fraction
    splits: dict[str, list[Row]] = {"train": [], "eval": []}
    for row in rows:
        splits["eval" if input_digest(config.task, row) < share * 2**64 else "train"].append(row)
    for split, change in (("train", "lower"), ("eval", "raise")):
        if not splits[split]:
            problem = f"no row is left for data.{split} when data.eval_fraction={share:g} divides data.train"
            raise InputError(f"{problem} (rows with equal inputs stay together); {change} it, or give data.eval")
    return splits


def input_digest(settings: TaskSettings, row: Row) -> int:
    """A hash of `input_key` of 64 bits."""
    digest = hashlib.blake2b(input_key(settings, row).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def input_key(settings: TaskSettings, row: Row) -> str:
    """What the task reads of a row before it answers, as JSON in which all white space is single spaces.

    It is the text and the pair or choices, or the words. Of a question it is the context alone, so that all questions
    about a context have one key; of a response the prompt, or the messages before the assistant's first.

    Raises:
        InputError: a column is missing or empty.
    """
    kind, choices = settings.kind, settings.choices
    if kind == "sft" and row.values.get(settings.messages) is not None:
        found = _opening(row.values[settings.messages])
    elif kind == "sft":
        found = [row.get(settings.prompt, "task.prompt")]
    elif kind == "question_answering":
        found = [row.get(settings.context, "task.context")]
    elif kind == "tagging":
        words = row.get(settings.words, "task.words")
        found = words.split() if isinstance(words, str) else words
    else:
        found = [row.get(settings.text, "task.text")]
        if kind == "multiple_choice":
            columns = [choices] if isinstance(choices, str) else choices
            found += [row.get(column, "task.choices") for column in columns]
        elif settings.pair:
            found.append(row.get(settings.pair, "task.pair"))
    return json.dumps(_single_spaced(found), sort_keys=True, default=str)


def _opening(messages: Any) -> Any:
    """The texts before the assistant's first; anything but a conversation is left as it is, and refused later."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return messages
    opening = itertools.takewhile(lambda message: message.get("role") != "assistant", messages)
    return [message.get("content") for message in opening]


def _single_spaced(value: Any) -> Any:
    if isinstance(value, list):
        return [_single_spaced(item) for item in value]
    return " ".join(value.split()) if isinstance(value, str) else value


def check_held_out(folder: Path, step: int, advice: str) -> None:
    """
    Raises:
        InputError: the run in the folder did not hold out the rows that this version would.
    """
    digest = Checkpoints(folder / "checkpoints").extra(step)["data"]
    if not digest.endswith(f"-{HELD_OUT}"):
        problem = "this run did not divide data.train as this version does, so its held-out rows cannot be found again"
        raise InputError(f"{folder}: {problem}; {advice}")


def warn_of_shared(settings: TaskSettings, rows: dict[str, list[Row]]) -> None:
    """One line where rows of data.eval are in data.train too."""
    shared = count_shared(settings, rows)
    if shared:
        same = INPUTS.get(str(settings.kind), "text and pair" if settings.pair else "text")
        warn(
            f"{shared:,} of {len(rows['eval']):,} rows of data.eval are also in data.train (same {same}), so the "
            "scores say little about new rows; remove them from one of the two, or set data.eval=null to hold rows out"
        )


def count_shared(settings: TaskSettings, rows: dict[str, list[Row]]) -> int:
    """How many rows of evaluation have the input of a row of training."""
    known = {input_digest(settings, row) for row in rows["train"]}
    return sum(input_digest(settings, row) in known for row in rows["eval"])


def find_base(config: RunConfig) -> Base:
    """The run already in config.out, or what model.init_from names, or a preset with tokenizer.path.

    Raises:
        InputError: there is none of them.
    """
    start = runs.find_resumed(config)
    if start is not None:
        return Base(start.model_config, start.tokenizer, step=start.step)
    if config.model.init_from is not None:
        runs.check_init_from(config)
        run = runs.load_run(config.model.init_from)
        return Base(run.model.config, run.tokenizer, run.model, run.params)
    if config.tokenizer.path is None:
        raise InputError(
            "model.init_from is missing; give a run folder or a model folder to fine-tune (or, to train from nothing, "
            "model.preset with tokenizer.path)"
        )
    tokenizer = load_tokenizer(config.tokenizer.path)
    return Base(configs.model_config(config, vocabulary_size(tokenizer)), tokenizer)


def make_job(config: RunConfig, base: Base, rows: dict[str, list[Row]]) -> Job:
    """Model, examples and what is measured."""
    settings, kind = config.task, str(config.task.kind)
    resumed = base.step > 0  # its vocabulary has the task's tokens already
    given = base.config if resumed else configs.model_config(config, vocabulary_size(base.tokenizer), base.config)
    architecture = architecture_of(kind, given.architecture)
    if config.data.pack:
        check_packed(kind, given.architecture)
    causal = given.architecture == "gpt"
    tokenizer = add_tokens(base.tokenizer, task_tokens(kind)) if causal else base.tokenizer
    model_config = config_for(labelled_config(settings, given, rows["train"]), tokenizer)
    choices = most_choices([*rows["train"], *rows["eval"]], settings.choices)
    data = task_data(settings, model_config, tokenizer, config.data.sequence_length, choices)
    examples = {split: encode(data, found, split) for split, found in rows.items()}
    model: nn.Module = getattr(bertgpt, architecture)(model_config)
    params = None
    if base.model is not None:
        key = jax.random.key(config.seed)
        model, params = adapt(base.model, base.params, architecture, model_config, tokenizer, key=key)
    model = model.clone(dtype=jnp.dtype(config.train.dtype), remat=config.train.remat)
    parts = [data_digest(config.data.train or []), data_digest(config.data.eval) if config.data.eval else HELD_OUT]
    job = job_for(settings, data, model, params, examples["train"], examples["eval"], "-".join(parts))
    if config.data.pack:
        packed = Packed(TaskExamples(data, examples["train"]), most_examples(data.frame.length), config.seed)
        return job._replace(train_source=packed)
    return job


def check_packed(kind: str, family: str) -> None:
    """
    Raises:
        InputError: examples of this kind cannot share a row.
    """
    if kind not in PACKED[family]:
        name = {"bert": "BERT", "gpt": "GPT-1"}[family]
        able = ", ".join(PACKED[family])
        raise InputError(f"data.pack is not for a {name} and task.kind {kind}, but for {able}; set data.pack=false")


def job_for(
    settings: TaskSettings,
    data: TaskData,
    model: nn.Module,
    params: Any,
    train: Sequence[Example],
    held_out: Sequence[Example],
    digest: str = "",
) -> Job:
    """A task's job, from rows that have been read."""
    eval_source = TaskExamples(data, held_out)
    return Job(
        model=model,
        tokenizer=data.frame.tokenizer,
        params=params,
        task=make_task(settings, model),
        train_source=TaskExamples(data, train),
        eval_source=eval_source,
        eval_seed=None,
        eval_examples=len(eval_source),
        token_keys=("input_ids", "labels") if settings.kind == "sft" else ("input_ids",),
        digest=digest,
        host_sums=lambda batch: {},
        figures=functools.partial(figures, data, held_out),
        best=metrics.BEST[str(settings.kind)],
        evaluates_first=True,
    )


def labelled_config(settings: TaskSettings, config: ModelConfig, rows: Sequence[Row]) -> ModelConfig:
    """The model's configuration with the labels of the training rows, in the order that it has them in where they are
    the same."""
    kind, found = str(settings.kind), config.labels
    if kind in CLASSIFIED:
        found = find_labels(rows, settings.label, several=kind == "multi_label")
    elif kind == "tagging":
        found = find_tags(rows, settings.tags)
    else:
        size = 1 if kind == "regression" else 2
        return dataclasses.replace(config, labels=(), num_labels=size, problem_type=SPECS[kind].problem)
    labels = config.labels if set(config.labels) == set(found) else found
    return dataclasses.replace(config, labels=labels, num_labels=len(labels), problem_type=SPECS[kind].problem)


def encode(data: TaskData, rows: Sequence[Row], split: str) -> list[Example]:
    """The split's examples; tells how many were cut or left out.

    Raises:
        InputError: a row cannot be used, or none is left.
    """
    examples = [data.encode(row) for row in rows]
    inputs = sum(len(example.features) for example in examples)
    cut = sum(example.cut and bool(example.features) for example in examples)
    dropped = sum(not example.features for example in examples)
    say(f"{split}: {len(rows):,} rows, {inputs:,} inputs; {cut:,} cut to fit, {dropped:,} left out as too long")
    if not inputs:
        raise InputError(f"data.{split}: every row is too long; raise data.sequence_length")
    return examples


def make_task(settings: TaskSettings, model: nn.Module) -> Task:
    """The losses of a kind of task; for GPT-1 with the auxiliary next-token loss."""
    kind, causal = str(settings.kind), model.config.causal  # type: ignore[attr-defined]
    if kind == "sft":
        return gpt_task(model)
    inputs = ("input_ids", "attention_mask") + (() if causal else ("token_type_ids",))
    outputs = SPECS[kind].outputs
    if kind == "question_answering":
        weights = (("start_loss", 0.5), ("end_loss", 0.5))
        return Task(model, inputs, losses.span_losses, losses.span_accuracies, weights, outputs=outputs)
    task_losses, accuracies = _losses(kind)
    if not causal or not settings.lm_weight:
        return Task(model, inputs, task_losses, accuracies, outputs=outputs)
    field = "logits" if kind == "multiple_choice" else "lm_logits"

    def with_lm(output: Any, batch: losses.Batch) -> dict[str, losses.SumWeight]:
        return task_losses(output, batch) | {"lm_loss": losses.auxiliary_lm_loss(getattr(output, field), batch)}

    options = () if kind == "multiple_choice" else (("output_lm_logits", True),)
    return Task(model, inputs, with_lm, accuracies, (("lm_loss", settings.lm_weight),), options, outputs)


def _losses(kind: str) -> tuple[Any, Any]:
    """A head's loss and accuracy as functions of (output, batch)."""
    if kind in ("tagging", "multiple_choice"):

        def logits(output: Any, batch: losses.Batch) -> Any:
            return output.logits if kind == "tagging" else losses.choice_logits(output.mc_logits, batch["choice_mask"])

        return (
            lambda output, batch: {
                "task_loss": losses.cross_entropy(logits(output, batch), batch["labels"], batch["loss_mask"])
            },
            lambda output, batch: {
                "accuracy": losses.accuracy(logits(output, batch), batch["labels"], batch["loss_mask"])
            },
        )
    problem = str(SPECS[kind].problem)
    return (
        lambda output, batch: {"task_loss": losses.class_loss(output.logits, batch, problem)},
        lambda output, batch: losses.class_accuracy(output.logits, batch, problem),
    )


def figures(
    data: TaskData,
    examples: Sequence[Example],
    means: dict[str, float],
    outputs: dict[str, np.ndarray],
    predictions: list[dict[str, Any]] | None = None,
) -> dict[str, float]:
    """The held-out means with the task's own scores; perplexity where responses are learnt.

    Args:
        data: how rows are read.
        examples: the held-out ones.
        means: of losses and accuracies.
        outputs: of the model, of every feature in order.
        predictions: is filled where it is given.
    """
    means = means | {"examples": len(examples)}
    if not outputs:
        return means | {"perplexity": math.exp(min(means["lm_loss"], 700))}
    found = decode_all(data, examples, by_feature(outputs))
    if predictions is not None:
        predictions += found
    return means | metrics.score(data, examples, found)


def by_feature(outputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Arrays over all features -> what each has."""
    return [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
