"""Masked language modelling: which tokens are predicted, and what replaces them (Devlin et al. 2019, 3.1)."""

from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from bertgpt.data.pretraining import counter
from bertgpt.errors import InputError, check_ids
from bertgpt.tokenizers import BERT_SPECIAL, continuation_table, special_id, vocabulary_size


class MaskRule(NamedTuple):
    """Which tokens are predicted, and what replaces them; the defaults are the paper's.

    Attributes:
        rate: share of a sequence's tokens that is predicted, between 0 and 1. Special tokens count as tokens.
        split: shares of the chosen tokens that become [MASK], become a random token, and stay; their sum is 1.
        whole_word: whether the pieces of a word are chosen together.
    """

    rate: float = 0.15
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    whole_word: bool = False

    def most(self, length: int) -> int:
        """The maximum number of chosen tokens in one example of up to `length` tokens."""
        return int(budget(np.array(length), self.rate))

    def most_packed(self, length: int, examples: int, shortest: int) -> int:
        """The maximum number of chosen tokens in a row of `length` tokens, with up to `examples` examples of at least
        `shortest` tokens each.

        An example of n tokens has max(1, round(rate n)), which is at most rate n + max(0.5, 1 - rate n).
        """
        excess = max(0.5, 1 - self.rate * shortest)
        return min(length, int(self.rate * length + examples * excess + 1e-6))


PAPER = MaskRule()


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


def budget(lengths: np.ndarray, rate: float = PAPER.rate) -> np.ndarray:
    """How many tokens of a sequence are predicted: max(1, round(rate length)), with halves rounded to even."""
    return np.maximum(1, np.rint(rate * lengths)).astype(np.int64)


def mask_rows(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    fixed: np.ndarray,
    keys: np.ndarray,
    mask_id: int,
    vocab_size: int,
    continues: np.ndarray | None = None,
    full_length: int | None = None,
    rule: MaskRule = PAPER,
) -> Masked:
    """Chooses a share of each row's tokens, and replaces most of them. By the paper's rule, 15 % are chosen; of these,
    80 % become [MASK], 10 % become a random token of the vocabulary, and 10 % stay.

    Args:
        input_ids: [B T] int32.
        lengths: [B], tokens per row, special tokens included.
        fixed: [B T] bool, True = never chosen: special tokens and padding. The first column ([CLS]) is always True.
        keys: [B] uint64 from `counter.keys`.
        mask_id: the id of [MASK].
        vocab_size: random tokens are below it.
        continues: [B T] bool, True = the token continues a word. If given, the tokens of a word are chosen together,
            and a word that exceeds the rest of the budget is skipped (Google's whole-word masking).
        full_length: the T of the complete rows, if `input_ids` lacks columns of padding at the end. The rows are masked
            as if those columns were present.
        rule: the shares. Its `whole_word` is not read; give `continues`.
    """
    counts = budget(lengths, rule.rate)
    width = rule.most(input_ids.shape[1])
    full_length = full_length or input_ids.shape[1]
    full_width = rule.most(full_length)
    priority = counter.bits(keys, np.arange(input_ids.shape[1]))
    if continues is None:
        positions = _choose_tokens(priority, fixed, np.minimum(counts, (~fixed).sum(1)), width)
    else:
        positions = _choose_words(priority, fixed, counts, width, continues)
    chosen = positions < input_ids.shape[1]
    positions = np.where(chosen, positions, 0)
    labels = np.take_along_axis(input_ids, positions, axis=1)

    draws = counter.uniform(counter.bits(keys, np.arange(width) + full_length))
    tokens = counter.uniform(counter.bits(keys, np.arange(width) + full_length + full_width)) * vocab_size
    masked_share, random_share, _ = rule.split
    kept = np.where(draws < masked_share + random_share, tokens.astype(np.int32), labels)
    replaced = np.where(draws < masked_share, mask_id, kept)
    masked = input_ids.copy()
    np.put_along_axis(masked, positions, np.where(chosen, replaced, labels).astype(np.int32), axis=1)
    # Unused entries point at position 0, which is [CLS]: it is never chosen, and is written back unchanged.
    return Masked(masked, positions.astype(np.int32), np.where(chosen, labels, 0), chosen.astype(np.float32))


class Masker:
    """Masks rows of up to T tokens with a tokenizer's [MASK], vocabulary and words.

    Attributes:
        ids: the ids of BERT's special tokens, by token.
        pad: the id of [PAD].
        rule: the shares.
    """

    def __init__(self, tokenizer: Tokenizer, sequence_length: int, rule: MaskRule) -> None:
        self.ids = {token: special_id(tokenizer, token) for token in BERT_SPECIAL}
        self.pad, self.rule, self.sequence_length = self.ids["[PAD]"], rule, sequence_length
        self.vocab_size = vocabulary_size(tokenizer)
        self.continues = np.array(continuation_table(tokenizer)) if rule.whole_word else None

    def __call__(
        self,
        input_ids: np.ndarray,
        lengths: np.ndarray,
        fixed: np.ndarray,
        keys: np.ndarray,
        continues: np.ndarray | None = None,
    ) -> Masked:
        """Masks rows [B W] as if they were padded to T tokens; arguments as of `mask_rows`.

        Without whole words, `continues` is not used; with them, None means that `##` marks pieces that continue a word.
        """
        mask_id, rule = self.ids["[MASK]"], self.rule
        if self.continues is None:
            continues = None
        elif continues is None:
            continues = self.continues[input_ids]
        return mask_rows(
            input_ids, lengths, fixed, keys, mask_id, self.vocab_size, continues, self.sequence_length, rule
        )


def mask_tokens(
    input_ids: np.ndarray, tokenizer: Tokenizer, seed: int = 0, rule: MaskRule = PAPER, row: int = 0
) -> dict[str, np.ndarray]:
    """Masks rows of tokens for masked language modelling.

    [CLS], [SEP], [MASK] and [PAD] are never chosen. With the rule's `whole_word`, `##` marks pieces that continue a
    word.

    Args:
        input_ids: [B T] int, each row [CLS] ... [SEP], then [PAD].
        tokenizer: of the ids, a BERT's.
        seed: of the masks.
        rule: the shares.
        row: the number of the first row. The masks of a row depend on (seed, its number) alone, so give new numbers for
            new masks.

    Returns:
        `input_ids`, with the chosen tokens replaced, and `attention_mask` [B T] int32; `masked_positions` and `labels`
        [B P] int32 and `loss_mask` [B P] float32, as in docs/data.md.

    Raises:
        InputError: a row does not begin with [CLS], or an id is not in the vocabulary.
    """
    input_ids = np.asarray(input_ids)
    if input_ids.ndim != 2 or input_ids.dtype.kind not in "iu":
        raise InputError(f"input_ids must be an integer array [B T], not {input_ids.dtype} {list(input_ids.shape)}")
    check_ids(input_ids, vocabulary_size(tokenizer))
    masker = Masker(tokenizer, input_ids.shape[1], rule)
    if (input_ids[:, :1] != masker.ids["[CLS]"]).any() or not input_ids.shape[1]:
        raise InputError("input_ids: a row does not begin with [CLS]; encode texts with their special tokens")
    real = input_ids != masker.pad
    fixed = np.isin(input_ids, [masker.ids[token] for token in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")])
    keys = counter.keys(seed, np.arange(row, row + len(input_ids)))
    masked = masker(input_ids.astype(np.int32), real.sum(1), fixed, keys)
    return {
        "input_ids": masked.input_ids,
        "attention_mask": real.astype(np.int32),
        "masked_positions": masked.positions,
        "labels": masked.labels,
        "loss_mask": masked.loss_mask,
    }


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
