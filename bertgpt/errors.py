"""The exception for mistakes that the user can correct, and checks that raise it."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ADDRESS = re.compile(r"[A-Za-z][\w+.:-]+:/")  # gs://bucket/x, or gs:/bucket/x after a conversion to Path
LONGEST = 1000  # characters of a message, which may quote a value of any length from a file
POINTER = b"version https://git-lfs.github.com/spec/"  # how a git-lfs pointer begins
SHOWN = 200  # characters of a value in a message


class InputError(ValueError):
    """A file, key or value that the user gave is wrong.

    The message names the file, key or value and says what to do. It is always one line of bounded length, even if it
    quotes a file. The command line prints it and exits with 2. Every other exception is a bug in the program.
    """

    def __init__(self, message: str) -> None:
        line = one_line(message)
        half = LONGEST // 2
        super().__init__(line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}")


def one_line(text: str) -> str:
    """Return the text as one line, with long words cut, and unprintable characters (of untrusted names) as "?"."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(map(excerpt, text.split())))


def excerpt(value: object) -> str:
    """Return a value as a message shows it: of over `SHOWN` characters, only the first and the last ones."""
    text = str(value)
    half = SHOWN // 2 - 2
    return text if len(text) <= SHOWN else f"{text[:half]}...{text[-half:]}"


def quoted(value: object) -> str:
    """Return a value in quotes, as `excerpt` cuts it."""
    return excerpt(repr(value))


def check_ids(ids: Any, vocab_size: int) -> None:
    """Reject token ids outside the vocabulary, which would make the outputs of their row NaN.

    Raises:
        InputError: an id of the array is outside the vocabulary.
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise InputError(
            f"token ids from {ids.min()} to {ids.max()} do not fit the vocabulary of {vocab_size}; "
            "use the model's own tokenizer"
        )


def check_local(name: str, path: str | Path) -> None:
    """Reject an address where a local path is needed; `name` is the key or argument, for the message.

    Raises:
        InputError: the path is an address such as gs://bucket/x.
    """
    if ADDRESS.match(str(path)):
        raise InputError(
            f"{name} is {path}, an address; give a folder on a local or shared disk "
            "(text, runs and models can be read from an address, and runs be written to gs://)"
        )


def check_array(
    name: str, array: Any, axes: str, sizes: Mapping[str, Any] | None = None, *, integer: bool = True
) -> dict[str, Any]:
    """Check the shape and dtype of an array. Values are not read, so it also works while JAX traces.

    Args:
        name: the name of the argument, for the message.
        array: a NumPy or JAX array.
        axes: one letter per axis, such as "BT".
        sizes: the required size of some axes; the rest may have any size.
        integer: whether the dtype must be an integer type.

    Returns:
        The size of each axis.

    Raises:
        InputError: it is not such an array.
    """
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    found = {} if shape is None else dict(zip(axes, shape, strict=False))
    known = {axis: size for axis, size in (sizes or {}).items() if axis in axes}
    fits = shape is not None and len(shape) == len(axes) and found | known == found
    kind = getattr(dtype, "kind", None)  # None for a torch dtype
    if fits and kind is not None and (kind in "iu" or not integer):
        return found
    wanted = f"[{' '.join(axes)}]" + (f" = [{' '.join(str(known.get(axis, axis)) for axis in axes)}]" if known else "")
    given = f"a Python {type(array).__name__}" if shape is None else f"{dtype} [{' '.join(map(str, shape))}]"
    raise InputError(f"{name} must be an {'integer ' if integer else ''}array {wanted}, not {given}")


def check_not_pointer(file: object, start: bytes) -> None:
    """Reject the pointer that git leaves in place of a large file if git-lfs is not installed.

    Args:
        file: the file's name, for the message.
        start: the file's first bytes.

    Raises:
        InputError: they are those of a pointer.
    """
    if start.startswith(POINTER):
        raise InputError(
            f"{file}: is a git-lfs pointer, not the file itself; install git-lfs and run git lfs pull in its folder, "
            "or download the file"
        )


def check_regular(file: Path) -> None:
    """Reject a path that is not a regular file, since reading it may block or never end, and a git-lfs pointer.

    Raises:
        InputError: the path is a pipe, a device, a socket or a folder, or the file is a pointer.
    """
    if file.is_dir():
        raise InputError(f"{file}: is a folder; give a file")
    if file.exists() and not file.is_file():
        raise InputError(f"{file}: is a pipe or a device, which may never end; write its contents to a file")
    with contextlib.suppress(OSError), file.open("rb") as opened:  # who reads the file reports the error
        check_not_pointer(file, opened.read(len(POINTER)))
