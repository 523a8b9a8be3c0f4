"""Plans of epochs: which piece of the text is which example. Documents are planned in blocks, in constant memory.

A plan may be kept in memory, or in files that several processes share: the caller decides.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bertgpt.data.text.store import Split
from bertgpt.errors import InputError

SENTENCES = 1 << 20  # of the documents that are planned at a time
BLOCK = 1 << 20  # entries of a plan that are processed at a time
KEPT = 3  # plans that a source keeps: a batch may span two epochs, and the next one is made ahead
LENGTH_BITS = 16  # of a place: its length in tokens; the other bits are its start


class Plan(NamedTuple):
    """The plan of one epoch.

    Attributes:
        arrays: by name; their first axis counts the examples, or what they consist of.
        facts: whole numbers by name.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, int]


Gather = Callable[[str, Iterable[np.ndarray]], np.ndarray]  # (name, blocks) -> the blocks as one array
Make = Callable[[int, Gather], Plan]  # (epoch, where its arrays go) -> the plan
Keep = Callable[[str, int, Make], Plan]  # (name, epoch, what makes it) -> the plan, made or found


def concatenate(name: str, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """The blocks as one array in memory."""
    del name
    return np.concatenate(list(blocks))


def in_memory(name: str, epoch: int, make: Make) -> Plan:
    """Makes a plan in this process's memory."""
    del name
    return make(epoch, concatenate)


def has_one_block(split: Split) -> bool:
    """Whether all documents of a split are planned at once."""
    return len(split.sentences) - 1 <= SENTENCES


def document_blocks(split: Split) -> Iterator[tuple[int, int]]:
    """First and last + 1 of consecutive documents that have about `SENTENCES` sentences together."""
    wanted = np.arange(SENTENCES, int(split.documents[-1]), SENTENCES)
    count = len(split.documents) - 1
    bounds = np.unique(np.concatenate([[0], np.searchsorted(split.documents, wanted), [count]]))
    yield from zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)


def blocks(count: int) -> Iterator[slice]:
    """Consecutive slices of `count` entries of a plan."""
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Starts and lengths in tokens [N] -> one uint64 for each place [N]."""
    return starts.astype(np.uint64) << np.uint64(LENGTH_BITS) | lengths.astype(np.uint64)


def starts_of(places: np.ndarray) -> np.ndarray:
    """The starts of places in tokens, int64."""
    return (places >> np.uint64(LENGTH_BITS)).astype(np.int64)


def lengths_of(places: np.ndarray) -> np.ndarray:
    """The lengths of places in tokens, int64."""
    return (places & np.uint64((1 << LENGTH_BITS) - 1)).astype(np.int64)


def check_length(sequence_length: int) -> None:
    """Checks that the length of an example fits into a plan.

    Raises:
        InputError: it does not.
    """
    if sequence_length >= 1 << LENGTH_BITS:
        raise InputError(f"data.sequence_length is {sequence_length}; it must be less than {1 << LENGTH_BITS}")
