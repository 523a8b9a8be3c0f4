"""Files of one bit a value, the lowest bit of a byte first."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

BLOCK = 1 << 17  # bytes read at a time


class Bits:
    """Writes arrays of bool to a file, one after the other; with None as its path, it writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self.file = path.open("wb") if path else None
        self.rest = np.zeros(0, bool)  # fewer than eight values

    def __enter__(self) -> "Bits":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.write(np.packbits(self.rest, bitorder="little").tobytes())
            self.file.close()

    def write(self, values: np.ndarray) -> None:
        """Appends values [N] bool."""
        values = np.concatenate([self.rest, values])
        whole = len(values) // 8 * 8
        self.rest = values[whole:]
        if self.file:
            self.file.write(np.packbits(values[:whole], bitorder="little").tobytes())


def size(count: int) -> int:
    """The number of bytes of `count` values."""
    return -(-count // 8)


def read(path: Path, count: int) -> Iterator[np.ndarray]:
    """The first `count` values of a file, in blocks."""
    for first in range(0, size(count), BLOCK):
        found = np.unpackbits(np.fromfile(path, np.uint8, BLOCK, offset=first), bitorder="little")
        yield found[: count - 8 * first].astype(bool)
