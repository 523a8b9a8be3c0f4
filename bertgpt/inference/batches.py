"""Texts of any lengths as padded batches of few shapes, to compile few programs."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")


def groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; the last list may have fewer."""
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def padded(ids: Sequence[Any], rows: int, positions: int) -> dict[str, np.ndarray]:
    """Return a batch of input_ids and attention_mask, each [R T] int32.

    R and T are powers of two, at most `rows` and `positions`. A row without a text has one token, which is attended to
    and whose output is ignored.
    """
    width = min(_power_of_two(max(map(len, ids))), positions)
    rows = min(_power_of_two(len(ids)), rows)
    tokens, mask = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.int32)
    mask[len(ids) :, 0] = 1
    for row, text in enumerate(ids):
        tokens[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": tokens, "attention_mask": mask}


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
