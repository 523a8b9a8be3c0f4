"""The one exception for a mistake that the user can mend."""

from pathlib import Path
from typing import Any

LONGEST = 1000  # characters of a message; what a file holds may be longer


class InputError(ValueError):
    """A file, key or value that the user gave is wrong.

    The message is one line of bounded length, whatever stood in the file: it names the file, key or value and says
    what to do. The command line prints it and exits with 2; every other exception is a fault of the program.
    """

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
        half = LONGEST // 2
        super().__init__(line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}")


def check_ids(ids: Any, vocab_size: int) -> None:
    """
    Raises:
        InputError: an id of the array is beyond the vocabulary, which JAX would clamp in silence.
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise InputError(f"token ids from {ids.min()} to {ids.max()} do not fit the vocabulary of {vocab_size}")


def check_regular(file: Path) -> None:
    """
    Raises:
        InputError: the path names a pipe, a device, a socket or a folder: reading one may wait or go on for ever.
    """
    if file.is_dir():
        raise InputError(f"{file}: a folder; give a file")
    if file.exists() and not file.is_file():
        raise InputError(f"{file}: a pipe or a device, which cannot be read twice; write what it gives to a file")
