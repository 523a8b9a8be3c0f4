"""Examples for masked language modelling alone: runs of whole sentences of one document, masked, as batches.

A cut is a place in the text where a run may end: the end of a sentence, and any place inside a sentence that is longer
than a run may be. The runs of an epoch follow one another in the token store, so every token is in exactly one of them.
"""

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
from tokenizers import Tokenizer

from bertgpt.data.pretraining import counter
from bertgpt.data.pretraining.masking import PAPER, Masker, MaskRule
from bertgpt.data.pretraining.packing import Packed, count_packs
from bertgpt.data.pretraining.plans import KEPT, Gather, Keep, Plan, blocks, check_length, document_blocks, in_memory
from bertgpt.data.random_access import RandomAccess
from bertgpt.data.text.store import Split

SHORTEST_RUN = 3  # tokens: [CLS] a [SEP]
TOKENS_A_RUN = 16  # of a packed row, per run that it may contain: each possible run widens the masked positions
DRAWS = 8  # of an epoch's cuts, until its runs fit into the packed rows


def last_cut(sentences: np.ndarray, places: np.ndarray, longest: int) -> np.ndarray:
    """The last cut at or before each place. `sentences` [S + 1] are bounds in tokens; a run has `longest` at most."""
    begin = np.searchsorted(sentences, places, side="right") - 1
    length = sentences[np.minimum(begin + 1, len(sentences) - 1)] - sentences[begin]
    return np.where(length > longest, places, sentences[begin])


def first_cut(sentences: np.ndarray, places: np.ndarray, longest: int) -> np.ndarray:
    """The first cut at or after each place."""
    end = np.searchsorted(sentences, places, side="left")
    length = sentences[end] - sentences[np.maximum(end - 1, 0)]
    return np.where(length > longest, places, sentences[end])


def latest_ends(sentences: np.ndarray, bounds: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Fills each run as far as possible, from the start of its document.

    Args:
        sentences: the bounds of sentences in tokens.
        bounds: the bounds of consecutive documents in tokens [D + 1].
        longest: the maximum number of tokens of a run.

    Returns:
        The end of each run in tokens [N] and its document [N], from 0. No other way to cut has fewer runs.
    """
    found, place, document = [], bounds[:-1].copy(), np.arange(len(bounds) - 1)
    while document.size:
        reach = np.minimum(place + longest, bounds[document + 1])
        place = last_cut(sentences, reach, longest)
        found.append((place, document))
        unfinished = place < bounds[document + 1]
        place, document = place[unfinished], document[unfinished]
    ends, documents = map(np.concatenate, zip(*found, strict=True))
    order = np.argsort(ends)
    return ends[order], documents[order]


def earliest_ends(sentences: np.ndarray, bounds: np.ndarray, longest: int) -> np.ndarray:
    """The ends of as many runs [N] if each is filled as far as possible from the end of its document backwards."""
    found, place, document = [], bounds[1:].copy(), np.arange(len(bounds) - 1)
    while document.size:
        found.append(place)
        reach = np.maximum(place - longest, bounds[document])
        place = first_cut(sentences, reach, longest)
        unfinished = place > bounds[document]
        place, document = place[unfinished], document[unfinished]
    return np.sort(np.concatenate(found))


def cut_documents(sentences: np.ndarray, bounds: np.ndarray, longest: int, share: np.ndarray) -> np.ndarray:
    """The ends of the runs of consecutive documents [N], cut between the earliest and the latest possible ends.

    Args:
        sentences, bounds, longest: as of `latest_ends`.
        share: [D] from 0 to 1, where each document is cut: 0 as early as possible, 1 as late as possible.
    """
    latest, document = latest_ends(sentences, bounds, longest)
    earliest = earliest_ends(sentences, bounds, longest)
    wanted = earliest + (share[document] * (latest - earliest + 1)).astype(np.int64)
    cuts = np.concatenate([bounds[:1], np.maximum(last_cut(sentences, wanted, longest), earliest)])
    run = np.arange(len(latest))
    while run.size:  # a cut before `wanted` can make the next run too long; it then ends earlier too
        reach = np.minimum(cuts[run] + longest, latest[run])
        ends = np.minimum(cuts[run + 1], last_cut(sentences, reach, longest))
        moved = run[ends < cuts[run + 1]]
        cuts[run + 1] = ends
        run = moved[moved < len(latest) - 1] + 1
    return cuts[1:]


class SentenceRuns(RandomAccess):
    """The examples of a split: row r is run r % len of epoch r // len, whose cuts depend on (seed, epoch).

    A run has at most T - 2 tokens, and a document has as few runs as possible, so all epochs have the same number of
    runs. Within this limit each epoch cuts a document at other places, between the earliest and the latest that are
    possible. Every token is in exactly one run of an epoch.

    Attributes:
        accepts: whether an epoch's runs can be used, given how many runs have each length; set by `pack_runs`.
    """

    # The keys of a batch that are [n W]; labels and loss_mask are after `to_columns`.
    per_token = ("input_ids", "attention_mask", "labels", "loss_mask")

    def __init__(
        self,
        split: Split,
        tokenizer: Tokenizer,
        sequence_length: int,
        seed: int,
        rule: MaskRule = PAPER,
        keep: Keep = in_memory,
    ) -> None:
        check_length(sequence_length)
        self.split, self.sequence_length, self.seed = split, sequence_length, seed
        self.longest = sequence_length - 2
        self.mask = Masker(tokenizer, sequence_length, rule)
        self.pad = self.mask.pad
        self.keep = keep
        self.accepts: Callable[[np.ndarray], bool] = lambda histogram: True
        self.plan = functools.lru_cache(KEPT)(self._find_plan)
        self.length = len(self.plan(0)) - 1

    def _find_plan(self, epoch: int) -> np.ndarray:
        """The bounds of the runs in tokens [N + 1]: 0, then the end of each run."""
        return self.keep("runs", epoch, self._make_plan).arrays["runs"]

    def _make_plan(self, epoch: int, gather: Gather) -> Plan:
        """If `accepts` rejects the lengths of the runs, the cuts are drawn again; in the end epoch 0's are used."""
        draws = [(epoch, draw) for draw in range(DRAWS)]
        for draw in [*draws, (0, 0)]:
            bounds = gather("runs", self._cut(np.random.default_rng([self.seed, *draw])))
            if self.accepts(self._histogram(bounds)):
                break
        return Plan({"runs": bounds}, {})

    def _cut(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """0, then the ends of the runs of each block of documents."""
        yield np.zeros(1, np.int64)
        sentences, documents = self.split.sentences, self.split.documents
        for first, last in document_blocks(self.split):
            bounds = sentences[documents[first : last + 1]]
            yield cut_documents(sentences, bounds, self.longest, rng.random(last - first))

    def _histogram(self, bounds: np.ndarray) -> np.ndarray:
        """How many runs have each number of tokens, special tokens included: [T + 1]."""
        parts = (np.diff(bounds[block.start : block.stop + 1]) + 2 for block in blocks(len(bounds) - 1))
        return np.sum([np.bincount(part, minlength=self.sequence_length + 1) for part in parts], axis=0)

    def __len__(self) -> int:
        return self.length

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows [B] -> the batch of docs/data.md; a row does not depend on the rest of the batch."""
        epochs, index = np.divmod(rows, len(self))
        return self.rows(epochs, index, self.sequence_length)

    def lengths(self, epoch: int) -> np.ndarray:
        """The number of tokens of each run of an epoch [N] uint16, special tokens included."""
        bounds = self.plan(epoch)
        parts = (np.diff(bounds[block.start : block.stop + 1]) + 2 for block in blocks(len(bounds) - 1))
        return np.concatenate([part.astype(np.uint16) for part in parts])

    def rows(self, epochs: np.ndarray, index: np.ndarray, width: int) -> dict[str, np.ndarray]:
        """Run `index` [n] of each epoch: [CLS] run [SEP], then padding up to W tokens; masking depends on (seed, epoch,
        index)."""
        start, length = np.empty_like(index), np.empty_like(index)
        for epoch in np.unique(epochs):
            here, bounds = epochs == epoch, self.plan(int(epoch))
            start[here], length[here] = bounds[index[here]], bounds[index[here] + 1] - bounds[index[here]]
        position, last = np.arange(width)[None], length[:, None] + 1
        fixed = (position == 0) | (position >= last)
        special = np.where(position == 0, self.mask.ids["[CLS]"], self.mask.ids["[SEP]"])
        special = np.where(position > last, self.pad, special)
        places = np.where(fixed, 0, start[:, None] + position - 1)
        tokens = self.split.tokens[places]
        input_ids = np.where(fixed, special, tokens).astype(np.int32)
        keys = counter.keys(self.seed, (epochs << 32) + index)
        masked = self.mask(input_ids, length + 2, fixed, keys, self.split.continues(places))
        return {
            "input_ids": masked.input_ids,
            "attention_mask": (position <= last).astype(np.int32),
            "masked_positions": masked.positions,
            "labels": masked.labels,
            "loss_mask": masked.loss_mask,
        }


def pack_runs(runs: SentenceRuns) -> Packed:
    """The runs in packed rows of T tokens, up to K runs per row; each run of an epoch is in exactly one row.

    Each run is masked as if alone. Every epoch has the same number of rows. It is a little more than epoch 0 needs,
    since the runs of other epochs may pack less well.
    """
    length = runs.sequence_length
    limit = max(2, length // TOKENS_A_RUN)
    rows = count_packs(np.bincount(runs.lengths(0)), length, limit)
    rows = min(len(runs), rows + 2 + math.isqrt(rows))  # epochs differ by about the root of the number of documents
    runs.accepts = lambda histogram: count_packs(histogram, length, limit) <= rows
    return Packed(runs, limit, runs.seed, runs.mask.rule.most_packed(length, limit, SHORTEST_RUN), rows, runs.keep)
