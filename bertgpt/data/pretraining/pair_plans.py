"""Which sentences make the pairs of an epoch, as Google's create_pretraining_data.py chooses them.

`docs/data.md` lists the differences from Google's results.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bertgpt.data.pretraining.plans import (
    Gather,
    blocks,
    concatenate,
    document_blocks,
    lengths_of,
    places,
    starts_of,
)
from bertgpt.data.text.store import Split
from bertgpt.errors import InputError

SHORT = 0.1  # share of documents whose pairs have a random shorter length (create_pretraining_data.py, short_seq_prob)
IS_NEXT, NOT_NEXT = 0, 1
LABEL_BIT = np.uint64(63)  # of the place of B


class Pairs(NamedTuple):
    """Sentence pairs: starts and lengths of both halves in the tokens of a split, and labels; each [N] int64."""

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    label: np.ndarray  # 0 = IsNext, 1 = NotNext


def to_records(pairs: Pairs) -> np.ndarray:
    """Pairs -> [N 2] uint64, the form in which a plan is kept: the places of A and of B, with the label in B's."""
    a, b = places(pairs.a_start, pairs.a_length), places(pairs.b_start, pairs.b_length)
    return np.stack([a, b | pairs.label.astype(np.uint64) << LABEL_BIT], axis=1)


def from_records(records: np.ndarray) -> Pairs:
    """The inverse of `to_records`."""
    a, b = records.T
    place = b & np.uint64((1 << int(LABEL_BIT)) - 1)
    label = (b >> LABEL_BIT).astype(np.int64)
    return Pairs(starts_of(a), lengths_of(a), starts_of(place), lengths_of(place), label)


def count_labels(records: np.ndarray) -> np.ndarray:
    """How many pairs of a plan are IsNext, and how many NotNext: [2] int64."""
    not_next = sum(int((records[block, 1] >> LABEL_BIT).sum()) for block in blocks(len(records)))
    return np.array([len(records) - not_next, not_next])


def plan_pairs(
    split: Split,
    max_tokens: int,
    rng: np.random.Generator,
    balanced: bool = True,
    gather: Gather = concatenate,
) -> tuple[np.ndarray, int]:
    """Splits every document into pairs of sentence runs, as Google's create_pretraining_data.py does.

    Documents are processed in blocks. Within a block, each round takes the next chunk of every document that has
    sentences left, with a few array operations.

    Args:
        split: the text, at least two documents.
        max_tokens: the maximum of A and B together; T - 3.
        rng: decides lengths, splits, labels, other documents and truncation.
        balanced: True: as many IsNext as NotNext pairs. False: Google's rule, a coin flip per chunk.
        gather: where the plan is kept.

    Returns:
        The pairs as records [N 2] uint64 (`to_records`), and how many NotNext pairs were dropped for the balance. If no
        chunk has two sentences, every pair is NotNext and all are kept.

    Raises:
        InputError: the split has only one document.
    """
    if len(split.documents) < 3:
        raise InputError(
            "next-sentence pairs need at least two documents, in training and in held-out text; separate documents "
            "with blank lines (data.document=paragraph), or raise data.eval_fraction"
        )
    tallies: list[np.ndarray] = []
    chunks = gather("chunks", _chunk_blocks(split, max_tokens, rng, balanced, tallies))
    dropped = _excess(np.array(tallies)) if balanced else np.zeros(len(tallies), np.int64)

    def kept() -> Iterator[np.ndarray]:
        bounds = np.cumsum([0, *(tally.sum() for tally in tallies)]).tolist()
        for (begin, end), excess in zip(itertools.pairwise(bounds), dropped.tolist(), strict=True):
            *fields, single = chunks[begin:end].T
            pairs = Pairs(*fields)
            if balanced:
                keep = _drop(pairs.label, single.astype(bool), excess, rng)
                pairs = Pairs(*(field[keep] for field in pairs))
            yield to_records(_truncate(pairs, max_tokens, rng))

    return gather("pairs", kept()), int(dropped.sum())


def _chunk_blocks(
    split: Split, max_tokens: int, rng: np.random.Generator, balanced: bool, tallies: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """The pairs of each block of documents before any is dropped or truncated, with whether the chunk of a pair was one
    sentence: [n 6] int64. Appends how many are IsNext, NotNext of several sentences, and NotNext of one: [3]."""
    counts = np.zeros(2, np.int64)
    for documents in document_blocks(split):
        pairs, single = _plan_documents(split, documents, max_tokens, counts, balanced, rng)
        tallies.append(np.bincount(pairs.label + single, minlength=3))
        yield np.stack([*pairs, single], axis=1)


def _plan_documents(
    split: Split,
    documents: tuple[int, int],
    max_tokens: int,
    counts: np.ndarray,
    balanced: bool,
    rng: np.random.Generator,
) -> tuple[Pairs, np.ndarray]:
    """All pairs of consecutive documents, and whether the chunk of each pair was one sentence.

    `counts` are the labels of all pairs so far [2]; those of these pairs are added.
    """
    first, last = documents
    short = rng.random(last - first) < SHORT
    target = np.where(short, rng.integers(2, max_tokens + 1, len(short)), max_tokens)
    start, end = np.array(split.documents[first:last]), np.asarray(split.documents[first + 1 : last + 1])
    rounds = []
    while (left := np.flatnonzero(start < end)).size:
        pairs, single, start[left] = _next_pairs(
            split, first + left, start[left], target[left], counts if balanced else None, rng
        )
        counts += np.bincount(pairs.label, minlength=2)
        rounds.append((*pairs, single))
    *fields, single = map(np.concatenate, zip(*rounds, strict=True))
    return Pairs(*fields), single


def _next_pairs(
    split: Split,
    document: np.ndarray,
    first: np.ndarray,
    target: np.ndarray,
    counts: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[Pairs, np.ndarray, np.ndarray]:
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
        Pairs(a_start, a_length, b_start, b_length, label),
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


def _excess(tallies: np.ndarray) -> np.ndarray:
    """How many NotNext pairs of each block are dropped [blocks], so that both labels are equally frequent.

    Pairs of one-sentence chunks are dropped first. The number is spread over the blocks in proportion to their pairs.

    Args:
        tallies: [blocks 3], how many pairs of each block are IsNext, NotNext of several sentences, NotNext of one.
    """
    is_next, several, single = tallies.sum(0).tolist()
    if not is_next:
        return np.zeros(len(tallies), np.int64)  # there is nothing to balance against
    excess = max(0, several + single - is_next)
    of_single = min(excess, single)
    return _share(tallies[:, 2], of_single) + _share(tallies[:, 1], excess - of_single)


def _share(counts: np.ndarray, total: int) -> np.ndarray:
    """Splits `total` in proportion to `counts` [blocks], into whole numbers of at most `counts`."""
    ends = np.cumsum(counts) * total // max(1, int(counts.sum()))
    return np.diff(ends, prepend=0)


def _drop(label: np.ndarray, single: np.ndarray, excess: int, rng: np.random.Generator) -> np.ndarray:
    """The pairs to keep, if `excess` random NotNext pairs are dropped, those of one-sentence chunks first."""
    keep = np.ones(len(label), bool)
    candidates = rng.permutation(np.flatnonzero(label == NOT_NEXT))
    candidates = candidates[np.argsort(~single[candidates], kind="stable")]
    keep[candidates[:excess]] = False
    return keep


def _truncate(pairs: Pairs, max_tokens: int, rng: np.random.Generator) -> Pairs:
    """Truncates pairs to `max_tokens`.

    As if tokens were removed one by one from the longer half (B if they are equal), each from the front or the back by
    a coin flip, until both halves fit; computed at once.
    """
    excess = np.maximum(pairs.a_length + pairs.b_length - max_tokens, 0)
    difference = pairs.a_length - pairs.b_length
    alone = np.minimum(excess, np.abs(difference))  # tokens removed until the halves are equally long
    both = excess - alone
    a_cut = np.where(difference > 0, alone, 0) + both // 2
    b_cut = np.where(difference > 0, 0, alone) + (both + 1) // 2
    return pairs._replace(
        a_start=pairs.a_start + rng.binomial(a_cut, 0.5),
        a_length=pairs.a_length - a_cut,
        b_start=pairs.b_start + rng.binomial(b_cut, 0.5),
        b_length=pairs.b_length - b_cut,
    )
