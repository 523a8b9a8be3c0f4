"""BERT's pretraining examples: sentence pairs of a token store, masked, as batches."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from bertgpt.data.pretraining import counter
from bertgpt.data.pretraining.masking import PAPER, Masker, MaskRule
from bertgpt.data.pretraining.packing import Packed
from bertgpt.data.pretraining.pair_plans import IS_NEXT, NOT_NEXT, Pairs, from_records, plan_pairs
from bertgpt.data.pretraining.plans import KEPT, Gather, Keep, Plan, blocks, check_length, has_one_block, in_memory
from bertgpt.data.random_access import RandomAccess
from bertgpt.data.text.store import Split
from bertgpt.errors import InputError
from bertgpt.tokenizers import special_id

PAIRS_A_CELL = 200  # average number of pairs per cell of the length baseline's table
MOST_BINS = 16  # maximum number of bins per half
SHORTEST_PAIR = 5  # tokens: [CLS] a [SEP] b [SEP]
TOKENS_A_PAIR = 32  # of a packed row, per pair that it may contain: each possible pair costs an entry in both heads


def one_sentence_share(documents: np.ndarray) -> float:
    """The share of documents with one sentence, from the bounds of documents in sentences [D + 1]; read in blocks."""
    count = len(documents) - 1
    parts = (documents[block.start : block.stop + 1] for block in blocks(count))
    return sum(int((np.diff(part) == 1).sum()) for part in parts) / count


class LengthBaseline(NamedTuple):
    """Next-sentence prediction from the lengths of the two halves only: the baseline that a model has to beat.

    Attributes:
        a_bin, b_bin: the bin of each length, both [max_tokens + 1] int.
        label: the more likely label of each pair of bins [A B] int, if both labels were equally frequent.
    """

    a_bin: np.ndarray
    b_bin: np.ndarray
    label: np.ndarray

    def predict(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """The label [B] of each pair of an unpacked batch."""
        b_length = batch["token_type_ids"].sum(1) - 1
        a_length = batch["attention_mask"].sum(1) - b_length - 3
        return self.label[self.a_bin[a_length], self.b_bin[b_length]]


def fit_lengths(sources: Sequence[np.ndarray], max_tokens: int, weights: Sequence[float] = (1.0,)) -> LengthBaseline:
    """Counts the labels of plans' pairs by the lengths of both halves, in bins with about equal numbers of pairs.

    Args:
        sources: the training pairs of each source, [N 2] uint64 of `pair_plans.to_records`.
        max_tokens: the maximum of A and B together; T - 3.
        weights: of the sources.
    """
    bins = min(max(2, math.isqrt(sum(map(len, sources)) // PAIRS_A_CELL)), MOST_BINS)
    parts = [
        (records[block], weight * len(sources[0]) / len(records))
        for records, weight in zip(sources, weights, strict=True)
        for block in blocks(len(records))
    ]
    a_counts, b_counts = np.zeros((2, max_tokens + 1))
    for records, weight in parts:
        pairs = from_records(records)
        a_counts += weight * np.bincount(pairs.a_length, minlength=max_tokens + 1)
        b_counts += weight * np.bincount(pairs.b_length, minlength=max_tokens + 1)
    a_bin, b_bin = _equal_bins(a_counts, bins), _equal_bins(b_counts, bins)
    counts = np.zeros((2, bins, bins))
    for records, weight in parts:
        pairs = from_records(records)
        cell = (pairs.label * bins + a_bin[pairs.a_length]) * bins + b_bin[pairs.b_length]
        counts += weight * np.bincount(cell, minlength=counts.size).reshape(counts.shape)
    shares = counts / np.maximum(counts.sum((1, 2), keepdims=True), 1)
    return LengthBaseline(a_bin, b_bin, np.where(shares[NOT_NEXT] > shares[IS_NEXT], NOT_NEXT, IS_NEXT))


def _equal_bins(counts: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each length, from the share of shorter lengths; `counts[n]` pairs have length n."""
    middle = (np.cumsum(counts) - counts / 2) / counts.sum()
    return np.minimum((middle * bins).astype(np.int64), bins - 1)


class EpochPlan(NamedTuple):
    """The pairs of one epoch.

    Attributes:
        records: all of them, [N 2] uint64 of `pair_plans.to_records`.
        shift: the index of the pair in row 0 of the epoch.
        left_out: how many NotNext pairs were dropped to balance the labels.
    """

    records: np.ndarray
    shift: int
    left_out: int


class BertPairs(RandomAccess):
    """The examples of a split: row r is example r % len of epoch r // len, whose plan depends on (seed, epoch).

    Every epoch has as many rows as the plan of epoch 0. If an epoch's plan has a few more, a random run of them is
    skipped; if it has a few fewer, a random run is repeated.
    """

    # The keys of a batch that are [n W]; labels and loss_mask are after `to_columns`.
    per_token = ("input_ids", "token_type_ids", "attention_mask", "labels", "loss_mask")

    def __init__(
        self,
        split: Split,
        tokenizer: Tokenizer,
        sequence_length: int,
        seed: int,
        rule: MaskRule = PAPER,
        balanced: bool = True,
        keep: Keep = in_memory,
    ) -> None:
        check_length(sequence_length)
        self.split, self.sequence_length, self.seed, self.balanced = split, sequence_length, seed, balanced
        self.mask = Masker(tokenizer, sequence_length, rule)
        self.pad = self.mask.pad
        self.keep = keep
        self.plan = functools.lru_cache(KEPT)(self._find_plan)
        self.length = len(self.plan(0).records)

    def _find_plan(self, epoch: int) -> EpochPlan:
        plan = self.keep("pairs", epoch, self._make_plan)
        return EpochPlan(plan.arrays["pairs"], **plan.facts)

    def _make_plan(self, epoch: int, gather: Gather) -> Plan:
        rng = np.random.default_rng([self.seed, epoch])
        records, left_out = plan_pairs(self.split, self.sequence_length - 3, rng, self.balanced, gather)
        return Plan({"pairs": records}, {"shift": int(rng.integers(len(records))), "left_out": left_out})

    @property
    def plan_version(self) -> int:
        """The version of the rule that chooses the pairs: 2 if documents are planned in blocks; 1 if one block has all
        of them, since its pairs are those of earlier versions."""
        return 1 if has_one_block(self.split) else 2

    def __len__(self) -> int:
        return self.length

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows [B] -> the batch of docs/data.md; a row does not depend on the rest of the batch."""
        epochs, index = np.divmod(rows, len(self))
        for epoch in np.unique(epochs):
            plan = self.plan(int(epoch))
            index[epochs == epoch] = (index[epochs == epoch] + plan.shift) % len(plan.records)
        return self._assemble(self._pairs(epochs, index), counter.keys(self.seed, rows), self.sequence_length)

    def lengths(self, epoch: int) -> np.ndarray:
        """The number of tokens of each pair of an epoch's plan [N] uint16, special tokens included."""
        records = self.plan(epoch).records
        parts = (from_records(records[block]) for block in blocks(len(records)))
        return np.concatenate([(pairs.a_length + pairs.b_length + 3).astype(np.uint16) for pairs in parts])

    def rows(self, epochs: np.ndarray, index: np.ndarray, width: int) -> dict[str, np.ndarray]:
        """Pair `index` [n] of each epoch's plan, as a batch of W tokens; masking depends on (seed, epoch, index)."""
        keys = counter.keys(self.seed, (epochs << 32) + index)
        return self._assemble(self._pairs(epochs, index), keys, width)

    def _pairs(self, epochs: np.ndarray, index: np.ndarray) -> Pairs:
        """Pair `index` [B] of each epoch's plan."""
        records = np.empty((len(index), 2), np.uint64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            records[here] = self.plan(int(epoch)).records[index[here]]
        return from_records(records)

    def _assemble(self, pairs: Pairs, keys: np.ndarray, width: int) -> dict[str, np.ndarray]:
        """[CLS] A [SEP] B [SEP], then padding up to `width` tokens."""
        position = np.arange(width)[None]
        a_end = pairs.a_length[:, None] + 1  # the position of the first [SEP]
        b_end = a_end + pairs.b_length[:, None] + 1  # and of the second
        source = np.where(position < a_end, pairs.a_start[:, None] - 1, pairs.b_start[:, None] - a_end - 1) + position
        fixed = (position == 0) | (position == a_end) | (position >= b_end)
        places = np.where(fixed, 0, source)
        tokens = self.split.tokens[places].astype(np.int32)
        special = np.where(position == 0, self.mask.ids["[CLS]"], self.mask.ids["[SEP]"])
        special = np.where(position > b_end, self.pad, special)
        input_ids = np.where(fixed, special, tokens).astype(np.int32)
        masked = self.mask(input_ids, b_end[:, 0] + 1, fixed, keys, self.split.continues(places))
        return {
            "input_ids": masked.input_ids,
            "token_type_ids": ((position > a_end) & (position <= b_end)).astype(np.int32),
            "attention_mask": (position <= b_end).astype(np.int32),
            "masked_positions": masked.positions,
            "labels": masked.labels,
            "loss_mask": masked.loss_mask,
            "next_sentence_label": pairs.label.astype(np.int32),
            "nsp_loss_mask": np.ones(len(keys), np.float32),
        }


def pack_pairs(pairs: BertPairs) -> Packed:
    """The pairs in packed rows of T tokens, up to K pairs per row. Each pair is masked and labelled as if alone."""
    limit = max(2, pairs.sequence_length // TOKENS_A_PAIR)
    most = pairs.mask.rule.most_packed(pairs.sequence_length, limit, SHORTEST_PAIR)
    return Packed(pairs, limit, pairs.seed, most, keep=pairs.keep)


def encode(tokenizer: Tokenizer, *texts: str) -> dict[str, np.ndarray]:
    """[CLS] A [SEP], or [CLS] A [SEP] B [SEP], as a batch of one: `input_ids` and `token_type_ids` [1 T] int32.

    A special token spelled out in a text, such as [MASK], is read as that token.

    Raises:
        InputError: there are not one or two texts; BERT has two segments.
    """
    if len(texts) not in (1, 2):
        raise InputError(f"BERT takes one or two texts, not {len(texts)}: it has two segments")
    halves: Sequence[list[int]] = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    ids, segments = [special_id(tokenizer, "[CLS]")], [0]
    for segment, half in enumerate(halves):
        ids += [*half, special_id(tokenizer, "[SEP]")]
        segments += [segment] * (len(half) + 1)
    return {"input_ids": np.array([ids], np.int32), "token_type_ids": np.array([segments], np.int32)}
