"""The run's configuration: strict dataclasses, filled from YAML and dotted overrides."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bertgpt import presets
from bertgpt.config import ModelConfig
from bertgpt.data.store import TextSource
from bertgpt.data.task import KINDS, TaskSettings
from bertgpt.errors import InputError


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

    train: Any = None  # a path, folder, glob or package:NAME/FILE, or a list of them
    eval: Any = None
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
    stall_seconds: float = 600  # a step, batch, evaluation or checkpoint that takes longer is told; 0: never


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

    Raises:
        InputError: no such file, not YAML, an unknown key (the nearest is named), a wrong type or an impossible value.
    """
    try:
        loaded = OmegaConf.load(file)
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise InputError(f"{file}: cannot be read: {_one_line(error)}") from error
    except Exception as error:  # PyYAML's errors share no base that OmegaConf exports
        raise InputError(f"{file}: not YAML: {_one_line(error)}") from error
    layers = [loaded, *(_parse_override(item) for item in overrides)]
    for layer, source in zip(layers, [file, *overrides], strict=True):
        if not isinstance(layer, DictConfig):
            raise InputError(f"{source}: must hold keys and values")
        _check_keys(OmegaConf.to_container(layer), source)
    return _build(layers, file)


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The configuration, changed by `dotted.key=value` overrides; errors as `load`."""
    layers = [_parse_override(item) for item in overrides]
    for layer, source in zip(layers, overrides, strict=True):
        _check_keys(OmegaConf.to_container(layer), source)
    return _build([OmegaConf.create(to_dict(config)), *layers], "arguments")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested values, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def save(config: RunConfig, path: Path) -> None:
    """Writes the configuration as YAML."""
    OmegaConf.save(OmegaConf.create(to_dict(config)), path)


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


def _parse_override(item: str) -> DictConfig:
    if "=" not in item or item.startswith("="):
        raise InputError(f"{item!r}: overrides look like dotted.key=value")
    key, _, value = item.partition("=")
    if re.fullmatch(r"\d+:\d+", value):  # 2:30 is a number to base 60 in YAML
        item = f"{key}='{value}'"
    try:
        return OmegaConf.from_dotlist([item])
    except Exception as error:
        raise InputError(f"{item!r}: not a value: {_one_line(error)}") from error


def _known_keys() -> set[str]:
    known = flatten(to_dict(RunConfig()))
    return set(known) | {key.rpartition(".")[0] for key in known if "." in key}


def _check_keys(values: Any, source: str, prefix: str = "") -> None:
    known = _known_keys()
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)
            raise InputError(f"{source}: unknown key {name}; did you mean {near[0]}?")
        if isinstance(value, dict):
            _check_keys(value, source, f"{name}.")


def _build(layers: Sequence[Any], source: str) -> RunConfig:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), *layers)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(f"{source}: {error.full_key or 'configuration'}: {_one_line(error)}") from error
    assert isinstance(config, RunConfig)
    _check_values(config)
    return config


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
    for key in ("data.train", "data.eval"):
        if flat[key] is not None and not _is_inputs(flat[key]):
            raise InputError(f"{key} is {flat[key]!r}; it must be a path or a list of paths")
    if not _is_inputs(config.task.choices):
        raise InputError(f"task.choices is {config.task.choices!r}; it must be a column or a list of columns")
    if config.train.epochs is not None and not 0 < config.train.epochs < 1e6:
        raise InputError(f"train.epochs is {config.train.epochs}; it must be above 0")
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
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise InputError(
            f"train.profile is {text!r}; give the first and the last step, such as 100:105 (in a file within quotes)"
        )
    return int(first), int(last)


def _is_inputs(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _one_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
