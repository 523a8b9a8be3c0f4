"""Run folders: the initial or resumed model of a run, and the model of a finished run."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

import bertgpt
from bertgpt.checkpoints.adapt import adapt
from bertgpt.checkpoints.contents import Contents, contents_of, read_contents
from bertgpt.checkpoints.detect import is_model_folder
from bertgpt.checkpoints.hf_mapping import FAMILIES, family_of, heads
from bertgpt.checkpoints.load import contents_of_folder, find_model
from bertgpt.config import ModelConfig
from bertgpt.errors import InputError
from bertgpt.hub import Found, check_folder_or_name, is_name
from bertgpt.model.blocks import Model
from bertgpt.model.inputs import example_ids
from bertgpt.tokenizers import (
    load_tokenizer,
    parse_tokenizer,
    with_cleanup,
)

from .. import addresses, hosts
from ..addresses import is_storage
from ..reports import say, warn
from ..sections import OBJECTIVES, RunConfig
from .checkpoints import Checkpoints
from .run_storage import RunStorage, fetched

FAMILY_NAMES = {"bert": "BERT", "gpt": "GPT-1"}


class Run(NamedTuple):
    """The model of a run or model folder, ready to use; `step` is 0 for a model folder."""

    model: Model
    params: Any
    tokenizer: Tokenizer
    step: int


class InitialModel(NamedTuple):
    """The model that a run starts from, or that it resumes.

    Attributes:
        config: of the model.
        tokenizer: of the run.
        model: of the parameters; None without parameters.
        architecture: the name of the model's class; None: to be chosen, for random weights.
        params: initial parameters; None: randomly initialized, or loaded from the checkpoint of a resumed run.
        step: of that checkpoint; 0 for a new run.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    architecture: str | None = None
    model: Model | None = None
    params: Any = None
    step: int = 0

    @property
    def is_resumed(self) -> bool:
        """Whether the run in `config.out` is resumed."""
        return self.step > 0


def load_run(folder: str | Path, step: int | None = None, revision: str | None = None) -> Run:
    """Load the best checkpoint of a run folder (the newest if none was evaluated), or a model.

    If the best checkpoint is damaged, the newest intact one is loaded. A model folder is Hugging Face's (so is an
    exported one), Google's or OpenAI's; its step is 0, and so is that of a model of the Hugging Face hub.

    Args:
        folder: a run or model folder, or the name of a model on the hub.
        step: load this checkpoint of a run.
        revision: a branch, tag or commit of a model on the hub; None: main.

    Raises:
        InputError: the folder is neither, or has no such intact checkpoint.
    """
    folder = _here(folder, step)
    found = find_model(folder, revision)
    if found.commit is not None:
        say(f"{folder}: from the Hugging Face hub, commit {found.commit}")
    folder = found.folder
    if not (folder / "config.yaml").is_file():
        return _load_model_folder(folder, step)
    return _load_step(*_intact_checkpoint(folder, step))


def _here(folder: str | Path, step: int | None) -> str | Path:
    """A folder on this machine or a name; of a run or model at an address, a copy is made, of one checkpoint.

    Raises:
        InputError: there is nothing at the address.
    """
    if is_storage(folder):
        return fetched(str(folder), step)
    check_folder_or_name("the run or model folder", folder)
    return folder


def read_checkpoint(folder: Path, step: int | None) -> tuple[Model, Any]:
    """The model and the parameters of a checkpoint of a run, for `bertgpt.load_pretrained`; arguments as `load_run`."""
    run = _load_step(*_intact_checkpoint(folder, step))
    return run.model, run.params


def _intact_checkpoint(folder: Path, step: int | None) -> tuple[Checkpoints, int]:
    """The checkpoints of a run folder, and the number of the wanted one, or else of the best.

    Raises:
        InputError: there is no such intact checkpoint.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    steps, best = checkpoints.steps(), checkpoints.best()
    if not steps:
        raise InputError(f"{folder}: no checkpoint yet; train until the first checkpoint, or lower checkpoint.every")
    if step is not None and step not in steps:
        raise InputError(f"{folder}: no checkpoint {step}; there are {', '.join(map(str, sorted(steps)))}")
    wanted = [step] if step is not None else sorted(steps, key=lambda step: (step != best, -step))
    for number in wanted:
        fault = checkpoints.fault(number)
        if fault is None:
            return checkpoints, number
        warn(f"checkpoint {number} of {folder} is damaged: {fault}")
    rest = "choose another step" if step is not None else "train again with another out"
    raise InputError(f"{folder}: no intact checkpoint; {rest}")


def _load_model_folder(folder: Path, step: int | None = None, architecture: str | None = None) -> Run:
    _check_model_folder(folder, step)
    model, params = bertgpt.load_pretrained(folder, architecture)
    return Run(model, params, load_tokenizer(folder), 0)


def _check_model_folder(folder: Path, step: int | None) -> None:
    """
    Raises:
        InputError: it is no model folder, or a step is given.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; give the folder of a run or model, or the name of a model on the hub")
    if not is_model_folder(folder):
        raise InputError(f"{folder}: neither a run folder (no config.yaml) nor a model folder (no config.json)")
    if step is not None:
        raise InputError(f"{folder}: a model folder has no checkpoint {step}; give no step, or a run folder")


class Inspected(NamedTuple):
    """A run or model as it is described: what it contains, its tokenizer or why there is none, and where it is from."""

    contents: Contents
    tokenizer: Tokenizer | str
    place: str


def inspect_run(folder: str | Path, step: int | None = None, revision: str | None = None) -> Inspected:
    """Describe what `load_run` would load with the same arguments, without loading its weights."""
    folder = _here(folder, step)
    found = find_model(folder, revision)
    if (found.folder / "config.yaml").is_file():
        checkpoints, number = _intact_checkpoint(found.folder, step)
        extra = checkpoints.extra(number)
        contents = contents_of(_architecture_of(extra), ModelConfig(**extra["model"]))
        return Inspected(
            contents, parse_tokenizer(extra["tokenizer"], f"checkpoint {number}"), f"step {number} of a run"
        )
    _check_model_folder(found.folder, step)
    contents = read_contents(found.folder)
    try:
        found_tokenizer: Tokenizer | str = load_tokenizer(found.folder)
    except InputError as error:
        found_tokenizer = str(error)
    commit = "" if found.commit is None else f", commit {found.commit} on the Hugging Face hub"
    return Inspected(contents, found_tokenizer, f"format {contents.format}{commit}")


def load_for_pretraining(folder: Path, step: int | None = None, objective: str | None = None) -> Run:
    """Load a run or model folder with the heads of a pretraining objective; missing heads are randomly initialized.

    Args:
        folder: a run or model folder.
        step: load this checkpoint of a run.
        objective: a key of `OBJECTIVES`; None: chosen by `fitting_objective`.

    Raises:
        InputError: as `load_run`, or the objective is for the other family.
    """
    if not (folder / "config.yaml").is_file() and is_model_folder(folder):
        family, present = contents_of_folder(folder)
        return _load_model_folder(folder, step, _pretraining_class(folder, family, present, objective))
    run = load_run(folder, step)
    old = type(run.model).__name__
    name = _pretraining_class(folder, run.model.config.architecture, heads(old), objective)
    if name == old:
        return run
    config = dataclasses.replace(run.model.config, num_labels=2, labels=(), problem_type=None)
    model, params = adapt(run.model, run.params, name, config, run.tokenizer, key=jax.random.key(0))
    return Run(model, params, run.tokenizer, run.step)


def _pretraining_class(folder: Path, family: str, present: set[str], objective: str | None) -> str:
    """The class that pretrains a checkpoint with these heads; logs the objective, and each new and unused head."""
    chosen = objective or fitting_objective(family, present)
    name = OBJECTIVES[check_family(chosen, family, str(folder))]
    changes = {"new": sorted(heads(name) - present), "unused": sorted(present - heads(name))}
    told = "; ".join(f"{kind} heads: {', '.join(parts)}" for kind, parts in changes.items() if parts)
    say(f"{folder}: train.objective {chosen}; {told or 'no new or unused heads'}")
    return name


def fitting_objective(family: str, present: Collection[str]) -> str:
    """The first objective of a family for which a checkpoint has all heads; if there is none, the paper's.

    Args:
        family: "bert" or "gpt".
        present: the checkpoint's heads, by their names in `hf_mapping.PARTS`.
    """
    possible = [name for name, architecture in OBJECTIVES.items() if family_name(architecture) == family]
    return next((name for name in possible if heads(OBJECTIVES[name]) <= set(present)), possible[0])


def family_name(architecture: str) -> str:
    """The family of a class, "bert" or "gpt"."""
    return FAMILIES[str(family_of(architecture))].architecture


def check_family(objective: str, family: str, place: str) -> str:
    """Return the objective if it is one of the family's.

    Raises:
        InputError: it is not; the error names `place`, where the model is from.
    """
    wanted = family_name(OBJECTIVES[objective])
    if wanted != family:
        raise InputError(
            f"train.objective {objective} is for {FAMILY_NAMES[wanted]}, and {place} is a {FAMILY_NAMES[family]}; "
            f"set train.objective={fitting_objective(family, ())}"
        )
    return objective


def _load_step(checkpoints: Checkpoints, step: int) -> Run:
    extra = checkpoints.extra(step)
    config = ModelConfig(**extra["model"])
    model = getattr(bertgpt, _architecture_of(extra))(config)
    params = checkpoints.load_params(step, abstract_params(model))
    return Run(
        model, jax.tree.map(jnp.asarray, params), parse_tokenizer(extra["tokenizer"], f"checkpoint {step}"), step
    )


def _architecture_of(extra: dict[str, Any]) -> str:
    """The name of the class of a checkpoint's model."""
    return extra.get("architecture") or OBJECTIVES[fitting_objective(extra["model"]["architecture"], ())]


def require_architecture(run: Run, architecture: str, verb: str, other: str) -> Run:
    """Return the run if its model has the architecture that a command needs.

    Raises:
        InputError: the architecture is another; the error names the other command.
    """
    found = run.model.config.architecture
    if found != architecture:
        raise InputError(
            f"{verb} needs a {FAMILY_NAMES[architecture]}, and this run is a {FAMILY_NAMES[found]}; use {other}"
        )
    return run


def abstract_params(model: Model) -> Any:
    """Shapes and dtypes of the parameters; nothing is allocated."""
    return jax.eval_shape(model.init, jax.random.key(0), example_ids(type(model).__name__))["params"]


def find_initial_model(config: RunConfig) -> InitialModel | None:
    """The run in config.out to resume, or else the model of model.init_from; None without both.

    Raises:
        InputError: model.init_from is not a run or model folder, or another key conflicts with it.
    """
    resumed = find_resumed(config)
    if resumed is not None:
        return resumed
    check_init_from(config)
    if config.model.init_from is None:
        return None
    run = load_for_pretraining(init_folder(config), config.model.init_step, config.train.objective)
    tokenizer = with_wanted_cleanup(config, run.tokenizer)
    return InitialModel(run.model.config, tokenizer, type(run.model).__name__, run.model, run.params)


def with_wanted_cleanup(config: RunConfig, tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer of model.init_from with the clean-up of tokenizer.cleanup, if that key is set.

    Raises:
        InputError: the clean-up is not for this tokenizer, or not installed.
    """
    return with_cleanup(tokenizer, config.tokenizer.cleanup, f"tokenizer.cleanup with {config.model.init_from}")


def init_folder(config: RunConfig) -> Path:
    """The folder of `model.init_from`; a model of the hub is fetched, and its commit is added to `config`.

    Raises:
        InputError: there is neither such a folder nor such a model.
    """
    name = str(config.model.init_from)
    if is_storage(name):
        return fetched(name, config.model.init_step)
    try:
        found = _find_in_all(config)
    except InputError as error:
        raise InputError(f"model.init_from: {error}") from error
    config.model.init_commit = found.commit
    if found.commit is not None:
        say(f"model.init_from: {config.model.init_from} at commit {found.commit}")
    return found.folder


def _find_in_all(config: RunConfig) -> Found:
    """The same commit in all processes. The first process fetches it first, since the others may share its cache."""
    name, revision = str(config.model.init_from), config.model.init_revision
    if not is_name(name):
        return find_model(name, revision)
    revision = config.model.init_commit or revision
    if not hosts.several():
        return find_model(name, revision)
    commit = ""

    def fetch() -> bool:
        nonlocal commit
        commit = str(find_model(name, revision).commit)
        return True

    hosts.after_first(
        addresses.shared(config.out), fetch, f"waiting for {name}, which the first process is downloading"
    )
    return find_model(name, hosts.agreed_text(commit))


def find_resumed(config: RunConfig) -> InitialModel | None:
    """The run in config.out to resume; None if it has no intact checkpoint."""
    checkpoints = RunStorage(config).checkpoints()
    for step in reversed(checkpoints.steps()):
        if checkpoints.fault(step, arrays=False) is None:  # a damaged one is set aside when the run is restored
            extra = checkpoints.extra(step)
            tokenizer = parse_tokenizer(extra["tokenizer"], f"checkpoint {step}")
            return InitialModel(ModelConfig(**extra["model"]), tokenizer, _architecture_of(extra), step=step)
    return None


def check_init_from(config: RunConfig) -> None:
    """
    Raises:
        InputError: model.preset or tokenizer.path is given together with model.init_from, or model.init_step or
            model.init_revision without.
    """
    if config.model.init_from is None:
        if config.model.init_step is not None:
            raise InputError("model.init_step is the step of a run; give the run's folder as model.init_from")
        if config.model.init_revision is not None:
            raise InputError("model.init_revision is of a model on the hub; give the model's name as model.init_from")
        return
    for key, value in (("model.preset", config.model.preset), ("tokenizer.path", config.tokenizer.path)):
        if value is not None:
            raise InputError(f"{key} conflicts with model.init_from; add {key}=null")
