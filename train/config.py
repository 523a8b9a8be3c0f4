"""The run's configuration: strict dataclasses, filled from YAML and dotted overrides."""

import copy
import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertgpt import presets
from bertgpt.config import ModelConfig
from bertgpt.data.tasks.task import KINDS, TaskSettings
from bertgpt.data.text.store import TextSource
from bertgpt.errors import InputError, check_local

from .yaml_files import number, read_yaml, scalar, write_yaml


@dataclasses.dataclass
class ModelSection:
    """A preset and any `ModelConfig` field that differs from it, or a folder to start from."""

    preset: str | None = None
    init_from: str | None = None  # a run folder, whose weights and tokenizer are taken
    architecture: str | None = None
    vocab_size: int | None = None  # the tokenizer's where absent
    hidden_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    mlp_size: int | None = None
    max_positions: int | None = None
    type_vocab_size: int | None = None
    hidden_dropout: float | None = None
    attention_dropout: float | None = None
    layer_norm_eps: float | None = None
    activation: str | None = None
    initializer_range: float | None = None
    classifier_dropout: float | None = None  # before a task head; hidden_dropout where absent


@dataclasses.dataclass
class TokenizerSection:
    """A tokenizer to load (`path`), or what to train on the corpus."""

    path: str | None = None
    kind: str | None = None  # wordpiece or bpe; wordpiece for BERT and bpe for GPT-1 where absent
    vocab_size: int | None = None  # the preset's where absent
    lowercase: bool = True


@dataclasses.dataclass
class DataSection:
    """The text and how examples are cut from it."""

    train: str | list[str] | None = None  # a path, folder, glob or package:NAME/FILE, or a list of them
    eval: str | list[str] | None = None
    eval_fraction: float = 0.01  # of the documents, held out where data.eval is absent
    text_key: str = "text"
    language: str = "en"
    sentence_per_line: bool = False
    store: str | None = None  # the folder of the token store; OUT/store where absent
    workers: int | None = None  # processes that tokenize; one a core where absent
    sequence_length: int = 128
    pack: bool = False  # several examples share a row of training; train.batch_size counts rows
    whole_word: bool = False
    balance_nsp: bool = True


@dataclasses.dataclass
class OptimizerSection:
    """Adam or LAMB with decoupled weight decay."""

    name: str = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    warmup_fraction: float = 0.0  # of all steps, where warmup_steps is 0
    schedule: str = "linear"
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    clip_norm: float = 1.0  # of the global gradient; 0 leaves it as it is
    bias_correction: bool = True  # Google's BERT has none


@dataclasses.dataclass
class TrainSection:
    """How long, how large, how often."""

    steps: int = 1000
    epochs: float | None = None  # over the training data of a fine-tuning run; decides steps
    batch_size: int = 32  # the global batch, in examples
    accumulate: int = 1  # micro-batches a step
    dtype: str = "float32"
    remat: str = "none"  # what the backward pass finds kept; dots and full compute more again, and take less memory
    log_every: int = 50
    eval_every: int = 500
    eval_examples: int = 2000  # of pretraining, scored at each evaluation; a plan's epochs follow each other up to it
    patience: int = 0  # evaluations without a better one after which the run ends; 0: never
    profile: str | None = None  # the first and last step of a profiler trace, such as 100:105
    stall_seconds: float = 600.0  # a step, batch, evaluation or checkpoint that takes longer is told; 0: never


@dataclasses.dataclass
class ParallelSection:
    """How a step is spread over devices."""

    strategy: str = "auto"
    data: int = -1  # devices on the data axis; -1 takes the rest
    fsdp: int = 1  # devices that share parameters and optimizer, and split the batch too; -1 takes the rest


@dataclasses.dataclass
class CheckpointSection:
    """How often to save, and how many to keep beside the best."""

    every: int = 500
    keep: int = 2


@dataclasses.dataclass
class RunConfig:
    """Everything that decides a run; saved resolved as config.yaml in its folder."""

    model: ModelSection = dataclasses.field(default_factory=ModelSection)
    tokenizer: TokenizerSection = dataclasses.field(default_factory=TokenizerSection)
    data: DataSection = dataclasses.field(default_factory=DataSection)
    optimizer: OptimizerSection = dataclasses.field(default_factory=OptimizerSection)
    task: TaskSettings = dataclasses.field(default_factory=TaskSettings)
    train: TrainSection = dataclasses.field(default_factory=TrainSection)
    parallel: ParallelSection = dataclasses.field(default_factory=ParallelSection)
    checkpoint: CheckpointSection = dataclasses.field(default_factory=CheckpointSection)
    seed: int = 0
    out: str = "runs/run"


SECTIONS = tuple(field.name for field in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(field.type))


def _key_types() -> dict[str, tuple[Any, ...]]:
    """Every dotted key with the types of its value, such as (str, list[str], NoneType)."""
    hints = typing.get_type_hints(RunConfig)
    for section in SECTIONS:
        hints |= {f"{section}.{name}": hint for name, hint in typing.get_type_hints(hints.pop(section)).items()}
    return {key: typing.get_args(hint) or (hint,) for key, hint in hints.items()}


KEYS = _key_types()
PATHS = ("out", "data.train", "data.eval", "data.store", "model.init_from", "tokenizer.path")
LOCAL = ("out", "data.store", "model.init_from", "tokenizer.path")  # paths that cannot be addresses
LISTS = {
    "data.train": "a path or a list of paths",
    "data.eval": "a path or a list of paths",
    "task.choices": "a column or a list of columns",
}
WANTED = {str: "a text", bool: "true or false", int: "a whole number", float: "a finite number"}
CHOICES = {
    "tokenizer.kind": (None, "wordpiece", "bpe"),
    "optimizer.name": ("adamw", "lamb"),
    "optimizer.schedule": ("linear", "cosine", "constant"),
    "task.kind": (None, *KINDS),
    "task.too_long": ("cut", "drop"),
    "train.dtype": ("float32", "bfloat16"),
    "train.remat": ("none", "dots", "full"),
    "parallel.strategy": ("auto", "jit", "pmap", "mesh"),
}
AT_LEAST = {
    "train.steps": 1,
    "train.batch_size": 1,
    "train.accumulate": 1,
    "train.log_every": 1,
    "train.eval_every": 1,
    "train.eval_examples": 1,
    "train.patience": 0,
    "train.stall_seconds": 0,
    "task.lm_weight": 0,
    "task.max_question": 1,
    "task.stride": 1,
    "task.n_best": 1,
    "task.max_answer": 1,
    "optimizer.warmup_fraction": 0,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "data.sequence_length": 8,
    "optimizer.warmup_steps": 0,
    "optimizer.clip_norm": 0,
    "optimizer.weight_decay": 0,
    "optimizer.learning_rate": 0,
    "optimizer.b1": 0,
    "optimizer.b2": 0,
    "optimizer.eps": 0,
    "tokenizer.vocab_size": 30,
    "data.workers": 1,
    "seed": 0,
}
UNDER = {"optimizer.warmup_fraction": 1, "optimizer.b1": 1, "optimizer.b2": 1, "seed": 2**31}
SIZES = (
    "architecture",
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "mlp_size",
    "max_positions",
    "type_vocab_size",
)
MAY_CHANGE = (
    "train.steps",
    "train.epochs",
    "train.patience",
    "train.profile",
    "train.remat",
    "train.stall_seconds",
    "train.log_every",
    "train.eval_every",
    "checkpoint",
    "parallel",
    "data.workers",
    "out",
)


def load(file: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in a YAML file, changed by `dotted.key=value` overrides.

    A key that holds text takes it as the file spells it: `007` and `no` are texts. Comments and quotes mean what they
    do in YAML, and null, ~ and nothing are None. An override gives such a key its text literally, except that null is
    None, and that `[...]` is a YAML list for a key that may hold one. A path may begin with `~/`, the home folder. A
    recipe may be given by its name alone, such as bert_demo.

    Raises:
        InputError: no such file, not YAML, an unknown key (the nearest is named), a wrong type or an impossible value.
    """
    file = find_recipe(file)
    return _build(RunConfig(), [(f"{file}: ", _dotted(read_yaml(file), file)), *_layers(overrides)])


def find_recipe(name: str) -> str:
    """The file of a recipe that is given by its name alone, such as bert_demo; any other name as it is."""
    if Path(name).exists() or not re.fullmatch(r"\w+", name):
        return name
    here = Path(__file__).parent
    folder = next(folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir())
    recipes = {path.stem: str(path) for path in sorted(folder.rglob("*.yaml"))}
    if name not in recipes:
        raise InputError(f"{name}: no such file, and no such recipe; the recipes are {', '.join(recipes)}")
    return recipes[name]


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The configuration, changed by `dotted.key=value` overrides; values and errors as `load`."""
    return _build(config, _layers(overrides))


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested values, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def save(config: RunConfig, path: Path) -> None:
    """Writes the configuration as YAML, from which `load` makes an equal one."""
    write_yaml(to_dict(config), path)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """`key (old -> new)` of everything that differs and may not change on resume."""
    old_values, new_values = flatten(to_dict(old)), flatten(to_dict(new))
    return [
        f"{key} ({old_values.get(key)} -> {value})"
        for key, value in new_values.items()
        if old_values.get(key) != value and not any((key + ".").startswith(name + ".") for name in MAY_CHANGE)
    ]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries -> dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def text_source(config: RunConfig) -> TextSource:
    """What the token store is made from.

    Raises:
        InputError: data.train is absent.
    """
    if not config.data.train:
        raise InputError("data.train is missing; give a file, folder or glob of text: data.train=PATH")
    names = (field.name for field in dataclasses.fields(TextSource))
    return TextSource(**{name: getattr(config.data, name) for name in names})


def model_config(config: RunConfig, vocab_size: int, base: ModelConfig | None = None) -> ModelConfig:
    """The model: the preset (or `base`, the model started from) with the section's own fields over it.

    Raises:
        InputError: neither preset nor all sizes given, or sizes that do not fit the tokenizer or the sequences.
    """
    section = dataclasses.asdict(config.model)
    preset, _ = section.pop("preset"), section.pop("init_from")
    fields = {name: value for name, value in section.items() if value is not None}
    if base is None:
        fields.setdefault("vocab_size", vocab_size)
    if base is not None:
        model = ModelConfig(**(dataclasses.asdict(base) | fields))
        _check_same_sizes(base, model)
    elif preset is not None:
        model = presets.get(preset, **fields)
    else:
        model = _without_preset(fields)
    if model.vocab_size < vocab_size:
        raise InputError(
            f"model.vocab_size {model.vocab_size} is under the tokenizer's {vocab_size}: token ids up to "
            f"{vocab_size - 1} would be beyond the vocabulary; leave model.vocab_size out"
        )
    if config.data.sequence_length > model.max_positions:
        raise InputError(
            f"data.sequence_length {config.data.sequence_length} is over model.max_positions {model.max_positions}; "
            + ("lower it, or raise model.max_positions" if base is None else "lower it, as the weights have no more")
        )
    return model


def _check_same_sizes(base: ModelConfig, model: ModelConfig) -> None:
    """The weights that a run starts from fix every size."""
    for field in SIZES:
        old, new = getattr(base, field), getattr(model, field)
        if old != new:
            raise InputError(f"model.{field} is {new}, but the weights to start from have {old}; leave it out")


def _without_preset(fields: dict[str, Any]) -> ModelConfig:
    needed = ("architecture", "hidden_size", "num_layers", "num_heads", "mlp_size")
    missing = [f"model.{name}" for name in needed if name not in fields]
    if missing:
        raise InputError(f"model.preset is missing; give it (one of {', '.join(presets.ALL)}) or {', '.join(missing)}")
    constants: dict[str, Any] = (
        {"layer_norm_eps": 1e-5, "activation": "gelu_tanh"} if fields["architecture"] == "gpt" else {}
    )
    return ModelConfig(**(constants | fields))


def _dotted(values: dict[Any, Any], file: str) -> dict[str, Any]:
    """The values of a file by dotted keys.

    Raises:
        InputError: an unknown key, or a section without keys.
    """
    dotted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in SECTIONS:
            if "." in str(name):
                raise InputError(f"{file}: {name}: a dotted key is for the command line; in a file, nest the keys")
            _check_key(str(name), file)
            dotted[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                _check_key(f"{name}.{key}", file)
                dotted[f"{name}.{key}"] = inner
        else:
            raise InputError(f"{file}: {name} must hold keys, such as {_first_key(name)}; give one or leave {name} out")
    return dotted


def _check_key(name: str, source: str) -> None:
    if name in SECTIONS:
        raise InputError(f"{source}: {name} is a section; give a key of it, such as {_first_key(name)}")
    if name not in KEYS:
        near = difflib.get_close_matches(name, [*KEYS, *SECTIONS], 1, 0.0)
        raise InputError(f"{source}: unknown key {name}; did you mean {near[0]}?")


def _first_key(section: str) -> str:
    return next(key for key in KEYS if key.startswith(f"{section}."))


def _layers(overrides: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    return [("", _parse_override(item)) for item in overrides]


def _parse_override(item: str) -> dict[str, Any]:
    """`key=value` -> the key with None, a text or a list of texts."""
    key, _, text = item.partition("=")
    if "=" not in item or not key:
        raise InputError(f"{item!r}: overrides look like dotted.key=value")
    _check_key(key, item)
    if text == "null":
        return {key: None}
    if key not in LISTS or not (text.startswith("[") and text.endswith("]")):
        return {key: text}
    found = scalar(text)
    if not _is_texts(found):
        raise InputError(f"{key} is {text}; it must be {LISTS[key]} (quote an item such as 7 or no)")
    return {key: found}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


def _build(base: RunConfig, layers: Sequence[tuple[str, dict[str, Any]]]) -> RunConfig:
    """The configuration changed by layers of (what errors begin with, values by dotted key)."""
    config = copy.deepcopy(base)
    for source, values in layers:
        for key, given in values.items():
            section, _, name = key.rpartition(".")
            setattr(getattr(config, section) if section else config, name, _value(key, given, source))
    _check_values(config)
    return config


def _value(key: str, given: Any, source: str) -> Any:
    """What a file or an override gives for a key, as a value of the key's type.

    Raises:
        InputError: it is none; the error begins with `source`.
    """
    kind, optional = KEYS[key][0], type(None) in KEYS[key]
    value = scalar(given) if isinstance(given, str) and kind is not str else given
    if value is None and optional:
        return None
    if kind is not str:
        value = number(kind, value)
    elif not (isinstance(value, str) and value) and not (key in LISTS and _is_texts(value)):
        value = None
    if value is None:
        wanted = LISTS.get(key, WANTED[kind]) + (", or null" if optional else "")
        raise InputError(f"{source}{key} is {_shown(given)}; it must be {wanted}")
    return expand_home(value, f"{source}{key}") if key in PATHS else value


def _shown(given: Any) -> str:
    """A value in an error; one that may be of any size by its kind alone."""
    if isinstance(given, str):
        return repr(given[:80]) if given else "empty"
    return "null" if given is None else f"a {'list' if isinstance(given, list) else 'mapping'}"


def expand_home(path: Any, name: str) -> Any:
    """A path, or each of a list, with the home folder in the place of a `~` at its beginning, as a shell has it.

    Raises:
        InputError: there is no home folder, or no file can have such a name; the error begins with `name`.
    """
    if isinstance(path, list):
        return [expand_home(item, name) for item in path]
    if "\0" in path or any("\ud800" <= character < "\udc80" or "\udcff" < character <= "\udfff" for character in path):
        raise InputError(f"{name} is {path[:80]!r}, which no file can be called; give another path")
    if path != "~" and not path.startswith("~/"):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise InputError(f"{name} is {path}, but no home folder is known; set HOME or give the full path")
    return expanded


def _check_values(config: RunConfig) -> None:
    flat = flatten(to_dict(config))
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            raise InputError(f"{key} is {flat[key]!r}; choose one of {', '.join(c for c in choices if c)}")
    for key, least in AT_LEAST.items():
        if flat[key] is not None and flat[key] < least:
            raise InputError(f"{key} is {flat[key]}; it must be at least {least}")
    for key, limit in UNDER.items():
        if flat[key] >= limit:
            raise InputError(f"{key} is {flat[key]}; it must be under {limit}")
    for key in LOCAL:
        if flat[key] is not None:
            check_local(key, flat[key])
    if config.train.epochs is not None and not 0 < config.train.epochs < 1e6:
        raise InputError(f"train.epochs is {config.train.epochs}; it must be above 0 and under 1,000,000")
    if config.train.profile is not None:
        parse_steps(config.train.profile)
    if not 0 < config.data.eval_fraction < 1:
        raise InputError(f"data.eval_fraction is {config.data.eval_fraction}; it must be between 0 and 1")


def parse_steps(text: str) -> tuple[int, int]:
    """`100:105` -> the first and the last step of a trace.

    Raises:
        InputError: it does not read so.
    """
    first, _, last = text.partition(":")
    short = max(len(first), len(last)) <= 18
    if not (short and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise InputError(f"train.profile is {text[:40]!r}; give the first and the last step, such as 100:105")
    return int(first), int(last)
