"""Packing: several examples in one row, which do not attend to each other. Plans the rows and builds them."""

import functools
import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

Rows = dict[str, np.ndarray]
HALVINGS = 2  # maximum number of times that the width is halved, for shorter examples
TOKENS = 8  # of a row per example that it may contain: few examples are shorter


def most_examples(length: int) -> int:
    """K, the maximum number of examples in a row of T tokens, for models to which a large K costs nothing."""
    return max(2, length // TOKENS)


def plan_packs(lengths: np.ndarray, capacity: int, limit: int, rng: np.random.Generator) -> np.ndarray:
    """Which examples share a row: each example once, longest first within a row.

    Shortest-pack-first (Krell et al. 2021, arXiv 2107.02027): lengths are placed in descending order, each into the
    packs with the most room left. This is decided for all examples of a length at once. Then examples are assigned to
    the packs.

    Args:
        lengths: [N] tokens of each example, from 1 to `capacity`.
        capacity: T, tokens per row.
        limit: K, maximum number of examples per row.
        rng: decides which examples of a length go where, and the order of the rows.

    Returns:
        Indices of examples [M K] int32; -1 for unused entries.
    """
    patterns, packs = _patterns(np.bincount(lengths), capacity, limit)
    sizes = patterns[rng.permutation(np.repeat(np.arange(len(packs)), packs))]  # [M K], 0 for unused entries
    slots = np.flatnonzero(sizes)
    slots = slots[np.argsort(sizes.ravel()[slots], kind="stable")]
    examples = rng.permutation(len(lengths))
    plan = np.full(sizes.shape, -1, np.int32)
    plan.ravel()[slots] = examples[np.argsort(lengths[examples], kind="stable")]
    return plan


def count_packs(lengths: np.ndarray, capacity: int, limit: int) -> int:
    """The number of packs M that `plan_packs` makes."""
    return int(_patterns(np.bincount(lengths), capacity, limit)[1].sum())


def spread(packs: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Moves random examples to packs of their own, until there are `rows` packs: [M K] -> [rows K].

    `rows` is at least M, and at most the number of examples. No pack becomes empty.
    """
    row, later = rng.permutation(np.argwhere(packs[:, 1:] >= 0))[: rows - len(packs)].T
    place = later + 1
    alone = np.full((len(row), packs.shape[1]), -1, packs.dtype)
    alone[:, 0] = packs[row, place]
    packs = packs.copy()
    packs[row, place] = -1
    return rng.permutation(np.concatenate([packs, alone]))


def _patterns(histogram: np.ndarray, capacity: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The combinations of lengths [G K], 0 for unused entries, and the number of packs with each combination [G].

    `histogram[n]` is the number of examples of length n.
    """
    full: list[tuple[tuple[int, ...], int]] = []
    heap: list[tuple[int, tuple[int, ...], int]] = []  # (-room, lengths, packs) of packs with room
    for length in range(len(histogram) - 1, 0, -1):
        left = int(histogram[length])
        while left:
            if not heap or -heap[0][0] < length:  # new packs, as many as these examples can fill
                heapq.heappush(heap, (-capacity, (), -(-left // min(limit, capacity // length))))
            room, held, packs = heapq.heappop(heap)
            taken = min(left, packs)
            left -= taken
            if taken < packs:
                heapq.heappush(heap, (room, held, packs - taken))
            if len(held) + 1 == limit:
                full.append(((*held, length), taken))
            else:
                heapq.heappush(heap, (room + length, (*held, length), taken))
    full += [(held, packs) for _, held, packs in heap]
    patterns = np.zeros((len(full), limit), np.int32)
    for row, (held, _) in enumerate(full):
        patterns[row, : len(held)] = held
    return patterns, np.array([packs for _, packs in full], np.int64)


class Slots(NamedTuple):
    """The places of examples in packed rows, row by row and from left to right; all fields are [N] int.

    Attributes:
        row: the packed row, from 0.
        place: the example's index in its row, from 0.
        begin: the column of its first token.
        length: its number of tokens.
    """

    row: np.ndarray
    place: np.ndarray
    begin: np.ndarray
    length: np.ndarray


def lay_out(lengths: np.ndarray) -> Slots:
    """lengths [B K], 0 for unused entries -> the places of the examples, one after the other in each row."""
    row, place = np.nonzero(lengths)
    begin = np.cumsum(lengths, axis=1) - lengths
    return Slots(row, place, begin[row, place], lengths[row, place])


def assemble(
    slots: Slots,
    shape: tuple[int, int, int],
    parts: Iterable[tuple[np.ndarray, Rows]],
    per_token: Sequence[str],
    pad: int = 0,
) -> Rows:
    """Copies unpacked examples to their places in packed rows.

    Args:
        slots: the place of each example.
        shape: (B, K, T): rows, maximum examples per row, tokens per row.
        parts: (indices [n] into slots, those examples as rows [n ...]); together the parts have all examples. Values of
            `per_token` keys are [n W]; W is at least the length of the longest example.
        per_token: keys that become [B T]. All other keys have one value per example and become [B K ...].
        pad: the token id of padding; all other keys are padded with 0.

    Returns:
        The keys of the rows, with `position_ids` [B T], which start at 0 in each example, and `pack_ids` [B T], which
        number the examples of a row from 1. If there are keys with one value per example, also `cls_positions` [B K],
        the first column of each example. These three are int32.
    """
    count, limit, length = shape
    packed: Rows = {}
    for chosen, rows in parts:
        row, place, begin, size = (field[chosen] for field in slots)
        column = np.arange(size.max())
        real = column < size[:, None]
        target = ((row * length + begin)[:, None] + column)[real]  # flat indices into [B T]
        for name, value in rows.items():
            if name not in packed:
                empty = (count, length) if name in per_token else (count, limit, *value.shape[1:])
                packed[name] = np.full(empty, pad if name == "input_ids" else 0, value.dtype)
            if name in per_token:
                packed[name].ravel()[target] = value[:, : len(column)][real]
            else:
                packed[name][row, place] = value
    if not packed.keys() <= set(per_token):
        packed["cls_positions"] = np.zeros((count, limit), np.int32)
        packed["cls_positions"][slots.row, slots.place] = slots.begin
    return packed | _marks(slots, (count, length))


def _marks(slots: Slots, shape: tuple[int, int]) -> Rows:
    """`position_ids` and `pack_ids`; the examples of a row are contiguous from the first column on."""
    real = np.arange(shape[1]) < np.bincount(slots.row, slots.length, shape[0])[:, None]
    positions, packs = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    ends = np.cumsum(slots.length)
    positions[real] = np.arange(real.sum()) - np.repeat(ends - slots.length, slots.length)
    packs[real] = np.repeat(slots.place + 1, slots.length)
    return {"position_ids": positions, "pack_ids": packs}


def to_columns(rows: Rows, width: int) -> Rows:
    """`labels` and `loss_mask` [N P] at `masked_positions` [N P] -> both as [N W], 0 elsewhere."""
    rows = dict(rows)
    positions = rows.pop("masked_positions")
    for name in ("labels", "loss_mask"):
        columns = np.zeros((len(positions), width), rows[name].dtype)
        np.put_along_axis(columns, positions, rows[name], axis=1)  # unused entries write 0 to [CLS], never masked
        rows[name] = columns
    return rows


def to_positions(packed: Rows, most: int) -> Rows:
    """The inverse of `to_columns`: `labels` and `loss_mask` [B T] -> both as [B P'], with `masked_positions`.

    `masked_positions` is [B P'] int32, ascending. P' is `most`; unused entries of all three are 0.
    """
    row, column = np.nonzero(packed["loss_mask"])
    counts = np.bincount(row, minlength=len(packed["loss_mask"]))
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = {"masked_positions": column.astype(np.int32)}
    found |= {name: packed[name][row, column] for name in ("labels", "loss_mask")}
    packed = dict(packed)
    for name, values in found.items():
        packed[name] = np.zeros((len(counts), most), values.dtype)
        packed[name][row, place] = values
    return packed


class Examples(Protocol):
    """Examples that can be packed: their lengths are known for each epoch."""

    @property
    def sequence_length(self) -> int:
        """T, the tokens of a packed row."""
        ...

    @property
    def pad(self) -> int:
        """The token id of padding."""
        ...

    @property
    def per_token(self) -> tuple[str, ...]:
        """The keys of its rows that are [n W]."""
        ...

    def lengths(self, epoch: int) -> np.ndarray:
        """The number of tokens of each example of an epoch [N], from 1 to T."""
        ...

    def rows(self, epochs: np.ndarray, index: np.ndarray, width: int) -> Rows:
        """Example `index` of each epoch, [n ...] with W tokens. No example is longer than W. W changes no value."""
        ...


class Packed:
    """Packed rows of examples: row r is pack r % len of epoch r // len, whose plan depends on (seed, epoch).

    Every epoch has as many rows as the plan of epoch 0. If an epoch's plan has a few more, a random run of them is
    skipped; if it has a few fewer, a random run is repeated. With `rows`, nothing is skipped or repeated.
    """

    def __init__(
        self, examples: Examples, limit: int, seed: int, most_masked: int | None = None, rows: int | None = None
    ) -> None:
        """
        Args:
            examples: to be packed.
            limit: K, maximum number of examples per row.
            seed: of the plans.
            most_masked: P', if examples have `labels` at `masked_positions`.
            rows: number of rows of every epoch, at least as many as any epoch needs; None: as many as epoch 0 needs.
        """
        self.examples, self.limit, self.seed, self.most_masked = examples, limit, seed, most_masked
        self.fixed_rows = rows
        self.plan = functools.lru_cache(maxsize=2)(self._make_plan)  # two: a batch may span two epochs
        self.length = len(self.plan(0)[0])

    def _make_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The packs [M K], the length of each example [N], and the pack in the epoch's first row."""
        rng = np.random.default_rng([self.seed, epoch, 1])
        lengths = self.examples.lengths(epoch)
        packs = plan_packs(lengths, self.examples.sequence_length, self.limit, rng)
        if self.fixed_rows is not None:
            packs = spread(packs, self.fixed_rows, rng)
        return packs, lengths, int(rng.integers(len(packs)))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> Rows:
        return {name: value[0] for name, value in self.batch(np.array([row])).items()}

    def batch(self, rows: np.ndarray) -> Rows:
        """Rows [B] -> the packed batch of docs/data.md; a row does not depend on the rest of the batch."""
        epochs, members, lengths = self._members(rows)
        slots, width = lay_out(lengths), self.examples.sequence_length
        index = members[slots.row, slots.place]
        packed = assemble(
            slots,
            (*members.shape, width),
            self._parts(slots, epochs[slots.row], index),
            self.examples.per_token,
            self.examples.pad,
        )
        return packed if self.most_masked is None else to_positions(packed, self.most_masked)

    def _members(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows [B] -> their epochs [B], their examples [B K] (-1 for unused entries) and the lengths [B K]."""
        epochs, index = np.divmod(rows, len(self))
        members = np.empty((len(rows), self.limit), np.int64)
        lengths = np.empty((len(rows), self.limit), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            packs, sizes, shift = self.plan(int(epoch))
            members[here] = packs[(index[here] + shift) % len(packs)]
            lengths[here] = np.where(members[here] >= 0, sizes[members[here]], 0)
        return epochs, members, lengths

    def _parts(self, slots: Slots, epochs: np.ndarray, index: np.ndarray) -> Iterator[tuple[np.ndarray, Rows]]:
        """The examples as rows, in groups of similar length to keep padding short."""
        width = self.examples.sequence_length
        halvings = np.minimum(np.log2(width / slots.length).astype(np.int64), HALVINGS)
        for level in np.unique(halvings):
            chosen = np.flatnonzero(halvings == level)
            narrow = width >> int(level)
            rows = self.examples.rows(epochs[chosen], index[chosen], narrow)
            yield chosen, rows if self.most_masked is None else to_columns(rows, narrow)
