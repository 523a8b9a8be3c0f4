"""Fine-tuning on labelled rows: the job of a configuration with a task."""

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
from bertgpt.data.tasks.classification import most_choices
from bertgpt.data.tasks.making import LABELLED, labels_of, task_tokens
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import Example, TaskData, TaskExamples, TaskSettings, encode_rows
from bertgpt.errors import InputError
from bertgpt.inference.predict import SPECS, architecture_of, decode_all, task_data
from bertgpt.model.blocks import Model
from bertgpt.tokenizers import load_tokenizer, vocabulary_size

from .. import capacity, hosts, loop, model_section, parallel, tracking
from .. import config as configs
from ..addresses import is_address
from ..fast_dense import fast_apply
from ..folders import locks, run_folder
from ..folders.encoded import encode_splits
from ..folders.run_folder import InitialModel
from ..folders.run_storage import RunStorage
from ..job import EvalSet, TrainJob
from ..reports import report, say, say_numbered
from ..sections import RunConfig
from ..step import Objective, gpt_objective
from . import task_metrics
from .task_rows import check_held_out, read_splits, rows_digest, warn_of_shared

PACKED = {"gpt": ("sft",), "bert": ("tagging", "classification", "multi_label", "regression")}


def finetune(config: RunConfig, encoded: Path | None = None) -> None:
    """Fine-tune to the last step, resuming from the newest checkpoint if there is one.

    Writes to `config.out` the files of `loop.run`, and curves.png.

    Args:
        config: the run's.
        encoded: folder of the encoded rows, which several runs on the same rows can share; None: `encoded` in
            `config.out`.

    Raises:
        InputError: a mistake of the user, found before anything is written if possible.
        NotFiniteError: training diverged; the last good checkpoint is kept.
    """
    files = RunStorage(config)
    if config.task.kind is None:
        raise InputError(f"task.kind is missing; choose one of {', '.join(SPECS)}, or use pretrain")
    if config.train.objective is not None:
        raise InputError(f"train.objective {config.train.objective} is for pretraining; add train.objective=null")
    task_metrics.check_libraries()
    tracking.check(config)
    hosts.connect()
    hosts.check_same({"command": "finetune", **configs.flatten(configs.to_dict(config))})
    files.check()
    with locks.run_folder(files.out), files.opened():
        _finetune(config, files, encoded or files.out / "encoded")


def _finetune(config: RunConfig, files: RunStorage, encoded: Path) -> None:
    loop.check_out(files, config)
    strategy = parallel.make_strategy(config.parallel, config.train.dtype)
    parallel.check_batch(config.train.batch_size, config.train.accumulate, strategy)
    rows = read_splits(config)
    initial = find_initial_model(config)
    capacity.check(config, initial.config, strategy)
    job = make_job(config, initial, rows, encoded)
    decide_steps(config, job)
    if initial.step and loop.is_finished(files, initial.step, config.train.steps):
        return
    if config.data.eval:
        warn_of_shared(config.task, rows)
    elif initial.step:
        check_held_out(files.checkpoints(), initial.step, "start a new run with another out")
    loop.run(config, job, strategy, files)
    if hosts.is_first():
        for line in report(files.out, name=config.out):
            say(line)


def decide_steps(config: RunConfig, job: TrainJob) -> None:
    """Set `train.steps` from `train.epochs`, if it is given."""
    if config.train.epochs is not None:
        rows_seen = config.train.epochs * len(job.train_source)
        config.train.steps = max(1, math.ceil(rows_seen / config.train.batch_size))


def find_initial_model(config: RunConfig) -> InitialModel:
    """The run in config.out to resume, or the model of model.init_from, or a preset with tokenizer.path.

    Raises:
        InputError: the configuration has neither model.init_from nor tokenizer.path.
    """
    resumed = run_folder.find_resumed(config)
    if resumed is not None:
        return resumed
    run_folder.check_init_from(config)
    if config.model.init_from is not None:
        run = run_folder.load_run(run_folder.init_folder(config), config.model.init_step)
        tokenizer = run_folder.with_wanted_cleanup(config, run.tokenizer)
        return InitialModel(run.model.config, tokenizer, type(run.model).__name__, run.model, run.params)
    if config.tokenizer.path is None:
        raise InputError(
            "model.init_from is missing; give a run or model folder to fine-tune (or model.preset and tokenizer.path, "
            "to train from random weights)"
        )
    tokenizer = load_tokenizer(config.tokenizer.path, cleanup=config.tokenizer.cleanup)
    return InitialModel(model_section.model_config(config, vocabulary_size(tokenizer)), tokenizer)


def make_job(
    config: RunConfig, initial: InitialModel, rows: dict[str, list[Row]], folder: Path | None = None
) -> TrainJob:
    """Build the job: model, objective, examples and figures; `folder` keeps the encoded rows for the next start."""
    settings, kind = config.task, str(config.task.kind)
    # the vocabulary of a resumed run already has the task's tokens
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
    choices = most_choices([row for found in rows.values() for row in found], settings.choices)
    data = task_data(settings, model_config, tokenizer, config.data.sequence_length, choices)
    if folder is None:
        examples = {split: list(encode_rows(data, found)) for split, found in rows.items()}
    else:
        examples = encode_splits(data, rows, folder, shared=not is_address(config.out))
    for split, found in examples.items():
        say_encoded(found, split)
    model: Model = getattr(bertgpt, architecture)(model_config)
    params = None
    if initial.model is not None:
        numbers = tuple(map(str, range(given.num_labels)))
        if (architecture, given.labels, model_config.labels) == (initial.architecture, (), numbers):
            say_numbered(str(config.model.init_from), given.num_labels)
        key = jax.random.key(config.seed)
        model, params = adapt(initial.model, initial.params, architecture, model_config, tokenizer, key=key)
    model = model.clone(dtype=jnp.dtype(config.train.dtype), remat=config.train.remat, attention=config.model.attention)
    held_out = {split.partition(".")[2]: found for split, found in examples.items() if split != "train"}
    best_on = configs.deciding_set(config, list(held_out))
    job = job_for(settings, data, model, params, examples["train"], held_out, rows_digest(config), best_on)
    if config.data.pack:
        packed = Packed(TaskExamples(data, examples["train"]), most_examples(data.template.length), config.seed)
        return job._replace(train_source=packed)
    return job


def check_packed(kind: str, family: str) -> None:
    """
    Raises:
        InputError: examples of this kind cannot be packed.
    """
    if kind not in PACKED[family]:
        name = {"bert": "BERT", "gpt": "GPT-1"}[family]
        able = ", ".join(PACKED[family])
        raise InputError(f"data.pack=true supports {able} with {name}, not task.kind {kind}; set data.pack=false")


def job_for(
    settings: TaskSettings,
    data: TaskData,
    model: Model,
    params: Any,
    train: Sequence[Example],
    held_out: dict[str, list[Example]],
    digest: str = "",
    best_on: str = "",
) -> TrainJob:
    """Build the job of a task from encoded examples; `held_out` are those of each held-out set by its name."""
    evals = {}
    for name, found in held_out.items():
        source = TaskExamples(data, found)
        evals[name] = EvalSet(source, len(source), functools.partial(figures, data, found))
    return TrainJob(
        model=model,
        tokenizer=data.template.tokenizer,
        params=params,
        objective=make_objective(settings, model),
        train_source=TaskExamples(data, train),
        evals=evals,
        eval_seed=None,
        token_keys=("input_ids", "labels") if settings.kind == "sft" else ("input_ids",),
        digest=digest,
        host_sums=lambda batch: {},
        best=task_metrics.BEST[str(settings.kind)],
        best_on=best_on,
        evaluates_first=True,
    )


def labelled_config(settings: TaskSettings, config: ModelConfig, rows: Sequence[Row]) -> ModelConfig:
    """Return the model's configuration with the labels of the training rows.

    If the labels are the same as the model's, their order is kept.
    """
    kind, found = str(settings.kind), labels_of(settings, rows)
    if kind not in LABELLED:
        size = 1 if kind == "regression" else 2
        return dataclasses.replace(config, labels=(), num_labels=size, problem_type=SPECS[kind].problem)
    labels = config.labels if set(config.labels) == set(found) else found
    return dataclasses.replace(config, labels=labels, num_labels=len(labels), problem_type=SPECS[kind].problem)


def say_encoded(examples: Sequence[Example], split: str) -> None:
    """Log how many inputs of a split are truncated and how many of its rows are skipped.

    Raises:
        InputError: all rows are too long.
    """
    inputs = sum(len(example.features) for example in examples)
    cut = sum(example.cut and bool(example.features) for example in examples)
    dropped = sum(not example.features for example in examples)
    say(f"{split}: {len(examples):,} rows, {inputs:,} inputs; {cut:,} truncated, {dropped:,} skipped as too long")
    if not inputs:
        raise InputError(f"data.{split}: every row is too long; raise data.sequence_length")


def make_objective(settings: TaskSettings, model: Model) -> Objective:
    """The objective of a task, for JAX's default device."""
    return _losses_of(settings, model)._replace(apply=fast_apply(model, jax.default_backend()))


def _losses_of(settings: TaskSettings, model: Model) -> Objective:
    """The objective of a task; for GPT-1 with the auxiliary next-token loss."""
    kind, causal = str(settings.kind), model.config.causal
    if kind == "sft":
        return gpt_objective(model)
    inputs = ("input_ids", "attention_mask") + (() if causal else ("token_type_ids",))
    outputs = SPECS[kind].outputs
    if kind == "question_answering":
        weights = (("start_loss", 0.5), ("end_loss", 0.5))
        return Objective(
            model,
            inputs,
            losses.span_losses,
            _scores(losses.span_losses, losses.span_accuracies),
            weights,
            outputs=outputs,
        )
    task_losses, accuracies = _losses(kind)
    if not causal or not settings.lm_weight:
        return Objective(model, inputs, task_losses, _scores(task_losses, accuracies), outputs=outputs)
    field = "logits" if kind == "multiple_choice" else "lm_logits"

    def with_lm(output: Any, batch: losses.Batch) -> dict[str, losses.SumWeight]:
        return task_losses(output, batch) | {"lm_loss": losses.auxiliary_lm_loss(getattr(output, field), batch)}

    options = () if kind == "multiple_choice" else (("output_lm_logits", True),)
    scores = _scores(with_lm, accuracies)
    return Objective(model, inputs, with_lm, scores, (("lm_loss", settings.lm_weight),), options, outputs)


def _scores(task_losses: Any, accuracies: Any) -> Any:
    """The losses and the accuracies, as one function of (output, batch)."""
    return lambda output, batch: task_losses(output, batch) | accuracies(output, batch)


def _losses(kind: str) -> tuple[Any, Any]:
    """The loss and the accuracy of a head, as functions of (output, batch)."""
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
    """The held-out means with the task's scores; for responses, with the perplexity.

    Args:
        data: reads rows and decodes outputs.
        examples: the held-out examples.
        means: mean losses and accuracies by name.
        outputs: the model's outputs by name, for all features in order.
        predictions: if given, the predictions are appended to it.
    """
    means = means | {"examples": len(examples)}
    if not outputs:
        return means | {"perplexity": math.exp(min(means["lm_loss"], 700))}
    found = decode_all(data, examples, by_feature(outputs))
    if predictions is not None:
        predictions += found
    return means | task_metrics.score(data, examples, found)


def by_feature(outputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Arrays over all features, by name -> one dictionary per feature."""
    return [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
