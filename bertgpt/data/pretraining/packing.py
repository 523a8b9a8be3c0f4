"""Several examples in one row, each apart from the others: which stand together, and the rows made of them."""

import functools
import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

Rows = dict[str, np.ndarray]
HALVINGS = 2  # of a row's width, for its shorter examples
TOKENS = 8  # of a row for every example that it may hold: few are shorter


def most_examples(length: int) -> int:
    """K, the examples that a row of T tokens may hold, where it costs the model nothing to hold many."""
    return max(2, length // TOKENS)


def plan_packs(lengths: np.ndarray, capacity: int, limit: int, rng: np.random.Generator) -> np.ndarray:
    """Which examples share a row: every one once, longest first within a row.

    Shortest pack first (Krell et al. 2021, arXiv 2107.02027): lengths are placed from the longest down, each into the
    packs that have most room left. That is decided for all examples of a length at once, and then they are dealt out.

    Args:
        lengths: [N] tokens of each example, from 1 to `capacity`.
        capacity: T, tokens of a row.
        limit: K, examples of a row.
        rng: which examples of a length go where, and the order of rows.

    Returns:
        Indices of examples [M K] int32; -1 where there is none.
    """
    patterns, packs = _patterns(np.bincount(lengths), capacity, limit)
    sizes = patterns[rng.permutation(np.repeat(np.arange(len(packs)), packs))]  # [M K], 0 where empty
    slots = np.flatnonzero(sizes)
    slots = slots[np.argsort(sizes.ravel()[slots], kind="stable")]
    examples = rng.permutation(len(lengths))
    plan = np.full(sizes.shape, -1, np.int32)
    plan.ravel()[slots] = examples[np.argsort(lengths[examples], kind="stable")]
    return plan


def _patterns(histogram: np.ndarray, capacity: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The combinations of lengths [G K], 0 where empty, and how many packs have each [G]; histogram[n] examples have
    length n."""
    full: list[tuple[tuple[int, ...], int]] = []
    heap: list[tuple[int, tuple[int, ...], int]] = []  # (-room, lengths, packs) of those that may take more
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
    """Where examples lie in packed rows, row after row and from left to right; all [N] int.

    Attributes:
        row: the packed row, from 0.
        place: which example of its row, from 0.
        begin: the column of its first token.
        length: its tokens.
    """

    row: np.ndarray
    place: np.ndarray
    begin: np.ndarray
    length: np.ndarray


def lay_out(lengths: np.ndarray) -> Slots:
    """lengths [B K], 0 where there is no example -> the places of the others, one after the other in each row."""
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
    """Unpacked examples moved to their places.

    Args:
        slots: where each goes.
        shape: B rows of K examples and T tokens at most.
        parts: (indices [n] into slots, those examples as rows [n ...]), which together are all of them. Keys that are
            `per_token` are [n W], W at least the longest example's length.
        per_token: keys that go to [B T]; all others, of whole examples, go to [B K ...].
        pad: the token id of padding; everything else is 0 there.

    Returns:
        The keys of the rows with `position_ids` [B T], from 0 in each example, and `pack_ids` [B T], from 1; and
        `cls_positions` [B K], where examples begin, if they have values as a whole. All of the three int32.
    """
    count, limit, length = shape
    packed: Rows = {}
    for chosen, rows in parts:
        row, place, begin, size = (field[chosen] for field in slots)
        column = np.arange(size.max())
        real = column < size[:, None]
        target = ((row * length + begin)[:, None] + column)[real]  # in [B T], flat
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
    """`position_ids` and `pack_ids`: examples stand side by side from the first column on."""
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
        np.put_along_axis(columns, positions, rows[name], axis=1)  # unused places write their 0 to [CLS], never masked
        rows[name] = columns
    return rows


def to_positions(packed: Rows, most: int) -> Rows:
    """The way back: `labels` and `loss_mask` [B T] -> [B P'] with `masked_positions` [B P'] int32, ascending; 0 where
    a row has fewer than `most`, P'."""
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
    """What can be packed: the examples of each epoch, of known lengths."""

    @property
    def sequence_length(self) -> int:
        """T."""
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
        """The tokens of every example of an epoch [N], from 1 to T."""
        ...

    def rows(self, epochs: np.ndarray, index: np.ndarray, width: int) -> Rows:
        """Example `index` of each epoch, [n ...] with W tokens; none is longer. The same whatever W is."""
        ...


class Packed:
    """Examples of which several share a row: row r is pack r % len of epoch r // len, planned from (seed, epoch).

    Every epoch has as many rows as the plan of epoch 0; where an epoch's plan has a few more or fewer, a random run of
    them is left out or comes twice.
    """

    def __init__(self, examples: Examples, limit: int, seed: int, most_masked: int | None = None) -> None:
        """
        Args:
            examples: to be packed.
            limit: K, examples of a row.
            seed: of the plans.
            most_masked: P', where examples have `labels` at `masked_positions`.
        """
        self.examples, self.limit, self.seed, self.most_masked = examples, limit, seed, most_masked
        self.plan = functools.lru_cache(maxsize=2)(self._make_plan)  # two: a batch may span two epochs
        self.length = len(self.plan(0)[0])

    def _make_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The packs [M K], every example's length [N], and the row that comes first."""
        rng = np.random.default_rng([self.seed, epoch, 1])
        lengths = self.examples.lengths(epoch)
        packs = plan_packs(lengths, self.examples.sequence_length, self.limit, rng)
        return packs, lengths, int(rng.integers(len(packs)))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> Rows:
        return {name: value[0] for name, value in self.batch(np.array([row])).items()}

    def batch(self, rows: np.ndarray) -> Rows:
        """Rows [B] -> the packed batch of docs/data.md, each row the same whatever stands beside it."""
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
        """Rows [B] -> their epochs [B], their examples [B K] (-1 where there is none) and their lengths [B K]."""
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
        """The examples as rows, in groups of like length, so that little of a row is padding."""
        width = self.examples.sequence_length
        halvings = np.minimum(np.log2(width / slots.length).astype(np.int64), HALVINGS)
        for level in np.unique(halvings):
            chosen = np.flatnonzero(halvings == level)
            narrow = width >> int(level)
            rows = self.examples.rows(epochs[chosen], index[chosen], narrow)
            yield chosen, rows if self.most_masked is None else to_columns(rows, narrow)
