"""Masked language modelling: which tokens are predicted, and what replaces them (Devlin et al. 2019, 3.1)."""

from typing import NamedTuple

import numpy as np

from bertgpt.data.pretraining import counter

RATE = 0.15  # share of a sequence's tokens that is predicted; special tokens count as tokens
MASKED, RANDOM = 0.8, 0.1  # shares of the chosen tokens that become [MASK] and a random token; the rest stay


class Masked(NamedTuple):
    """A batch after masking; P is the maximum number of chosen tokens in a row of T tokens.

    Attributes:
        input_ids: [B T] with the chosen tokens replaced.
        positions: [B P] int32, ascending; then 0 for unused entries.
        labels: [B P] int32, the original tokens; 0 for unused entries.
        loss_mask: [B P] float32, 1 for used entries.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray


def budget(lengths: np.ndarray) -> np.ndarray:
    """How many tokens of a sequence are predicted: max(1, round(0.15 length)), with halves rounded to even."""
    return np.maximum(1, np.rint(RATE * lengths)).astype(np.int64)


def mask_tokens(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    fixed: np.ndarray,
    keys: np.ndarray,
    mask_id: int,
    vocab_size: int,
    continues: np.ndarray | None = None,
    full_length: int | None = None,
) -> Masked:
    """Chooses 15 % of each row's tokens: 80 % become [MASK], 10 % a random token of the vocabulary, 10 % stay.

    Args:
        input_ids: [B T] int32.
        lengths: [B], tokens per row, special tokens included.
        fixed: [B T] bool, True = never chosen: special tokens and padding. The first column ([CLS]) is always True.
        keys: [B] uint64 from `counter.keys`.
        mask_id: the id of [MASK].
        vocab_size: random tokens are below it.
        continues: [V] bool, True = the piece continues a word. If given, the pieces of a word are chosen together, and
            a word that exceeds the rest of the budget is skipped (Google's whole-word masking).
        full_length: the T of the complete rows, if `input_ids` lacks columns of padding at the end. The rows are masked
            as if those columns were present.
    """
    width = int(budget(np.array(input_ids.shape[1])))
    full_length = full_length or input_ids.shape[1]
    full_width = int(budget(np.array(full_length)))
    priority = counter.bits(keys, np.arange(input_ids.shape[1]))
    if continues is None:
        positions = _choose_tokens(priority, fixed, np.minimum(budget(lengths), (~fixed).sum(1)), width)
    else:
        positions = _choose_words(priority, fixed, budget(lengths), width, continues[input_ids])
    chosen = positions < input_ids.shape[1]
    positions = np.where(chosen, positions, 0)
    labels = np.take_along_axis(input_ids, positions, axis=1)

    draws = counter.uniform(counter.bits(keys, np.arange(width) + full_length))
    tokens = counter.uniform(counter.bits(keys, np.arange(width) + full_length + full_width)) * vocab_size
    replaced = np.where(draws < MASKED, mask_id, np.where(draws < MASKED + RANDOM, tokens.astype(np.int32), labels))
    masked = input_ids.copy()
    np.put_along_axis(masked, positions, np.where(chosen, replaced, labels).astype(np.int32), axis=1)
    # Unused entries point at position 0, which is [CLS]: it is never chosen, and is written back unchanged.
    return Masked(masked, positions.astype(np.int32), np.where(chosen, labels, 0), chosen.astype(np.float32))


def _choose_tokens(priority: np.ndarray, fixed: np.ndarray, counts: np.ndarray, width: int) -> np.ndarray:
    """The `counts` free positions of lowest priority, ascending [B P]; T for unused entries."""
    length = priority.shape[1]
    priority = np.where(fixed, np.uint64(2**64 - 1), priority)
    candidates = np.argpartition(priority, width - 1, axis=1)[:, :width]
    order = np.argsort(np.take_along_axis(priority, candidates, axis=1), axis=1)
    candidates = np.take_along_axis(candidates, order, axis=1)
    return np.sort(np.where(np.arange(width) < counts[:, None], candidates, length), axis=1)


def _choose_words(
    priority: np.ndarray, fixed: np.ndarray, counts: np.ndarray, width: int, continues: np.ndarray
) -> np.ndarray:
    """Like `_choose_tokens`, but whole words, in order of their first pieces' priority, if they fit the budget."""
    rows, length = priority.shape
    starts = ~fixed & ~(continues & ~np.roll(fixed, 1, axis=1))  # a piece after a special token starts a word
    word = np.cumsum(starts, axis=1) - 1  # [B T], the word of each free position
    sizes = np.zeros((rows, length), np.int64)
    np.add.at(sizes, (np.arange(rows)[:, None], np.where(fixed, 0, word)), ~fixed)
    word_priority = np.full((rows, length), np.uint64(2**64 - 1))
    row, column = np.nonzero(starts)
    word_priority[row, word[row, column]] = priority[row, column]

    taken = np.zeros((rows, length), bool)
    used = np.zeros(rows, np.int64)
    for candidate in np.argsort(word_priority, axis=1).T:  # [B], the next word of each row
        if (used == counts).all():
            break
        size = sizes[np.arange(rows), candidate]
        fits = (size > 0) & (used + size <= counts)
        taken[np.arange(rows), candidate] = fits
        used += size * fits
    chosen = ~fixed & np.take_along_axis(taken, np.maximum(word, 0), axis=1)
    positions = np.where(chosen, np.arange(length), length)
    return np.sort(positions, axis=1)[:, :width]
