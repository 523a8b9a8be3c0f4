"""Settings: dataclass fields with their meaning, their values, and whether a run may be resumed with another one."""

import dataclasses
from typing import Any, NamedTuple


class Rules(NamedTuple):
    """What is said of a setting.

    Attributes:
        meaning: for the documentation, in Markdown.
        choices: the values that it takes; all of its type where empty.
        least: the smallest value.
        above: a bound that the value must exceed.
        below: a bound that the value must stay under.
        resumable: whether a run may be resumed with another value.
        path: "local" or "any" (addresses too) where it is a path.
        wanted: what a list of texts holds, such as "a path or a list of paths".
    """

    meaning: str
    choices: tuple[Any, ...] = ()
    least: float | None = None
    above: float | None = None
    below: float | None = None
    resumable: bool = False
    path: str | None = None
    wanted: str | None = None


def setting(default: Any, meaning: str, **rules: Any) -> Any:
    """A dataclass field with this default and these `Rules`."""
    return dataclasses.field(default=default, metadata={"rules": Rules(meaning, **rules)})


def rules_of(field: dataclasses.Field) -> Rules:
    """The rules of a field that `setting` made."""
    return field.metadata["rules"]
