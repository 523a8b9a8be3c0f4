"""Settings: dataclass fields with a meaning, allowed values, and whether a resumed run may change them."""

import dataclasses
from typing import Any, NamedTuple


class Rules(NamedTuple):
    """The documentation and the checks of a setting.

    Attributes:
        meaning: the text of the documentation, in Markdown.
        choices: the allowed values; empty: every value of its type.
        least: the smallest allowed value.
        above: the value must be above this bound.
        below: the value must be below this bound.
        most: the largest allowed value; None: what 32 bits hold.
        resumable: whether a run may be resumed with another value.
        path: of a path, what it may be besides: "model", a name on the Hugging Face hub; "any", an address; "source",
            both; "run", an address in a bucket of Google Cloud Storage. "mirror": it is an address.
        wanted: what a list contains, such as "a path or a list of paths".
    """

    meaning: str
    choices: tuple[Any, ...] = ()
    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None
    resumable: bool = False
    path: str | None = None
    wanted: str | None = None


def setting(default: Any, meaning: str, **rules: Any) -> Any:
    """Return a dataclass field with this default and these `Rules`."""
    metadata = {"rules": Rules(meaning, **rules)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def rules_of(field: dataclasses.Field) -> Rules:
    """Return the rules of a field that `setting` made."""
    return field.metadata["rules"]
