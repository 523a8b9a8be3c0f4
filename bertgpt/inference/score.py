"""How likely a model finds a text: the log-probability of each token, and the perplexity."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from tokenizers import Tokenizer

from bertgpt.errors import InputError, check_ids
from bertgpt.inference.batches import groups, padded
from bertgpt.losses.chunked_cross_entropy import log_probabilities
from bertgpt.model.blocks import Model
from bertgpt.tokenizers import special_id

SCORERS = ("BertForMaskedLM", "BertForPreTraining", "OpenAIGPTLMHeadModel")


@dataclasses.dataclass(frozen=True)
class Score:
    """The tokens of a text, without special tokens, and the log-probability of each.

    Attributes:
        ids: [N] int32.
        log_probs: [N] float32, in nats. For BERT, log p(token | all other tokens), so that their sum is the
            pseudo-log-likelihood (Salazar et al. 2020, arXiv 1910.14659). For GPT-1, log p(token | earlier tokens); NaN
            for the first token, which has none before it.
    """

    ids: np.ndarray
    log_probs: np.ndarray

    @property
    def count(self) -> int:
        """The number of tokens that have a log-probability."""
        return int((~np.isnan(self.log_probs)).sum())

    @property
    def log_prob(self) -> float:
        """The sum of the log-probabilities."""
        return float(np.nansum(self.log_probs, dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp(-mean log-probability); NaN for a GPT-1's text of one token."""
        return perplexity(self.log_prob, self.count)


def perplexity(log_prob: float, count: int) -> float:
    """Return exp(-log_prob / count); NaN for no tokens, infinity if it is too large for a float."""
    if not count:
        return math.nan
    return math.exp(-log_prob / count) if -log_prob / count < 700 else math.inf


class Window(NamedTuple):
    """What one row of a batch reads and scores.

    Attributes:
        text: the number of the text.
        start: the first token of the text that is scored.
        ids: the tokens that are read; BERT's have [CLS], [SEP], and [MASK] in place of the token that is scored.
        place: of the first token that is scored, in `ids`.
        labels: the tokens that are scored.
    """

    text: int
    start: int
    ids: np.ndarray
    place: int
    labels: np.ndarray


def score(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    stride: int | None = None,
    batch_size: int = 32,
) -> list[Score]:
    """Return the log-probability of every token of each text.

    A BERT reads a text once for each token, with this token masked. A text that is longer than the model's positions is
    read in windows: BERT's has the masked token in its middle, and GPT-1's scores `stride` tokens after those that an
    earlier window has scored.

    Args:
        model: an `OpenAIGPTLMHeadModel`, a `BertForMaskedLM` or a `BertForPreTraining`.
        params: its parameters.
        tokenizer: the model's tokenizer.
        texts: the texts.
        stride: GPT-1: tokens that each further window scores; fewer give each token more context and take longer. None:
            half of the model's positions.
        batch_size: the number of rows per batch.

    Raises:
        InputError: the model has no such head, its outputs are NaN, a text is empty, or a setting is out of range.
    """
    if isinstance(texts, str):
        raise InputError("score takes a list of texts, such as [text]")
    return list(score_each(model, params, tokenizer, texts, stride=stride, batch_size=batch_size))


def score_each(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    stride: int | None = None,
    batch_size: int = 32,
) -> Iterator[Score]:
    """Yield what `score` returns, in order, with few texts in memory. Arguments and errors as of `score`."""
    positions = model.config.max_positions
    if stride is not None and not model.config.causal:
        raise InputError(f"stride is {stride}, but it is for GPT-1; a BERT's windows surround the masked token")
    stride = max(1, positions // 2) if stride is None else stride
    _check(model, stride, batch_size)
    scores: dict[int, Score] = {}

    def windows() -> Iterator[Window]:
        for number, text in enumerate(texts):
            ids = _text_ids(tokenizer, text, number + 1, model)
            scores[number] = Score(ids, np.full(len(ids), np.nan, np.float32))
            if model.config.causal:
                yield from _causal_windows(number, ids, positions, stride)
            else:
                yield from _masked_windows(number, ids, positions, tokenizer)

    first = 0  # the first text that was not given out yet
    for group in groups(windows(), batch_size):
        for window, values in zip(group, _log_probs(model, params, group, batch_size), strict=True):
            if np.isnan(values).any():
                raise InputError(f"text {window.text + 1}: the model's outputs are NaN; its weights are damaged")
            scores[window.text].log_probs[window.start : window.start + len(values)] = values
        for number in range(first, group[-1].text):  # all their windows are scored
            yield scores.pop(number)
        first = group[-1].text
    yield from scores.values()


def _check(model: Model, stride: int, batch_size: int) -> None:
    name, positions = type(model).__name__, model.config.max_positions
    if name not in SCORERS:
        raise InputError(f"a {name} gives tokens no probability; load a {', '.join(SCORERS[:-1])} or {SCORERS[-1]}")
    if not 1 <= stride < positions:
        raise InputError(f"stride is {stride}; it must be from 1 to {positions - 1}, the model's positions less one")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")


def _text_ids(tokenizer: Tokenizer, text: str, number: int, model: Model) -> np.ndarray:
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    if not ids.size:
        raise InputError(f"text {number} is empty; remove it")
    check_ids(ids, model.config.vocab_size)
    return ids


def _causal_windows(number: int, ids: np.ndarray, positions: int, stride: int) -> Iterator[Window]:
    """Windows of a GPT-1: the first scores all its tokens but one, each further one the `stride` tokens at its end."""
    start, end = 1, min(len(ids), positions)
    while start < len(ids):
        begin = max(0, end - positions)
        yield Window(number, start, ids[begin:end], start - begin, ids[start:end])
        start, end = end, min(len(ids), end + stride)


def _masked_windows(number: int, ids: np.ndarray, positions: int, tokenizer: Tokenizer) -> Iterator[Window]:
    """Windows of a BERT: one for each token, which is masked and as far from both ends as the text allows."""
    cls, sep, mask = (special_id(tokenizer, token) for token in ("[CLS]", "[SEP]", "[MASK]"))
    room = positions - 2
    for start in range(len(ids)):
        begin = min(max(0, start - room // 2), max(0, len(ids) - room))
        place = start - begin + 1
        read = np.array([cls, *ids[begin : begin + room], sep], np.int32)
        read[place] = mask
        yield Window(number, start, read, place, ids[start : start + 1])


def _log_probs(model: Model, params: Any, group: Sequence[Window], batch_size: int) -> list[np.ndarray]:
    """Return the log-probabilities of the labels of each window."""
    batch = padded([window.ids for window in group], batch_size, model.config.max_positions)
    if model.config.causal:
        labels = np.roll(batch["input_ids"], -1, axis=1)  # position t predicts token t + 1
        found = np.asarray(_apply(model, params, batch, labels))
        firsts = [window.place - 1 for window in group]
        return [row[at : at + len(window.labels)] for row, at, window in zip(found, firsts, group, strict=False)]
    rows = np.zeros((2, len(batch["input_ids"]), 1), np.int32)
    rows[0, : len(group), 0] = [window.place for window in group]
    rows[1, : len(group)] = [window.labels for window in group]
    return list(np.asarray(_apply(model, params, batch | {"masked_positions": rows[0]}, rows[1])))[: len(group)]


@functools.partial(jax.jit, static_argnames="model")
def _apply(model: Any, params: Any, batch: dict[str, Array], labels: Array) -> Array:
    output = model.apply({"params": params}, **batch, output_logits=False)
    return log_probabilities(output.head_logits if model.config.causal else output.mlm_logits, labels)
