"""The one exception for a mistake that the user can mend."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ADDRESS = re.compile(r"[A-Za-z][\w+.:-]+:/")  # gs://bucket/x; gs:/bucket/x is what Path makes of it
LONGEST = 1000  # characters of a message; what a file holds may be longer


class InputError(ValueError):
    """A file, key or value that the user gave is wrong.

    The message is one line of bounded length, whatever stood in the file: it names the file, key or value and says
    what to do. The command line prints it and exits with 2; every other exception is a fault of the program.
    """

    def __init__(self, message: str) -> None:
        line = one_line(message)
        half = LONGEST // 2
        super().__init__(line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}")


def one_line(text: str) -> str:
    """The text in one line and without what cannot be printed, which names in an untrusted file may hold."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def check_ids(ids: Any, vocab_size: int) -> None:
    """
    Raises:
        InputError: an id of the array is outside the vocabulary, so that its row's outputs would be NaN.
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise InputError(f"token ids from {ids.min()} to {ids.max()} do not fit the vocabulary of {vocab_size}")


def check_local(name: str, path: str | Path) -> None:
    """
    Raises:
        InputError: the path, which `name` was given, is an address such as gs://bucket/x.
    """
    if ADDRESS.match(str(path)):
        raise InputError(
            f"{name} is {path}, an address; give a folder on this machine or on a disk that machines share "
            "(text alone, data.train and data.eval, is read from addresses)"
        )


def check_array(
    name: str, array: Any, axes: str, sizes: Mapping[str, Any] | None = None, *, integer: bool = True
) -> dict[str, Any]:
    """Checks what is known of an array before its values are, so also while JAX traces.

    Args:
        name: the argument's, for the message.
        array: NumPy's or JAX's.
        axes: a letter for each axis, such as "BT".
        sizes: of the axes that are given; the others may have any.
        integer: whether it must hold whole numbers.

    Returns:
        The size of every axis.

    Raises:
        InputError: it is no such array.
    """
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    found = {} if shape is None else dict(zip(axes, shape, strict=False))
    known = {axis: size for axis, size in (sizes or {}).items() if axis in axes}
    fits = shape is not None and len(shape) == len(axes) and found | known == found
    kind = getattr(dtype, "kind", None)  # torch's have none
    if fits and kind is not None and (kind in "iu" or not integer):
        return found
    wanted = f"[{' '.join(axes)}]" + (f" = [{' '.join(str(known.get(axis, axis)) for axis in axes)}]" if known else "")
    given = f"a Python {type(array).__name__}" if shape is None else f"{dtype} [{' '.join(map(str, shape))}]"
    raise InputError(f"{name} must be an {'integer ' if integer else ''}array {wanted}, not {given}")


def check_regular(file: Path) -> None:
    """
    Raises:
        InputError: the path names a pipe, a device, a socket or a folder: reading one may wait or go on for ever.
    """
    if file.is_dir():
        raise InputError(f"{file}: a folder; give a file")
    if file.exists() and not file.is_file():
        raise InputError(f"{file}: a pipe or a device, which may never end; write what it gives to a file")
