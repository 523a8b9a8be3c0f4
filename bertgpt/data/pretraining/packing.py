"""Packing: several examples in one row, which do not attend to each other. Plans the rows and builds them."""

import functools
import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from bertgpt.data.pretraining.plans import KEPT, Gather, Keep, Plan, blocks, in_memory
from bertgpt.data.random_access import RandomAccess, Rows
from bertgpt.errors import InputError

HALVINGS = 2  # maximum number of times that the width is halved, for shorter examples
TOKENS = 8  # of a row per example that it may contain: few examples are shorter


def most_examples(length: int) -> int:
    """K, the maximum number of examples in a row of T tokens, for models to which a large K costs nothing."""
    return max(2, length // TOKENS)


class Packs(NamedTuple):
    """Which examples share a row. Pack i has the examples members[ends[i]:ends[i + 1]], the longest first.

    Attributes:
        members: [N] int32, the examples, pack by pack.
        sizes: [N] uint16, their lengths.
        ends: [M + 1] int32, 0, then the end of each pack.
    """

    members: np.ndarray
    sizes: np.ndarray
    ends: np.ndarray


def plan_packs(lengths: np.ndarray, capacity: int, limit: int, rng: np.random.Generator) -> Packs:
    """Which examples share a row: each example once, longest first within a row.

    Shortest-pack-first (Krell et al. 2021, arXiv 2107.02027): lengths are placed in descending order, each into the
    packs with the most room left. This is decided for all examples of a length at once. Then examples are assigned to
    the packs.

    Args:
        lengths: [N] tokens of each example, from 1 to `capacity`.
        capacity: T, tokens per row.
        limit: K, maximum number of examples per row.
        rng: decides which examples of a length go where, and the order of the rows.

    Raises:
        InputError: there are 2**31 examples or more.
    """
    if len(lengths) >= 1 << 31:
        raise InputError(f"data.pack of {len(lengths):,} examples; it can pack {(1 << 31) - 1:,}: split the text")
    patterns, packs = _patterns(np.bincount(lengths), capacity, limit)
    pattern = np.repeat(np.arange(len(packs), dtype=np.int32), packs)  # of each row
    rng.shuffle(pattern)
    used = (patterns > 0).sum(1, dtype=np.int32)
    ends = _ends(used[pattern])
    flat = patterns[patterns > 0].astype(np.uint16)
    starts = np.cumsum(used) - used
    sizes = np.concatenate([take_runs(flat, starts[pattern[b]], used[pattern[b]]) for b in blocks(len(pattern))])
    examples = _shuffled(len(lengths), rng)
    lengths = lengths.astype(np.uint16)  # which are sorted by radix
    examples = examples[np.argsort(lengths[examples], kind="stable")]
    members = np.empty_like(examples)
    members[np.argsort(sizes, kind="stable")] = examples
    return Packs(members, sizes, ends)


def take_runs(values: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """values[start : start + count] for each start and count [R], joined."""
    ends = np.cumsum(counts)
    return values[np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)]


def count_packs(histogram: np.ndarray, capacity: int, limit: int) -> int:
    """The number of packs M that `plan_packs` makes if `histogram[n]` examples have length n."""
    return int(_patterns(histogram, capacity, limit)[1].sum())


def spread(packs: Packs, rows: int, rng: np.random.Generator) -> Packs:
    """Moves random examples to packs of their own, until there are `rows` packs, in random order.

    `rows` is at least M, and at most the number of examples. No pack becomes empty.
    """
    count = len(packs.ends) - 1
    moved = _not_first(packs.ends)[_shuffled(len(packs.members) - count, rng)[: rows - count]]
    counts = np.diff(packs.ends)
    counts -= np.bincount(np.searchsorted(packs.ends, moved, side="right") - 1, minlength=len(counts))
    counts = np.concatenate([counts, np.ones(len(moved), np.int32)])
    starts = np.cumsum(counts, dtype=np.int32) - counts
    order = _shuffled(rows, rng)
    starts, counts = starts[order], counts[order]
    stays = np.ones(len(packs.members), bool)
    stays[moved] = False

    def moved_to_packs(values: np.ndarray) -> np.ndarray:
        values = np.concatenate([values[stays], values[moved]])
        return np.concatenate([take_runs(values, starts[block], counts[block]) for block in blocks(rows)])

    return Packs(moved_to_packs(packs.members), moved_to_packs(packs.sizes), _ends(counts))


def _not_first(ends: np.ndarray) -> np.ndarray:
    """The places of all examples but the first of each pack."""
    later = np.ones(ends[-1], bool)
    later[ends[:-1]] = False
    return np.flatnonzero(later)


def _shuffled(count: int, rng: np.random.Generator) -> np.ndarray:
    """The numbers from 0 to count - 1 in random order, int32: `rng.permutation(count)` in half its memory."""
    numbers = np.arange(count, dtype=np.int32)
    rng.shuffle(numbers)
    return numbers


def _ends(counts: np.ndarray) -> np.ndarray:
    """0, then the end of each pack, from the numbers of examples [M]: [M + 1] int32."""
    return np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)])


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


class Packed(RandomAccess):
    """Packed rows of examples: row r is pack r % len of epoch r // len, whose plan depends on (seed, epoch).

    Every epoch has as many rows as the plan of epoch 0. If an epoch's plan has a few more, a random run of them is
    skipped; if it has a few fewer, a random run is repeated. With `rows`, nothing is skipped or repeated.
    """

    def __init__(
        self,
        examples: Examples,
        limit: int,
        seed: int,
        most_masked: int | None = None,
        rows: int | None = None,
        keep: Keep = in_memory,
    ) -> None:
        """
        Args:
            examples: to be packed.
            limit: K, maximum number of examples per row.
            seed: of the plans.
            most_masked: P', if examples have `labels` at `masked_positions`.
            rows: number of rows of every epoch, at least as many as any epoch needs; None: as many as epoch 0 needs.
            keep: where plans are kept.
        """
        self.examples, self.limit, self.seed, self.most_masked = examples, limit, seed, most_masked
        self.fixed_rows, self.keep = rows, keep
        self.plan = functools.lru_cache(KEPT)(self._find_plan)
        self.length = len(self.plan(0)[0].ends) - 1

    def _find_plan(self, epoch: int) -> tuple[Packs, int]:
        """The packs, and the pack in the epoch's first row."""
        plan = self.keep("packs", epoch, self._make_plan)
        return Packs(**plan.arrays), plan.facts["shift"]

    def _make_plan(self, epoch: int, gather: Gather) -> Plan:
        rng = np.random.default_rng([self.seed, epoch, 1])
        packs = plan_packs(self.examples.lengths(epoch), self.examples.sequence_length, self.limit, rng)
        if self.fixed_rows is not None:
            packs = spread(packs, self.fixed_rows, rng)
        shift = int(rng.integers(len(packs.ends) - 1))
        return Plan({name: gather(name, [values]) for name, values in packs._asdict().items()}, {"shift": shift})

    def __len__(self) -> int:
        return self.length

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
        members = np.full((len(rows), self.limit), -1, np.int64)
        lengths = np.zeros((len(rows), self.limit), np.int64)
        for epoch in np.unique(epochs):
            here = np.flatnonzero(epochs == epoch)
            packs, shift = self.plan(int(epoch))
            pack = (index[here] + shift) % (len(packs.ends) - 1)
            counts = packs.ends[pack + 1] - packs.ends[pack]
            row = np.repeat(here, counts)
            place = take_runs(np.arange(self.limit), np.zeros_like(counts), counts)
            members[row, place] = take_runs(packs.members, packs.ends[pack], counts)
            lengths[row, place] = take_runs(packs.sizes, packs.ends[pack], counts)
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
