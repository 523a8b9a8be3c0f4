"""YAML files whose scalars are loaded as text, and the conversion of scalars to numbers."""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from bertgpt.errors import InputError

from .atomic_files import write_whole

MAX_YAML = 1 << 20  # most bytes of a configuration
NULL = "tag:yaml.org,2002:null"
TRUTH = {"true": True, "yes": True, "y": True, "on": True, "1": True} | {
    "false": False,
    "no": False,
    "n": False,
    "off": False,
    "0": False,
}


class AsSpelt(yaml.BaseLoader):
    """Loads each scalar as its text in the file; null, ~ and an empty value are None."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Also merge `<<` and reject duplicate keys, which BaseLoader does not."""
        self._merge(node)
        return super().construct_mapping(node, deep=deep)

    def _merge(self, node: yaml.Node) -> None:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "<< needs keys and values", node.start_mark)
        pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a text", key.start_mark)
            if key.value in pairs:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
            if key.value == "<<":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            else:
                pairs[key.value] = (key, value)
        for other in merged:  # the first mapping that has a key decides its value
            self._merge(other)
            for pair in other.value:
                pairs.setdefault(pair[0].value, pair)
        node.value = list(pairs.values())


AsSpelt.add_implicit_resolver(NULL, re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
AsSpelt.add_constructor(NULL, lambda loader, node: None)


def read_yaml(file: str) -> dict[Any, Any]:
    """Load a YAML file: texts as in the file, None, and lists and dictionaries of these.

    Raises:
        InputError: the file is missing, too large, not YAML, or not a mapping.
    """
    try:
        with open(file, "rb") as stream:
            raw = stream.read(MAX_YAML + 1)
        if len(raw) > MAX_YAML:
            raise InputError(f"{file}: over {MAX_YAML} bytes; not a configuration")
        values = yaml.load(raw, AsSpelt)
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{file}: is a folder; give a YAML file (of a run: {file}/config.yaml)") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    except RecursionError as error:
        raise InputError(f"{file}: not YAML that can be read: nested too deeply") from error
    except (ValueError, OverflowError) as error:  # an escape beyond Unicode
        raise InputError(f"{file}: not YAML that can be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = f"line {mark.line + 1}: {error.problem}" if mark else str(error)  # type: ignore[attr-defined]
        advice = "; indent with spaces" if "'\\t'" in problem else ""
        raise InputError(f"{file}: not YAML: {problem}{advice}") from error
    if not isinstance(values, dict | None):
        raise InputError(
            f"{file}: not a configuration: it must contain keys and values, such as train: {{steps: 1000}}"
        )
    return values or {}


class Dumper(yaml.SafeDumper):
    """Quotes and escapes line breaks and control characters; PyYAML would load its own U+0085 as a newline."""


Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


def write_yaml(values: dict[str, Any], path: Path) -> None:
    """Write values as YAML; `read_yaml` returns the same texts, None and lists."""
    write_whole(path, yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True))


def scalar(text: str) -> Any:
    """Parse a text as a YAML scalar; return the text if it is not YAML, or a base-60 number such as 1:30."""
    try:
        value = yaml.safe_load(text)
    except Exception:  # the constructor of a tag such as !!bool may raise any exception
        return text
    return text if isinstance(value, int | float) and ":" in text else value


def number(kind: type, value: Any) -> bool | int | float | None:
    """Convert a result of `scalar` to a bool, int or finite float; None if this fails or changes the value."""
    try:
        if kind is bool:
            return TRUTH.get(str(value).lower()) if isinstance(value, bool | int | str) else None
        if isinstance(value, bool) or not isinstance(value, (int, str) if kind is int else (int, float, str)):
            return None
        found = kind(value)
        return found if math.isfinite(found) else None
    except (ValueError, OverflowError):
        return None
