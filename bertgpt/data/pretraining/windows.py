"""GPT-1's pretraining examples: windows over contiguous text, or pieces of documents for packing."""

import functools
from collections.abc import Iterator

import numpy as np

from bertgpt.data.pretraining.plans import (
    KEPT,
    Gather,
    Keep,
    Plan,
    blocks,
    check_length,
    document_blocks,
    in_memory,
    lengths_of,
    places,
    starts_of,
)
from bertgpt.data.random_access import RandomAccess
from bertgpt.data.text.store import Split
from bertgpt.errors import InputError


class GptWindows(RandomAccess):
    """Windows of T tokens of a split: row r is window r % len of epoch r // len.

    The text is a circular buffer; each epoch starts at a random offset (epoch 0 at 0). So epochs split the text at
    different places. An epoch predicts each token but its first exactly once. `labels` are already shifted: they are
    the tokens that follow `input_ids`.
    """

    def __init__(self, split: Split, sequence_length: int, seed: int) -> None:
        self.split, self.sequence_length, self.seed = split, sequence_length, seed
        self.plan = functools.lru_cache(maxsize=2)(self._make_plan)

    def _make_plan(self, epoch: int) -> int:
        """The epoch's offset. This is the whole plan: window i begins at offset + i T."""
        return int(np.random.default_rng([self.seed, epoch]).integers(len(self.split.tokens))) if epoch else 0

    def __len__(self) -> int:
        return max(1, -(-(len(self.split.tokens) - 1) // self.sequence_length))

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows [B] -> `input_ids`, `labels` [B T] int32; `loss_mask` [B T] float32, 0 beyond the end of the epoch."""
        epochs, index = np.divmod(rows, len(self))
        offset = np.array([self.plan(int(epoch)) for epoch in epochs])
        place = (index * self.sequence_length)[:, None] + np.arange(self.sequence_length + 1)  # from the offset on
        tokens = self.split.tokens[(offset[:, None] + place) % len(self.split.tokens)].astype(np.int32)
        return {
            "input_ids": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "loss_mask": (place[:, 1:] < len(self.split.tokens)).astype(np.float32),
        }


class GptPieces:
    """Pieces of documents with at most T tokens, for `packing.Packed`.

    No piece crosses the end of a document. An epoch predicts each token of a document but its first exactly once. If T
    does not divide the number of predicted tokens, one piece of the document is shorter: the last one in epoch 0, a
    random one later. So epochs split a document at different places, but have the same number of pieces of each length.
    """

    per_token = ("input_ids", "labels", "loss_mask")
    pad = 0

    def __init__(self, split: Split, sequence_length: int, seed: int, keep: Keep = in_memory) -> None:
        """
        Raises:
            InputError: no document has two tokens.
        """
        check_length(sequence_length)
        self.split, self.sequence_length, self.seed, self.keep = split, sequence_length, seed, keep
        if not any((predicted > 0).any() for _, predicted in self._documents()):
            raise InputError("data.pack needs documents of two tokens or more; add some, or set data.pack to false")
        self.plan = functools.lru_cache(KEPT)(self._find_plan)

    def _documents(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The start of each document and the number of tokens predicted in it, for each block of documents."""
        for first, last in document_blocks(self.split):
            ends = self.split.sentences[self.split.documents[first : last + 1]]  # in tokens
            yield ends[:-1], np.maximum(np.diff(ends) - 1, 0)

    def _find_plan(self, epoch: int) -> np.ndarray:
        """The place of each piece [N] uint64; its length is the number of tokens that it reads."""
        return self.keep("pieces", epoch, self._make_plan).arrays["pieces"]

    def _make_plan(self, epoch: int, gather: Gather) -> Plan:
        rng = np.random.default_rng([self.seed, epoch]) if epoch else None
        return Plan({"pieces": gather("pieces", (self._cut(*part, rng) for part in self._documents()))}, {})

    def _cut(self, start: np.ndarray, predicted: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """The places of the pieces of some documents."""
        full = self.sequence_length
        pieces = -(-predicted // full)  # of each document
        short = pieces - 1
        if rng is not None:
            short = rng.integers(0, np.maximum(pieces, 1))
        document = np.repeat(np.arange(len(pieces)), pieces)
        number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # of a piece in its document
        lacking = (pieces * full - predicted)[document]
        begin = start[document] + number * full - lacking * (number > short[document])
        return places(begin, full - lacking * (number == short[document]))

    def lengths(self, epoch: int) -> np.ndarray:
        """The number of tokens that each piece reads [N] uint16; it predicts as many."""
        pieces = self.plan(epoch)
        return np.concatenate([lengths_of(pieces[block]).astype(np.uint16) for block in blocks(len(pieces))])

    def rows(self, epochs: np.ndarray, index: np.ndarray, width: int) -> dict[str, np.ndarray]:
        """Piece `index` [n] of each epoch: `input_ids`, `labels` int32, `loss_mask` float32; [n W], 0 beyond it."""
        found = np.empty(len(index), np.uint64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self.plan(int(epoch))[index[here]]
        start, length = starts_of(found), lengths_of(found)
        place = np.arange(width + 1)
        inside = place[:-1] < length[:, None]
        tokens = self.split.tokens[start[:, None] + np.minimum(place, length[:, None])].astype(np.int32)
        return {
            "input_ids": np.where(inside, tokens[:, :-1], self.pad),
            "labels": np.where(inside, tokens[:, 1:], 0),
            "loss_mask": inside.astype(np.float32),
        }
