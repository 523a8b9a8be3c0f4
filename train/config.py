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

from bertgpt.data.tasks.readers import FIRST_AND_LAST
from bertgpt.data.text import segmenter
from bertgpt.data.text.text_source import TextSource
from bertgpt.errors import InputError, excerpt, quoted
from bertgpt.hub import check_folder_or_name
from bertgpt.settings import Rules

from .addresses import check_mirror, check_run_address, is_storage
from .hints import hint
from .sections import KEYS, SECTIONS, RunConfig
from .yaml_files import number, read_yaml, scalar, write_yaml

NUMBERS = list[float]
LARGEST: dict[type, int | float] = {int: 2**31 - 1, float: 3.4e38}  # that arrays of 32 bits hold
WANTED = {str: "a text", bool: "true or false", int: "a whole number", float: "a finite number"}


def load(file: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a configuration from a YAML file, and apply `dotted.key=value` overrides.

    The value of a text key is the text in the file, uninterpreted: `007` and `no` are texts. Comments and quotes have
    their meaning in YAML; null, ~ and an empty value are None. An override of a text key is taken literally, with two
    exceptions: null is None, and `[...]` is a YAML list if the key accepts a list. A path may begin with `~/`, the home
    folder. A recipe may be given by name, such as bert_demo.

    Raises:
        InputError: no such file, not YAML, an unknown key (the error names the nearest), a wrong type or an invalid
            value.
    """
    file = find_recipe(file)
    return _build(RunConfig(), [(f"{file}: ", _dotted(read_yaml(file), file)), *_layers(overrides)])


def load_run(file: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load the configuration of a run to start or resume.

    Raises:
        InputError: as `load`; or the file is in the folder of a run that was moved or copied.
    """
    config, folder = load(file, overrides), Path(file).parent
    moved = Path(file).name == "config.yaml" and (folder / "checkpoints").is_dir()
    elsewhere = is_storage(config.out) or Path(config.out).resolve() != folder.resolve()
    if moved and elsewhere and not any(given.startswith("out=") for given in overrides):
        raise InputError(
            f"{file} is in a run folder, but its out is {config.out}; add out={folder} to train here, or "
            f"out={config.out} to train there"
        )
    return config


def find_recipe(name: str) -> str:
    """Return the file of a recipe given by name, such as bert_demo; return any other path unchanged."""
    if "=" in name and not Path(name).exists():
        raise InputError(
            f"{name}: the first argument must be a YAML file or a recipe, such as bert_demo; settings follow"
        )
    if re.fullmatch(r"[\w-]+", name) is None or Path(name).is_file():
        return name
    here = Path(__file__).parent
    folder = next((found for found in (here / "configs", here.parent / "configs") if found.is_dir()), here)
    recipes = {path.stem: str(path) for path in sorted(folder.rglob("*.yaml"))}
    if name not in recipes and Path(name).exists():
        return name
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"{name}: no such file or recipe; {meant}the recipes are {', '.join(recipes)}")
    return recipes[name]


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Apply `dotted.key=value` overrides to a configuration; values and errors as in `load`."""
    return _build(config, _layers(overrides))


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries, for YAML or JSON."""
    return dataclasses.asdict(config)


def save(config: RunConfig, path: Path) -> None:
    """Write the configuration as YAML; `load` returns an equal one."""
    write_yaml(to_dict(config), path)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """`key (old -> new)` for each key that differs and may not change on resume."""
    old_values, new_values = flatten(to_dict(old)), flatten(to_dict(new))
    return [
        f"{key} ({old_values.get(key)} -> {value})"
        for key, value in new_values.items()
        if old_values.get(key) != value and not KEYS[key].rules.resumable
    ]


def keep_decided(old: RunConfig, new: RunConfig) -> None:
    """Use what a run decided when it began: the commit of the same `model.init_from`, and the objective of the same
    model."""
    a, b = old.model, new.model
    if b.init_commit is None and (a.init_from, a.init_revision) == (b.init_from, b.init_revision):
        b.init_commit = a.init_commit
    if new.train.objective is None and a == b:
        new.train.objective = old.train.objective
    old.train.objective = old.train.objective or new.train.objective  # runs of earlier versions did not save it
    columns = (old.task.word_column, old.task.tag_column), (new.task.word_column, new.task.tag_column)
    if columns == (FIRST_AND_LAST, (None, None)):
        new.task.word_column, new.task.tag_column = FIRST_AND_LAST  # the defaults of earlier versions


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries -> one dictionary with dotted keys; a value that is a mapping stays one."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and prefix + key not in KEYS:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def deciding_set(config: RunConfig, names: Sequence[str]) -> str:
    """The name of the held-out set that decides which checkpoint is the best.

    Raises:
        InputError: `checkpoint.best_on` is none of the names.
    """
    wanted = config.checkpoint.best_on
    if wanted is not None and wanted not in names:
        known = ", ".join(names) if any(names) else "one held-out set, without a name; set checkpoint.best_on=null"
        raise InputError(f"checkpoint.best_on is {wanted}; this run has {known}")
    return names[0] if wanted is None else wanted


def text_source(config: RunConfig) -> TextSource:
    """The text that the token store is made from, with its options.

    Raises:
        InputError: data.train is missing.
    """
    if not config.data.train:
        raise InputError("data.train is missing; set it to a file, folder or glob of text")
    names = {field.name for field in dataclasses.fields(TextSource)} - {"segmented"}
    segmented = config.data.whole_word and config.data.language == segmenter.LANGUAGE
    return TextSource(**{name: getattr(config.data, name) for name in names}, segmented=segmented)


def _dotted(values: dict[Any, Any], file: str) -> dict[str, Any]:
    """The values of a file, by dotted key.

    Raises:
        InputError: an unknown key, or a section without keys.
    """
    dotted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in SECTIONS:
            if "." in str(name):
                raise InputError(f"{file}: {name}: dotted keys are for overrides; in a file, nest the keys")
            _check_key(str(name), file)
            dotted[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                _check_key(f"{name}.{key}", file)
                dotted[f"{name}.{key}"] = inner
        else:
            raise InputError(f"{file}: {name} must contain keys, such as {_first_key(name)}; add one or remove {name}")
    return dotted


def _check_key(name: str, source: str) -> None:
    if name in SECTIONS:
        raise InputError(f"{source}: {name} is a section; give one of its keys, such as {_first_key(name)}")
    if name not in KEYS:
        known = hint(name)
        if known is not None:
            raise InputError(f"{source}: unknown key {name}; here it is {known}")
        near = difflib.get_close_matches(name, [*KEYS, *SECTIONS], 1, 0.0)
        raise InputError(f"{source}: unknown key {name}; did you mean {near[0]}?")


def option_hint(option: str) -> str:
    """What to give for an option that a command lacks, such as --lr; "" if nothing is known."""
    name = option.strip("-").replace("-", "_")
    keys = [key for key in KEYS if name in (key, key.rpartition(".")[2])]
    meant = f"{keys[0]}=..." if len(keys) == 1 else hint(name)
    return f"{option} is {meant}; " if meant else ""


def _first_key(section: str) -> str:
    return next(key for key in KEYS if key.startswith(f"{section}."))


def _layers(overrides: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    given: dict[str, Any] = {}
    for item in overrides:
        given |= _parse_override(item)
    return [("", given)]


def _parse_override(item: str) -> dict[str, Any]:
    """`key=value` -> the key, with None, a text or a list of texts."""
    key, _, text = item.partition("=")
    if "=" not in item or not key:
        raise InputError(f"{quoted(item)}: overrides look like train.steps=1000, without spaces or in quotes")
    _check_key(key, excerpt(item))
    if text == "null":
        return {key: None}
    kinds = {"[": any(kind == list[str] for kind in KEYS[key].types), "{": _mapping(key) is not None}
    opening, closing = text[:1], {"[": "]", "{": "}"}.get(text[:1], "")
    if not kinds.get(opening, False) or not text.endswith(closing):
        return {key: text}
    wanted, found = KEYS[key].rules.wanted, scalar(text)
    if not (_is_texts(found) if opening == "[" else isinstance(found, dict)):
        raise InputError(f"{key} is {excerpt(text)}; it must be {wanted} (quote an item such as 7 or no)")
    return {key: found}


def _mapping(key: str) -> type | None:
    """The type of the values if the value of a key may be a mapping; None if it may not."""
    kinds = [typing.get_args(kind)[1] for kind in KEYS[key].types if typing.get_origin(kind) is dict]
    return kinds[0] if kinds else None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


def _build(base: RunConfig, layers: Sequence[tuple[str, dict[str, Any]]]) -> RunConfig:
    """Apply layers of (prefix of errors, values by dotted key) to a copy of the configuration."""
    config = copy.deepcopy(base)
    for source, values in layers:
        for key, given in values.items():
            section, _, name = key.rpartition(".")
            setattr(getattr(config, section) if section else config, name, _value(key, given, source))
        _drop_superseded(config, values)
    _check_values(config)
    return config


def _drop_superseded(config: RunConfig, values: dict[str, Any]) -> None:
    """Of a recipe's preset and an override's init_from, or the reverse, keep the one that was given later.

    The same of epochs and steps: steps replace the epochs of an earlier layer. A commit is kept only with the model and
    the revision that it was given with.
    """
    model = config.model
    if values.get("model.init_from") is not None and "model.preset" not in values:
        model.preset = None
    elif values.get("model.preset") is not None and "model.init_from" not in values:
        model.init_from = model.init_step = model.init_revision = model.init_commit = None
    if values.get("train.steps") is not None and "train.epochs" not in values:
        config.train.epochs = None
    if not values.keys().isdisjoint(("model.init_from", "model.init_revision")) and "model.init_commit" not in values:
        model.init_commit = None


def _value(key: str, given: Any, source: str) -> Any:
    """Convert the value of a file or an override to the type of its key.

    Raises:
        InputError: the value has another type; the error begins with `source`.
    """
    rules, kind, optional = KEYS[key].rules, KEYS[key].types[0], KEYS[key].optional
    value = scalar(given) if isinstance(given, str) and kind is not str else given
    if value is None and optional:
        return None
    if kind == NUMBERS:
        value = _numbers(value)
    elif kind is not str:
        value = number(kind, value)
    elif isinstance(value, dict):
        value = _parts(value, _mapping(key))
    elif not (isinstance(value, str) and value) and not (list[str] in KEYS[key].types and _is_texts(value)):
        value = None
    if value is None:
        wanted = (rules.wanted or WANTED[kind]) + (", or null" if optional else "")
        raise InputError(f"{source}{key} is {_shown(given)}; it must be {wanted}")
    return expand_home(value, f"{source}{key}") if rules.path else value


def _numbers(value: Any) -> list[Any] | None:
    """Convert a list of texts or numbers to floats; None if it is not such a list."""
    if not isinstance(value, list):
        return None
    found = [number(float, scalar(item) if isinstance(item, str) else item) for item in value]
    return None if None in found else found


def _parts(given: dict[Any, Any], kind: type | None) -> dict[str, Any] | None:
    """Convert the weights of a mixture, or check the names and paths of held-out sets; None if one is not valid."""
    if kind is str:
        valid = all(
            re.fullmatch(r"[\w-]+", str(name)) and isinstance(path, str) and path for name, path in given.items()
        )
        return given if given and valid else None
    weights = {path: number(float, scalar(w) if isinstance(w, str) else w) for path, w in given.items()}
    valid = kind is float and all(
        isinstance(path, str) and path and w and 0 < w < LARGEST[float] for path, w in weights.items()
    )
    return weights if given and valid else None


def _shown(given: Any) -> str:
    """A value as errors show it: a short text, or the kind of a list or mapping, which may be long."""
    if isinstance(given, str):
        return quoted(given) if given else "empty"
    return "null" if given is None else f"a {'list' if isinstance(given, list) else 'mapping'}"


def expand_home(path: Any, name: str) -> Any:
    """Replace a leading `~` of a path, or of each path in a list, by the home folder, as a shell does.

    Raises:
        InputError: the home folder is unknown, or no file can have this name; the error begins with `name`.
    """
    if isinstance(path, list):
        return [expand_home(item, name) for item in path]
    if isinstance(path, dict) and all(isinstance(value, str) for value in path.values()):
        return {part: expand_home(value, name) for part, value in path.items()}
    if isinstance(path, dict):
        return {expand_home(part, name): weight for part, weight in path.items()}
    if "\0" in path or any("\ud800" <= character < "\udc80" or "\udcff" < character <= "\udfff" for character in path):
        raise InputError(f"{name} is {quoted(path)}, which is not a valid file name; give another path")
    if path != "~" and not path.startswith("~/"):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise InputError(f"{name} is {excerpt(path)}, but no home folder is known; set HOME or give the full path")
    return expanded


def _check_values(config: RunConfig) -> None:
    for key, value in flatten(to_dict(config)).items():
        if value is not None:
            _check_value(key, value, KEYS[key].rules)
    if config.train.profile is not None:
        parse_steps(config.train.profile)
    shares = config.data.mask_split
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"data.mask_split is {shares}; it must be three numbers from 0 to 1 whose sum is 1")
    if config.data.whole_word:
        segmenter.check_language(config.data.language)
    optimizer = config.optimizer
    if optimizer.schedule == "constant" and optimizer.final_fraction:
        raise InputError(
            f"optimizer.final_fraction is {optimizer.final_fraction}, but the schedule is constant; choose linear, "
            "cosine or wsd"
        )


def _check_value(key: str, value: Any, rules: Rules) -> None:
    """
    Raises:
        InputError: the value is not among the choices or out of bounds.
    """
    if rules.choices and value not in rules.choices:
        raise InputError(f"{key} is {quoted(value)}; choose one of {', '.join(rules.choices)}")
    if rules.least is not None and value < rules.least:
        raise InputError(f"{key} is {value}; it must be at least {rules.least}")
    if rules.above is not None and value <= rules.above:
        raise InputError(f"{key} is {value}; it must be above {rules.above}")
    if rules.below is not None and value >= rules.below:
        raise InputError(f"{key} is {value}; it must be under {rules.below:,.0f}")
    most = rules.most or LARGEST.get(type(value))
    if most is not None and value > most:
        raise InputError(f"{key} is {value}; it must be at most {most:,}")
    if rules.path == "run":
        check_run_address(key, value)
    if rules.path == "mirror":
        check_mirror(key, value)
    if rules.path == "model" or (rules.path == "source" and not is_storage(value)):
        check_folder_or_name(key, value)


def parse_steps(text: str) -> tuple[int, int]:
    """`100:105` -> the first and the last step of a trace.

    Raises:
        InputError: the text has another form.
    """
    first, _, last = text.partition(":")
    short = max(len(first), len(last)) <= 18
    if not (short and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise InputError(f"train.profile is {text[:40]!r}; give the first and the last step, such as 100:105")
    return int(first), int(last)
