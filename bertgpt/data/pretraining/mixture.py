"""A mixture of sources of examples: each gives a fixed share of the rows, and small ones repeat."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bertgpt.data.pretraining import counter
from bertgpt.data.random_access import RandomAccess, Rows
from bertgpt.errors import InputError

LEAST = 1000  # rows of an epoch, so that shares are exact to a thousandth


class Mixture(RandomAccess):
    """Rows of several sources. In an epoch of the mixture, each source has its share of the rows.

    An epoch ends when the first source has given all its rows once (but it has at least `LEAST` rows). A source goes
    on in the next epoch where it stopped, and repeats a row only after all its other rows, in another random order each
    time. Which example a row is depends on (sources, weights, seed, row) alone. Batches are mixed by whoever shuffles
    the rows of an epoch.
    """

    def __init__(self, sources: Mapping[str, Any], weights: Mapping[str, float], seed: int) -> None:
        """
        Args:
            sources: by name, each with a length and `batch(rows)`; their batches have the same keys and shapes.
            weights: by the same names, above 0.
            seed: of the orders of the sources' rows.

        Raises:
            InputError: a weight is so small that its source would have no row.
        """
        self.sources, self.seed = dict(sources), seed
        shares = np.array([weights[name] for name in sources]) / sum(weights.values())
        sizes = np.array([len(source) for source in sources.values()])
        length = max(LEAST, int((sizes / shares).min()))
        self.ends = np.concatenate([[0], np.rint(np.cumsum(shares) * length).astype(np.int64)])
        for name, rows in zip(sources, self.rows().values(), strict=True):
            if not rows:
                raise InputError(
                    f"data.train: {name} has none of the {length:,} rows of an epoch by its weight {weights[name]:g}; "
                    "raise the weight, or leave it out"
                )

    def rows(self) -> dict[str, int]:
        """The number of rows that each source has in an epoch."""
        return dict(zip(self.sources, np.diff(self.ends).tolist(), strict=True))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def place(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [B] -> the number of the source of each, and its row in that source."""
        epochs, index = np.divmod(rows, len(self))
        source = np.searchsorted(self.ends, index, side="right") - 1
        turn = epochs * np.diff(self.ends)[source] + index - self.ends[source]  # how many rows the source gave before
        found = np.empty_like(turn)
        for number, part in enumerate(self.sources.values()):
            here, length = source == number, len(part)
            epoch, inside = np.divmod(turn[here], length)
            keys = counter.keys(self.seed + number, epoch)
            found[here] = epoch * length + counter.permuted(inside, length, keys)
        return source, found

    def batch(self, rows: np.ndarray) -> Rows:
        """Rows [B] -> a batch of the sources' rows."""
        source, inner = self.place(rows)
        sources = list(self.sources.values())
        parts = {number: sources[number].batch(inner[source == number]) for number in np.unique(source)}
        first = next(iter(parts.values()))
        joined = {name: np.empty((len(rows), *value.shape[1:]), value.dtype) for name, value in first.items()}
        for number, part in parts.items():
            for name, value in part.items():
                joined[name][source == number] = value
        return joined
