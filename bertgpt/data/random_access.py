"""What all sources of examples share: rows by number."""

import abc
from collections.abc import Iterator

import numpy as np

from bertgpt.errors import InputError

Rows = dict[str, np.ndarray]


class RandomAccess(abc.ABC):
    """Examples by row number, without an end: row r is example r % len of epoch r // len.

    A row is a pure function of its number and of what the source was made from. `for` reads the rows of epoch 0 once.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of rows of an epoch."""

    @abc.abstractmethod
    def batch(self, rows: np.ndarray) -> Rows:
        """Row numbers [B] int64 -> the arrays of these rows, [B ...] by name (docs/data.md)."""

    def __getitem__(self, row: int) -> Rows:
        """One row, without the axis B.

        Raises:
            InputError: the number is negative.
        """
        if row < 0:
            raise InputError(f"row {row} does not exist; rows are counted from 0, and do not end")
        return {name: value[0] for name, value in self.batch(np.array([row])).items()}

    def __iter__(self) -> Iterator[Rows]:
        return (self[row] for row in range(len(self)))
