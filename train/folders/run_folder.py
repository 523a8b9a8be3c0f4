"""Run folders: what a run begins with or goes on with, and a finished run's model."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

import bertgpt
from bertgpt.checkpoints.adapt import adapt
from bertgpt.checkpoints.load import family_of_folder
from bertgpt.config import ModelConfig
from bertgpt.errors import InputError, check_local
from bertgpt.model.blocks import Model
from bertgpt.model.inputs import example_ids
from bertgpt.tokenizers import (
    load_tokenizer,
    parse_tokenizer,
)

from ..reports import warn
from ..sections import RunConfig
from .checkpoints import Checkpoints

PRETRAINED = {"bert": "BertForPreTraining", "gpt": "OpenAIGPTLMHeadModel"}  # the model that an architecture pretrains


class Run(NamedTuple):
    """A run folder's model, ready to use."""

    model: Model
    params: Any
    tokenizer: Tokenizer
    step: int


class InitialModel(NamedTuple):
    """What a run starts from, or is resumed with.

    Attributes:
        config: of the model.
        tokenizer: the run's.
        model: that the parameters belong to; None where there are none.
        params: None where they are initialized, or come from the checkpoint of the run that is resumed.
        step: of that checkpoint; 0 for a new run.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    model: Model | None = None
    params: Any = None
    step: int = 0

    @property
    def is_resumed(self) -> bool:
        """Whether the run in `config.out` is resumed."""
        return self.step > 0


def load_run(folder: str | Path, step: int | None = None) -> Run:
    """A run folder's best checkpoint (the newest where none was evaluated), or the next where it is damaged.

    A model folder (Hugging Face's, or one exported) is read as well; its step is 0.

    Args:
        folder: of a run or a model.
        step: that checkpoint of a run and no other.

    Raises:
        InputError: the folder is neither, or has no such checkpoint that can be read.
    """
    check_local("the run or model folder", folder)
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        return _load_model_folder(folder, step)
    checkpoints = Checkpoints(folder / "checkpoints")
    steps, best = checkpoints.steps(), checkpoints.best()
    if not steps:
        raise InputError(f"{folder}: no checkpoint yet; let the run reach its first, or lower checkpoint.every")
    if step is not None and step not in steps:
        raise InputError(f"{folder}: no checkpoint {step}; there are {', '.join(map(str, sorted(steps)))}")
    wanted = [step] if step is not None else sorted(steps, key=lambda step: (step != best, -step))
    for number in wanted:
        fault = checkpoints.fault(number)
        if fault is None:
            return _load_step(checkpoints, number)
        warn(f"checkpoint {number} of {folder} is damaged: {fault}")
    rest = "leave --step out for another" if step is not None else "train again with another out"
    raise InputError(f"{folder}: no checkpoint can be read; {rest}")


def _load_model_folder(folder: Path, step: int | None = None, architecture: str | None = None) -> Run:
    if not _is_model_folder(folder):
        raise InputError(f"{folder}: not a run folder (no config.yaml), and no model folder (no config.json)")
    if step is not None:
        raise InputError(f"{folder}: a model folder has no checkpoint {step}; leave --step out")
    model, params = bertgpt.load_pretrained(folder, architecture)
    return Run(model, params, load_tokenizer(folder), 0)


def _is_model_folder(folder: Path) -> bool:
    """Whether it looks like Hugging Face's, or like OpenAI's release."""
    return any((folder / name).is_file() for name in ("config.json", "params_shapes.json"))


def _load_for_pretraining(folder: Path) -> Run:
    """A run, or a model folder, with the heads of its pretraining; those that it lacks are made anew."""
    if not (folder / "config.yaml").is_file() and _is_model_folder(folder):
        return _load_model_folder(folder, None, PRETRAINED[family_of_folder(folder)])
    run = load_run(folder)
    name = PRETRAINED[run.model.config.architecture]
    if type(run.model).__name__ == name:
        return run
    config = dataclasses.replace(run.model.config, num_labels=2, labels=(), problem_type=None)
    model, params = adapt(run.model, run.params, name, config, run.tokenizer, key=jax.random.key(0))
    return Run(model, params, run.tokenizer, run.step)


def _load_step(checkpoints: Checkpoints, step: int) -> Run:
    extra = checkpoints.extra(step)
    config = ModelConfig(**extra["model"])
    model = getattr(bertgpt, _architecture_of(extra))(config)
    params = checkpoints.load_params(step, abstract_params(model))
    return Run(
        model, jax.tree.map(jnp.asarray, params), parse_tokenizer(extra["tokenizer"], f"checkpoint {step}"), step
    )


def _architecture_of(extra: dict[str, Any]) -> str:
    """The class of a checkpoint's model."""
    return extra.get("architecture") or PRETRAINED[extra["model"]["architecture"]]


def require_architecture(run: Run, architecture: str, verb: str, other: str) -> Run:
    """The run, if its model suits the verb.

    Raises:
        InputError: it does not; names the verb that does.
    """
    found = run.model.config.architecture
    if found != architecture:
        names = {"bert": "BERT", "gpt": "GPT-1"}
        raise InputError(f"{verb} needs a {names[architecture]}, and this run is a {names[found]}; use {other}")
    return run


def abstract_params(model: Model) -> Any:
    """The parameters' shapes and dtypes; nothing is allocated."""
    return jax.eval_shape(model.init, jax.random.key(0), example_ids(type(model).__name__))["params"]


def find_initial_model(config: RunConfig) -> InitialModel | None:
    """The run already in config.out, or else the one that model.init_from names; None where there is neither.

    Raises:
        InputError: model.init_from is no run, or stands beside what it brings itself.
    """
    resumed = find_resumed(config)
    if resumed is not None or config.model.init_from is None:
        return resumed
    check_init_from(config)
    run = _load_for_pretraining(Path(config.model.init_from))
    return InitialModel(run.model.config, run.tokenizer, run.model, run.params)


def find_resumed(config: RunConfig) -> InitialModel | None:
    """The run already in config.out."""
    checkpoints = Checkpoints(Path(config.out) / "checkpoints")
    for step in reversed(checkpoints.steps()):
        if checkpoints.fault(step, arrays=False) is None:  # else the restore that follows sets it aside
            extra = checkpoints.extra(step)
            tokenizer = parse_tokenizer(extra["tokenizer"], f"checkpoint {step}")
            return InitialModel(ModelConfig(**extra["model"]), tokenizer, step=step)
    return None


def check_init_from(config: RunConfig) -> None:
    """
    Raises:
        InputError: something stands beside model.init_from that it brings itself.
    """
    for key, value in (("model.preset", config.model.preset), ("tokenizer.path", config.tokenizer.path)):
        if value is not None:
            raise InputError(f"{key} is given beside model.init_from, which brings its own; leave one of them out")
