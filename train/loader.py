"""Batches of a source: Grain shuffles, repeats, batches and prefetches; each process slices its share of a batch."""

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import jax
import numpy as np

from bertgpt.data.pretraining.mixture import Mixture

PREFETCH = 8  # batches prepared in advance
LONGEST = 1 << 62  # rows of a run, at most


class Source(Protocol):
    """Examples by row number: row r is example r % len of epoch r // len."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of the given rows, stacked."""
        ...


class PlannedAhead:
    """A source whose plan of the next epoch is made in another thread, while the rows of an epoch are read.

    Args:
        source: with a method `plan` that keeps the plans of `plans.KEPT` epochs.
        rows: number of rows that are read in all; no epoch beyond them is planned.
    """

    def __init__(self, source: Any, rows: int) -> None:
        self.source, self.last = source, (rows - 1) // len(source)
        self.started = 0  # the last epoch whose plan was started

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of the given rows; starts the plan of the epoch after them."""
        following = int(rows.max()) // len(self) + 1
        if self.started < following <= self.last:
            self.started = following
            # if this fails, the loader makes the plan itself when it needs it, and reports the error
            threading.Thread(target=_quietly, args=(self.source.plan, following), daemon=True).start()
        return self.source.batch(rows)


def planned_ahead(source: Source, rows: int) -> Source:
    """The source, with the plans of the epochs that `rows` rows need made ahead."""
    if isinstance(source, Mixture):
        epochs, sizes, ahead = -(-rows // len(source)), source.rows(), copy.copy(source)
        ahead.sources = {name: planned_ahead(part, epochs * sizes[name]) for name, part in source.sources.items()}
        return ahead
    return PlannedAhead(source, rows) if hasattr(source, "plan") and rows else source


def _quietly(plan: Callable[[int], Any], epoch: int) -> None:
    with contextlib.suppress(Exception):
        plan(epoch)


def batches(source: Source, batch_size: int, seed: int | None, start_row: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Iterate over the source forever, starting at a global row number; each epoch has another order.

    The order depends only on the seed. Each process takes its share of every global batch, so a run that stopped at row
    r can be resumed with any number of processes.

    Args:
        source: the examples.
        batch_size: size of the global batch; divisible by the number of processes.
        seed: seed of the order; None: the order of the source.
        start_row: number of rows already used; a multiple of batch_size.

    Returns:
        This process's part of each batch: arrays [batch_size / processes ...] by name.
    """
    share, process = batch_size // jax.process_count(), jax.process_index()
    length = len(source)
    numbers = grain.MapDataset.range(length)
    rows = (
        (numbers if seed is None else numbers.shuffle(seed=seed % 2**32))
        .repeat(LONGEST // max(length, 1))  # without a number, batches of one row are too many for grain
        .map_with_index(lambda place, index: place // length * length + index)
        .batch(batch_size, batch_fn=np.array)
        .slice(slice(start_row // batch_size, None))
        .map(lambda rows: source.batch(rows[process * share : (process + 1) * share]))
    )
    return iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)))


def eval_batches(source: Source, batch_size: int, seed: int | None, examples: int) -> Iterator[dict[str, np.ndarray]]:
    """Iterate once over the same `examples` rows at each call.

    The last batch is filled up with rows whose loss masks are 0. `place` [B] int32 contains the number of each row,
    from 0.
    """
    for start, batch in zip(range(0, examples, batch_size), batches(source, batch_size, seed), strict=False):
        share = len(next(iter(batch.values())))
        place = np.arange(share, dtype=np.int32) + start + jax.process_index() * share
        beyond = place >= examples
        masked = {n: _blank(value, beyond) if n.endswith("loss_mask") else value for n, value in batch.items()}
        yield masked | {"place": place}


def _blank(mask: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.where(rows.reshape(-1, *[1] * (mask.ndim - 1)), 0, mask)
