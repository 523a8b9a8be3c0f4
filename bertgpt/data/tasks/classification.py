"""Classification, multi-label classification, regression and multiple choice for a text or a pair of texts."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import Example
from bertgpt.data.tasks.templates import Feature, SequenceTemplate
from bertgpt.errors import InputError, excerpt, quoted

MAX_LABELS = 10_000  # a column with more values is not a column of labels
MAX_NUMBER = 1e18  # its square fits in float32; the comparison with it also rejects NaN
SEPARATOR = "|"  # between the labels in a cell of a table
TEXT_KEYS = ("input_ids", "attention_mask", "token_type_ids", "lm_labels", "lm_loss_mask")


@dataclasses.dataclass(frozen=True)
class Classification:
    """One class, several labels or a number for a text or a pair (Devlin et al. 2019, 4.1; Radford et al. 2018, 3.3).

    Attributes:
        template: the special tokens.
        labels: the names of the classes in order; () for regression.
        problem: Hugging Face's `problem_type`.
        text: the column of the first text.
        pair: the column of the second text; None if there is only one.
        label: the column of the label; for several labels of a list, or of a text with labels separated by "|".
        both_orders: GPT-1 reads a pair in both orders (its similarity task).
    """

    template: SequenceTemplate
    labels: tuple[str, ...]
    problem: str = "single_label_classification"
    text: str = "text"
    pair: str | None = None
    label: str = "label"
    both_orders: bool = False
    per_token: tuple[str, ...] = TEXT_KEYS
    info = None

    def texts(self, row: Row, labelled: bool = True) -> list[str]:
        """The first text, and the second one if there is any."""
        first = row.text(self.text, "task.text")
        return [first, row.text(self.pair, "task.pair")] if self.pair else [first]

    def encode(self, row: Row, labelled: bool = True) -> Example:
        """One feature. `labels` is int32 (multi-label: float32 [L]; regression: float32); `loss_mask` is float32 1."""
        ids = [self.template.content(row, text) for text in self.texts(row)]
        first, second = ids[0], ids[1] if self.pair else None
        feature = self.template.join(first, second)
        if self.both_orders and second is not None:
            feature = stack([feature, self.template.join(second, first)], 2, self.template.pad)
        feature = with_lm_targets(feature, self.template)
        feature["loss_mask"] = np.float32(1)  # type: ignore[assignment]
        if labelled:
            feature["labels"] = self._target(row)
        return Example(row, [feature], cut=self.template.overflows(first, second))

    def _target(self, row: Row) -> Any:
        if self.problem == "regression":
            return np.float32(self.gold(row))
        if self.problem == "multi_label_classification":
            held = [_index(row, label, self.labels) for label in self.gold(row)]
            return np.isin(np.arange(len(self.labels)), held).astype(np.float32)
        return np.int32(_index(row, self.gold(row), self.labels))

    def gold(self, row: Row) -> Any:
        """The row's label, labels or number."""
        value = row.get(self.label, "task.label")
        if self.problem == "regression":
            return _number(row, value, self.label)
        if self.problem == "multi_label_classification":
            return label_names(row, value)
        return label_name(row, value)

    def decode(self, example: Example, outputs: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        """`label`, `probability`, all `probabilities`; multi-label: `labels`, `probabilities`; regression: `score`."""
        logits = outputs[0]["logits"].astype(np.float64)
        if self.problem == "regression":
            return {"score": float(logits[0])}
        if self.problem == "multi_label_classification":
            probabilities = 1 / (1 + np.exp(-logits))
            named = dict(zip(self.labels, probabilities.tolist(), strict=True))
            return {"labels": [name for name, p in named.items() if p > 0.5], "probabilities": named}
        named = dict(zip(self.labels, softmax(logits).tolist(), strict=True))
        best = max(named, key=named.__getitem__)
        return {"label": best, "probability": named[best], "probabilities": named}


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several continuations or answers of a text (Devlin et al. 2019, 4.4; Radford et al. 2018, 3.3).

    Attributes:
        template: the special tokens.
        size: C, choices per input. A row with fewer is padded; `choice_mask` marks the real choices.
        text: the column of the text.
        choices: the column of a list of texts, or a list of columns with one text each.
        label: the column with the number of the correct choice, from 0.
    """

    template: SequenceTemplate
    size: int
    text: str = "text"
    choices: str | list[str] = "choices"
    label: str = "label"
    per_token: tuple[str, ...] = TEXT_KEYS
    info = None

    def texts(self, row: Row, labelled: bool = True) -> list[str]:
        """The text and its choices."""
        return [row.text(self.text, "task.text"), *self.options(row)]

    def encode(self, row: Row, labelled: bool = True) -> Example:
        """One feature, with token vectors [C T], `labels` int32, `choice_mask` float32 [C], `loss_mask` float32 1."""
        first = self.template.content(row, row.text(self.text, "task.text"))
        ids = [self.template.content(row, choice) for choice in self.options(row)]
        if len(ids) > self.size:
            raise InputError(f"{row.place}: {len(ids)} choices; the maximum here is {self.size}")
        feature = stack([self.template.join(first, second) for second in ids], self.size, self.template.pad)
        feature = with_lm_targets(feature, self.template)
        feature["choice_mask"] = (np.arange(self.size) < len(ids)).astype(np.float32)
        feature["loss_mask"] = np.float32(1)  # type: ignore[assignment]
        if labelled:
            feature["labels"] = np.int32(self.gold(row))  # type: ignore[assignment]
        return Example(row, [feature], cut=any(self.template.overflows(first, second) for second in ids))

    def options(self, row: Row) -> list[str]:
        """The row's choices.

        Raises:
            InputError: there are not at least two texts.
        """
        if isinstance(self.choices, str):
            found = row.get(self.choices, "task.choices")
        else:
            found = [row.get(column, "task.choices") for column in self.choices]
        texts = isinstance(found, list) and all(isinstance(text, str) and text.strip() for text in found)
        if not texts or len(found) < 2:
            raise InputError(f"{row.place}: task.choices must give two texts or more, not {str(found)[:80]!r}")
        return found

    def gold(self, row: Row) -> int:
        """The number of the correct choice, from 0."""
        value, count = row.get(self.label, "task.label"), len(self.options(row))
        if isinstance(value, bool) or not str(value).isdecimal() or len(str(value)) > 9:
            raise InputError(f"{row.place}: label {quoted(value)} is not the number of a choice, from 0 to {count - 1}")
        if int(value) >= count:
            raise InputError(f"{row.place}: label {value} is out of range: the choices are 0 to {count - 1}")
        return int(value)

    def decode(self, example: Example, outputs: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        """`label` (the number), `choice` (the text), its `probability` and all `probabilities`."""
        choices = self.options(example.row)
        probabilities = softmax(outputs[0]["mc_logits"][: len(choices)].astype(np.float64)).tolist()
        best = max(range(len(choices)), key=probabilities.__getitem__)
        return {
            "label": best,
            "choice": choices[best],
            "probability": probabilities[best],
            "probabilities": probabilities,
        }


def most_choices(rows: Iterable[Row], choices: str | list[str]) -> int:
    """C: the largest number of choices in a row, at least 2."""
    if not isinstance(choices, str):
        return len(choices)
    found = (row.values.get(choices) for row in rows)
    return max((len(value) for value in found if isinstance(value, list)), default=2)


def find_labels(rows: Iterable[Row], column: str, several: bool) -> tuple[str, ...]:
    """The labels of training rows, sorted; whole numbers are sorted by value.

    Args:
        rows: the training rows.
        column: of the label.
        several: whether a row may have several labels.

    Raises:
        InputError: a row has no label, or there are too few or over MAX_LABELS different labels. At least two are
            needed, or one if `several`.
    """
    found: set[str] = set()
    for row in rows:
        value = row.get(column, "task.label")
        found |= set(label_names(row, value)) if several else {label_name(row, value)}
    if len(found) < (1 if several else 2):
        raise InputError(
            f"the training rows have only the labels {sorted(found)}; give at least {'one' if several else 'two'} "
            "(without data.eval, some rows are held out)"
        )
    if len(found) > MAX_LABELS:
        problem = f"data.train has {len(found):,} labels in column {quoted(column)}, over the maximum of {MAX_LABELS:,}"
        raise InputError(f"{problem}; set task.label to another column")
    if all(name.isdecimal() and len(name) < 10 for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def label_name(row: Row, value: Any) -> str:
    """A label as text; whole numbers and truth values are labels too."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, str):
        raise InputError(f"{row.place}: the label is empty; fill it in or remove the row")
    hint = "for fractional numbers set task.kind to regression" if isinstance(value, float) else "give a text"
    raise InputError(f"{row.place}: label {quoted(value)} is not a class name; {hint}")


def label_names(row: Row, value: Any) -> list[str]:
    """Several labels: from a list, or a text with labels separated by "|"; may be empty."""
    if isinstance(value, str):
        value = [part for part in value.split(SEPARATOR) if part.strip()]
    if not isinstance(value, list):
        raise InputError(
            f"{row.place}: labels {quoted(value)} must be a list, or a text separated by {quoted(SEPARATOR)}"
        )
    return [label_name(row, name) for name in value]


def _index(row: Row, name: str, labels: tuple[str, ...]) -> int:
    if name not in labels:
        known = ", ".join(labels[:20])
        raise InputError(
            f"{row.place}: label {quoted(name)} is not among those of the training data ({excerpt(known)}); correct "
            "it, or add such rows to data.train"
        )
    return labels.index(name)


def _number(row: Row, value: Any, column: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_NUMBER:
        raise InputError(f"{row.place}: column {quoted(column)} is {quoted(value)}; a regression needs a number")
    return number


def stack(features: Sequence[Feature], size: int, pad: int) -> Feature:
    """Inputs [T'] of one row stacked to [C T'], padded.

    Missing inputs, up to C, have one padding token that is attended to, because a softmax needs at least one.
    """
    width = max(len(feature["input_ids"]) for feature in features)
    stacked = {name: np.zeros((size, width), np.int32) for name in features[0]}
    stacked["input_ids"][:] = pad
    stacked["attention_mask"][len(features) :, 0] = 1
    for row, feature in enumerate(features):
        for name, value in feature.items():
            stacked[name][row, : len(value)] = value
    return stacked


def with_lm_targets(feature: Feature, template: SequenceTemplate) -> Feature:
    """For GPT-1, adds `lm_labels` [... T'], the next tokens, and `lm_loss_mask` float32 [... T'].

    The mask of each text sums to 1: long texts weigh no more than short ones (train.py of
    openai/finetune-transformer-lm).
    """
    if template.bert:
        return feature
    ids, real = feature["input_ids"], feature["attention_mask"]
    labels, mask = np.zeros_like(ids), np.zeros(ids.shape, np.float32)
    labels[..., :-1] = ids[..., 1:]
    mask[..., :-1] = real[..., 1:]
    return feature | {"lm_labels": labels, "lm_loss_mask": mask / np.maximum(mask.sum(-1, keepdims=True), 1)}


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
