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
from bertgpt.data.text.store import Split
from bertgpt.errors import InputError
from bertgpt.tokenizers import special_id

SHORT = 0.1  # share of documents whose pairs have a random shorter length (create_pretraining_data.py, short_seq_prob)
IS_NEXT, NOT_NEXT = 0, 1
BLOCK = 1 << 20  # documents or pairs processed at a time, which keeps memory constant
PAIRS_A_CELL = 200  # average number of pairs per cell of the length baseline's table
MOST_BINS = 16  # maximum number of bins per half
SHORTEST_PAIR = 5  # tokens: [CLS] a [SEP] b [SEP]
TOKENS_A_PAIR = 32  # of a packed row, per pair that it may contain: each possible pair costs an entry in both heads


class PairPlan(NamedTuple):
    """The places of both halves of each pair in the token store: starts and lengths in tokens, each [N]."""

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    label: np.ndarray  # 0 = IsNext, 1 = NotNext


class EpochPlan(NamedTuple):
    """The pairs of one epoch.

    Attributes:
        pairs: all of them.
        shift: the index of the pair in row 0 of the epoch.
        left_out: how many NotNext pairs were dropped to balance the labels.
    """

    pairs: PairPlan
    shift: int
    left_out: int


def plan_pairs(split: Split, max_tokens: int, rng: np.random.Generator, balanced: bool = True) -> tuple[PairPlan, int]:
    """Splits every document into pairs of sentence runs, as Google's create_pretraining_data.py does.

    Each round takes the next chunk of every document that has sentences left, with a few array operations.
    `docs/data.md` lists the differences from Google's results.

    Args:
        split: the text, at least two documents.
        max_tokens: the maximum of A and B together; T - 3.
        rng: decides lengths, splits, labels, other documents and truncation.
        balanced: True: as many IsNext as NotNext pairs. False: Google's rule, a coin flip per chunk.

    Returns:
        The pairs, and how many NotNext pairs were dropped for the balance. If no chunk has two sentences, every pair is
        NotNext and all are kept.

    Raises:
        InputError: the split has only one document.
    """
    if len(split.documents) < 3:
        raise InputError(
            "next-sentence pairs need at least two documents, in training and in held-out text; separate documents "
            "with blank lines (data.document=paragraph), or raise data.eval_fraction"
        )
    short = rng.random(len(split.documents) - 1) < SHORT
    target = np.where(short, rng.integers(2, max_tokens + 1, len(short)), max_tokens)
    start, rounds = split.documents[:-1].copy(), []
    counts = np.zeros(2, np.int64)
    while (document := np.flatnonzero(start < split.documents[1:])).size:
        pairs, single, start[document] = _next_pairs(
            split, document, start[document], target[document], counts if balanced else None, rng
        )
        counts += np.bincount(pairs.label, minlength=2)
        rounds.append((pairs, single))
    plan = PairPlan(*map(np.concatenate, zip(*(pairs for pairs, _ in rounds), strict=True)))
    made = len(plan.label)
    if balanced:
        keep = _drop_excess(plan.label, np.concatenate([single for _, single in rounds]), rng)
        plan = PairPlan(*(field[keep] for field in plan))
    return _truncate(plan, max_tokens, rng), made - len(plan.label)


def _next_pairs(
    split: Split,
    document: np.ndarray,
    first: np.ndarray,
    target: np.ndarray,
    counts: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[PairPlan, np.ndarray, np.ndarray]:
    """The next pair of each document from sentence `first` on.

    Returns also whether its chunk was one sentence, and the first sentence of the document's next chunk. That is after
    this chunk, or after A if B is from another document.
    """
    last = _run_end(split, first, target, split.documents[document + 1])
    single = last - first == 1
    label = _labels(single, counts, rng)
    middle = np.where(single, last, first + 1 + _below(np.maximum(last - first - 1, 1), rng))  # where A ends
    other = _other_document(document, len(split.documents) - 1, rng)
    size = split.documents[other + 1] - split.documents[other]
    b_first = np.where(label == IS_NEXT, middle, split.documents[other] + _below(size, rng))
    a_start, b_start = split.sentences[first], split.sentences[np.minimum(b_first, len(split.sentences) - 1)]
    a_length = split.sentences[middle] - a_start
    elsewhere = _run_end(split, b_first, target - a_length, split.documents[other + 1])
    b_length = split.sentences[np.where(label == IS_NEXT, last, elsewhere)] - b_start
    return (
        PairPlan(a_start, a_length, b_start, b_length, label),
        single,
        np.where(label == IS_NEXT, last, middle),
    )


def _run_end(split: Split, first: np.ndarray, tokens: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """The end of the shortest run of sentences from `first` that has at least `tokens` tokens.

    The run has at least one sentence, and ends at the document's `limit` at the latest.
    """
    begin = split.sentences[np.minimum(first, len(split.sentences) - 1)]
    return np.minimum(np.maximum(np.searchsorted(split.sentences, begin + tokens), first + 1), limit)


def _below(limit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random integer from 0 to limit - 1 for each limit."""
    return rng.integers(0, limit)


def _other_document(document: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """A random other document for each document."""
    other = rng.integers(0, count - 1, len(document))
    return other + (other >= document)


def _labels(single: np.ndarray, counts: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """The label of each chunk; a chunk of one sentence is NotNext.

    Of the longer chunks, enough become NotNext to make both labels equally frequent so far; `counts` are the labels of
    earlier rounds. If `counts` is None, each longer chunk is labelled by a coin flip.
    """
    if counts is None:
        return np.where(single, NOT_NEXT, rng.integers(0, 2, len(single)))
    # Half of all so far, rounded up: surplus NotNext pairs can be dropped at the end, surplus IsNext pairs cannot.
    wanted = (counts.sum() + len(single) + 1) // 2 - counts[NOT_NEXT] - single.sum()
    several = rng.permutation(np.flatnonzero(~single))
    label = single.astype(np.int64)  # 1 = NOT_NEXT
    label[several[: max(0, wanted)]] = NOT_NEXT
    return label


def _drop_excess(label: np.ndarray, single: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The pairs to keep: as many NotNext as IsNext pairs. NotNext pairs of one-sentence chunks are dropped first."""
    excess = int((label == NOT_NEXT).sum() - (label == IS_NEXT).sum())
    keep = np.ones(len(label), bool)
    candidates = rng.permutation(np.flatnonzero(label == NOT_NEXT))
    candidates = candidates[np.argsort(~single[candidates], kind="stable")]
    if (label == IS_NEXT).any():  # else there is nothing to balance against
        keep[candidates[: max(0, excess)]] = False
    return keep


def _truncate(plan: PairPlan, max_tokens: int, rng: np.random.Generator) -> PairPlan:
    """Truncates pairs to `max_tokens`.

    As if tokens were removed one by one from the longer half (B if they are equal), each from the front or the back by
    a coin flip, until both halves fit; computed at once.
    """
    excess = np.maximum(plan.a_length + plan.b_length - max_tokens, 0)
    difference = plan.a_length - plan.b_length
    alone = np.minimum(excess, np.abs(difference))  # tokens removed until the halves are equally long
    both = excess - alone
    a_cut = np.where(difference > 0, alone, 0) + both // 2
    b_cut = np.where(difference > 0, 0, alone) + (both + 1) // 2
    return plan._replace(
        a_start=plan.a_start + rng.binomial(a_cut, 0.5),
        a_length=plan.a_length - a_cut,
        b_start=plan.b_start + rng.binomial(b_cut, 0.5),
        b_length=plan.b_length - b_cut,
    )


def one_sentence_share(documents: np.ndarray) -> float:
    """The share of documents with one sentence, from the bounds of documents in sentences [D + 1]; read in blocks."""
    count = len(documents) - 1
    blocks = (documents[start : start + BLOCK + 1] for start in range(0, count, BLOCK))
    return sum(int((np.diff(block) == 1).sum()) for block in blocks) / count


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


def fit_lengths(plan: PairPlan, max_tokens: int) -> LengthBaseline:
    """Counts the labels of a plan's pairs by the lengths of both halves, in bins with about equal numbers of pairs.

    Args:
        plan: the training pairs.
        max_tokens: the maximum of A and B together; T - 3.
    """
    bins = min(max(2, math.isqrt(len(plan.label) // PAIRS_A_CELL)), MOST_BINS)
    a_bin, b_bin = (_equal_bins(lengths, max_tokens, bins) for lengths in (plan.a_length, plan.b_length))
    counts = np.zeros((2, bins, bins))
    for start in range(0, len(plan.label), BLOCK):
        block = slice(start, start + BLOCK)
        cell = (plan.label[block] * bins + a_bin[plan.a_length[block]]) * bins + b_bin[plan.b_length[block]]
        counts += np.bincount(cell, minlength=counts.size).reshape(counts.shape)
    shares = counts / np.maximum(counts.sum((1, 2), keepdims=True), 1)
    return LengthBaseline(a_bin, b_bin, np.where(shares[NOT_NEXT] > shares[IS_NEXT], NOT_NEXT, IS_NEXT))


def _equal_bins(lengths: np.ndarray, longest: int, bins: int) -> np.ndarray:
    """The bin of each length from 0 to `longest`, from the share of the given lengths that are shorter."""
    counts = np.bincount(lengths, minlength=longest + 1)
    middle = (np.cumsum(counts) - counts / 2) / len(lengths)
    return np.minimum((middle * bins).astype(np.int64), bins - 1)


class BertPairs:
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
    ) -> None:
        self.split, self.sequence_length, self.seed, self.balanced = split, sequence_length, seed, balanced
        self.mask = Masker(tokenizer, sequence_length, rule)
        self.pad = self.mask.pad
        self.plan = functools.lru_cache(maxsize=2)(self._make_plan)  # two: a batch may span two epochs
        self.length = len(self.plan(0).pairs.label)

    def _make_plan(self, epoch: int) -> EpochPlan:
        rng = np.random.default_rng([self.seed, epoch])
        pairs, left_out = plan_pairs(self.split, self.sequence_length - 3, rng, self.balanced)
        return EpochPlan(pairs, int(rng.integers(len(pairs.label))), left_out)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {name: value[0] for name, value in self.batch(np.array([row])).items()}

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows [B] -> the batch of docs/data.md; a row does not depend on the rest of the batch."""
        epochs, index = np.divmod(rows, len(self))
        for epoch in np.unique(epochs):
            plan = self.plan(int(epoch))
            index[epochs == epoch] = (index[epochs == epoch] + plan.shift) % len(plan.pairs.label)
        return self._assemble(self._pairs(epochs, index), counter.keys(self.seed, rows), self.sequence_length)

    def lengths(self, epoch: int) -> np.ndarray:
        """The number of tokens of each pair of an epoch's plan [N], special tokens included."""
        pairs = self.plan(epoch).pairs
        return pairs.a_length + pairs.b_length + 3

    def rows(self, epochs: np.ndarray, index: np.ndarray, width: int) -> dict[str, np.ndarray]:
        """Pair `index` [n] of each epoch's plan, as a batch of W tokens; masking depends on (seed, epoch, index)."""
        keys = counter.keys(self.seed, (epochs << 32) + index)
        return self._assemble(self._pairs(epochs, index), keys, width)

    def _pairs(self, epochs: np.ndarray, index: np.ndarray) -> PairPlan:
        """Pair `index` [B] of each epoch's plan."""
        pairs = PairPlan(*(np.empty(len(index), np.int64) for _ in PairPlan._fields))
        for epoch in np.unique(epochs):
            here = epochs == epoch
            for field, values in zip(pairs, self.plan(int(epoch)).pairs, strict=True):
                field[here] = values[index[here]]
        return pairs

    def _assemble(self, pairs: PairPlan, keys: np.ndarray, width: int) -> dict[str, np.ndarray]:
        """[CLS] A [SEP] B [SEP], then padding up to `width` tokens."""
        position = np.arange(width)[None]
        a_end = pairs.a_length[:, None] + 1  # the position of the first [SEP]
        b_end = a_end + pairs.b_length[:, None] + 1  # and of the second
        source = np.where(position < a_end, pairs.a_start[:, None] - 1, pairs.b_start[:, None] - a_end - 1) + position
        fixed = (position == 0) | (position == a_end) | (position >= b_end)
        tokens = self.split.tokens[np.where(fixed, 0, source)].astype(np.int32)
        special = np.where(position == 0, self.mask.ids["[CLS]"], self.mask.ids["[SEP]"])
        special = np.where(position > b_end, self.pad, special)
        masked = self.mask(np.where(fixed, special, tokens).astype(np.int32), b_end[:, 0] + 1, fixed, keys)
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
    return Packed(pairs, limit, pairs.seed, most)


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
