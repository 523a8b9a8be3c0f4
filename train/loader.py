"""Grain orders, shuffles, shards and prefetches the rows of a source."""

from collections.abc import Iterator
from typing import Protocol

import grain
import jax
import numpy as np

PREFETCH = 8  # batches made ahead


class Source(Protocol):
    """Examples by row number: row r is example r % len of epoch r // len."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of these rows, stacked."""
        ...


def batches(source: Source, batch_size: int, seed: int | None, start_row: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, each epoch shuffled anew, from a global row number on.

    The order depends on nothing but the seed: this process takes its share of every global batch, so that a run that
    stopped at row r goes on from there with any number of processes.

    Args:
        source: the examples.
        batch_size: of the global batch; divisible by the number of processes.
        seed: of the order; None: as they are.
        start_row: rows that have been used already; a multiple of batch_size.
    """
    share, process = batch_size // jax.process_count(), jax.process_index()
    length = len(source)
    numbers = grain.MapDataset.range(length)
    rows = (
        (numbers if seed is None else numbers.shuffle(seed=seed % 2**32))
        .repeat()
        .map_with_index(lambda place, index: place // length * length + index)
        .batch(batch_size, batch_fn=np.array)
        .slice(slice(start_row // batch_size, None))
        .map(lambda rows: source.batch(rows[process * share : (process + 1) * share]))
    )
    return iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)))


def eval_batches(source: Source, batch_size: int, seed: int | None, examples: int) -> Iterator[dict[str, np.ndarray]]:
    """The same `examples` rows at every call; the last batch is filled with rows whose loss masks are 0. Their number,
    from 0 on, is in `place` [B] int32."""
    for start, batch in zip(range(0, examples, batch_size), batches(source, batch_size, seed), strict=False):
        share = len(next(iter(batch.values())))
        place = np.arange(share, dtype=np.int32) + start + jax.process_index() * share
        beyond = place >= examples
        masked = {n: _blank(value, beyond) if n.endswith("loss_mask") else value for n, value in batch.items()}
        yield masked | {"place": place}


def real_tokens(batch: dict[str, np.ndarray]) -> int:
    """Tokens of a batch that are not padding."""
    return int(batch["attention_mask" if "attention_mask" in batch else "loss_mask"].sum())


def _blank(mask: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.where(rows.reshape(-1, *[1] * (mask.ndim - 1)), 0, mask)
