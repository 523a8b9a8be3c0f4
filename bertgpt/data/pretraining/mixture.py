"""A mixture of sources of examples: each gives a fixed share of the rows, and small ones repeat."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bertgpt.data.pretraining.packing import Rows


class Mixture:
    """Rows of several sources. An epoch has as many rows as all sources together, and its share of each source's rows.

    Row r of an epoch belongs to the first source whose share of the epoch ends after r. The rows of a source follow one
    another from epoch to epoch, so a source repeats a row only after all its other rows. Which examples a row has
    depends on (sources, weights, row) alone. Batches are mixed by whoever shuffles the rows of an epoch.
    """

    def __init__(self, sources: Sequence[Any], weights: Sequence[float]) -> None:
        """
        Args:
            sources: each with a length and `batch(rows)`, whose batches have the same keys and shapes.
            weights: above 0; the rows of an epoch are split in this proportion, rounded to whole rows.
        """
        self.sources = list(sources)
        total = sum(map(len, self.sources))
        ends = np.rint(np.cumsum(weights) / np.sum(weights) * total).astype(np.int64)
        self.ends = np.concatenate([[0], ends])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, row: int) -> Rows:
        return {name: value[0] for name, value in self.batch(np.array([row])).items()}

    def place(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [B] -> the number of the source of each, and its row in that source."""
        epochs, index = np.divmod(rows, len(self))
        source = np.searchsorted(self.ends, index, side="right") - 1
        return source, epochs * np.diff(self.ends)[source] + index - self.ends[source]

    def batch(self, rows: np.ndarray) -> Rows:
        """Rows [B] -> a batch of the sources' rows."""
        source, inner = self.place(rows)
        parts = {number: self.sources[number].batch(inner[source == number]) for number in np.unique(source)}
        first = next(iter(parts.values()))
        joined = {name: np.empty((len(rows), *value.shape[1:]), value.dtype) for name, value in first.items()}
        for number, part in parts.items():
            for name, value in part.items():
                joined[name][source == number] = value
        return joined
