"""The one exception for a mistake that the user can mend."""

import re
from pathlib import Path
from typing import Any

ADDRESS = re.compile(r"[A-Za-z][\w+.:-]+:/")  # gs://bucket/x; gs:/bucket/x is what Path makes of it


class InputError(ValueError):
    """A file, key or value that the user gave is wrong.

    The message is one line, whatever stood in the file: it names the file, key or value and says what to do. The
    command line prints it and exits with 2; every other exception is a fault of the program.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.replace("\0", "?").split()))


def check_ids(ids: Any, vocab_size: int) -> None:
    """
    Raises:
        InputError: an id of the array is beyond the vocabulary, which JAX would clamp in silence.
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
