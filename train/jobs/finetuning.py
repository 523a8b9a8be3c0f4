"""Fine-tuning: the job of a configuration with a task, from labelled rows."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bertgpt
from bertgpt import losses
from bertgpt.checkpoints.adapt import adapt, add_tokens, config_for
from bertgpt.config import ModelConfig
from bertgpt.data.pretraining.packing import Packed, most_examples
from bertgpt.data.tasks.classification import find_labels, most_choices
from bertgpt.data.tasks.readers import data_digest
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.tagging import find_tags
from bertgpt.data.tasks.task import Example, TaskData, TaskExamples, TaskSettings
from bertgpt.errors import InputError
from bertgpt.inference.predict import SPECS, architecture_of, decode_all, task_data, task_tokens
from bertgpt.model.blocks import Model
from bertgpt.tokenizers import load_tokenizer, vocabulary_size

from .. import config as configs
from .. import hosts, loop, model_section, parallel
from ..cpu import fast_apply
from ..folders import locks, run_folder
from ..folders.run_folder import InitialModel
from ..job import TrainJob
from ..reports import report, say
from ..sections import RunConfig
from ..step import Objective, gpt_objective
from . import task_metrics
from .task_rows import HELD_OUT, check_held_out, read_splits, warn_of_shared

CLASSIFIED = ("classification", "multi_label")
PACKED = {"gpt": ("sft",), "bert": ("tagging", "classification", "multi_label", "regression")}


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
    task_metrics.check_libraries()
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
    initial = find_initial_model(config)
    job = make_job(config, initial, rows)
    decide_steps(config, job)
    if initial.step and loop.is_finished(out, initial.step, config.train.steps):
        return
    if config.data.eval:
        warn_of_shared(config.task, rows)
    elif initial.step:
        check_held_out(out, initial.step, "start a new run with another out")
    loop.run(config, job, strategy)
    if hosts.is_first():
        for line in report(out):
            say(line)


def decide_steps(config: RunConfig, job: TrainJob) -> None:
    """`train.epochs`, where it is given, as `train.steps`."""
    if config.train.epochs is not None:
        rows_seen = config.train.epochs * len(job.train_source)
        config.train.steps = max(1, math.ceil(rows_seen / config.train.batch_size))


def find_initial_model(config: RunConfig) -> InitialModel:
    """The run already in config.out, or what model.init_from names, or a preset with tokenizer.path.

    Raises:
        InputError: there is none of them.
    """
    resumed = run_folder.find_resumed(config)
    if resumed is not None:
        return resumed
    if config.model.init_from is not None:
        run_folder.check_init_from(config)
        run = run_folder.load_run(config.model.init_from)
        return InitialModel(run.model.config, run.tokenizer, run.model, run.params)
    if config.tokenizer.path is None:
        raise InputError(
            "model.init_from is missing; give a run folder or a model folder to fine-tune (or, to train from nothing, "
            "model.preset with tokenizer.path)"
        )
    tokenizer = load_tokenizer(config.tokenizer.path)
    return InitialModel(model_section.model_config(config, vocabulary_size(tokenizer)), tokenizer)


def make_job(config: RunConfig, initial: InitialModel, rows: dict[str, list[Row]]) -> TrainJob:
    """Model, examples and what is measured."""
    settings, kind = config.task, str(config.task.kind)
    # the vocabulary of a run that is resumed has the task's tokens already
    given = (
        initial.config
        if initial.is_resumed
        else model_section.model_config(config, vocabulary_size(initial.tokenizer), initial.config)
    )
    architecture = architecture_of(kind, given.architecture)
    if config.data.pack:
        check_packed(kind, given.architecture)
    causal = given.architecture == "gpt"
    tokenizer = add_tokens(initial.tokenizer, task_tokens(kind)) if causal else initial.tokenizer
    model_config = config_for(labelled_config(settings, given, rows["train"]), tokenizer)
    choices = most_choices([*rows["train"], *rows["eval"]], settings.choices)
    data = task_data(settings, model_config, tokenizer, config.data.sequence_length, choices)
    examples = {split: encode(data, found, split) for split, found in rows.items()}
    model: Model = getattr(bertgpt, architecture)(model_config)
    params = None
    if initial.model is not None:
        key = jax.random.key(config.seed)
        model, params = adapt(initial.model, initial.params, architecture, model_config, tokenizer, key=key)
    model = model.clone(dtype=jnp.dtype(config.train.dtype), remat=config.train.remat)
    parts = [data_digest(config.data.train or []), data_digest(config.data.eval) if config.data.eval else HELD_OUT]
    job = job_for(settings, data, model, params, examples["train"], examples["eval"], "-".join(parts))
    if config.data.pack:
        packed = Packed(TaskExamples(data, examples["train"]), most_examples(data.template.length), config.seed)
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
    model: Model,
    params: Any,
    train: Sequence[Example],
    held_out: Sequence[Example],
    digest: str = "",
) -> TrainJob:
    """A task's job, from rows that have been read."""
    eval_source = TaskExamples(data, held_out)
    return TrainJob(
        model=model,
        tokenizer=data.template.tokenizer,
        params=params,
        objective=make_objective(settings, model),
        train_source=TaskExamples(data, train),
        eval_source=eval_source,
        eval_seed=None,
        eval_examples=len(eval_source),
        token_keys=("input_ids", "labels") if settings.kind == "sft" else ("input_ids",),
        digest=digest,
        host_sums=lambda batch: {},
        figures=functools.partial(figures, data, held_out),
        best=task_metrics.BEST[str(settings.kind)],
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


def make_objective(settings: TaskSettings, model: Model) -> Objective:
    """What a kind of task trains, on JAX's default device."""
    return _losses_of(settings, model)._replace(apply=fast_apply(model, jax.default_backend()))


def _losses_of(settings: TaskSettings, model: Model) -> Objective:
    """The losses of a kind of task; for GPT-1 with the auxiliary next-token loss."""
    kind, causal = str(settings.kind), model.config.causal
    if kind == "sft":
        return gpt_objective(model)
    inputs = ("input_ids", "attention_mask") + (() if causal else ("token_type_ids",))
    outputs = SPECS[kind].outputs
    if kind == "question_answering":
        weights = (("start_loss", 0.5), ("end_loss", 0.5))
        return Objective(model, inputs, losses.span_losses, losses.span_accuracies, weights, outputs=outputs)
    task_losses, accuracies = _losses(kind)
    if not causal or not settings.lm_weight:
        return Objective(model, inputs, task_losses, accuracies, outputs=outputs)
    field = "logits" if kind == "multiple_choice" else "lm_logits"

    def with_lm(output: Any, batch: losses.Batch) -> dict[str, losses.SumWeight]:
        return task_losses(output, batch) | {"lm_loss": losses.auxiliary_lm_loss(getattr(output, field), batch)}

    options = () if kind == "multiple_choice" else (("output_lm_logits", True),)
    return Objective(model, inputs, with_lm, accuracies, (("lm_loss", settings.lm_weight),), options, outputs)


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
    return means | task_metrics.score(data, examples, found)


def by_feature(outputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Arrays over all features -> what each has."""
    return [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
