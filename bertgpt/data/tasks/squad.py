"""Extractive question answering: the answer is a span of the context, or missing (SQuAD 1.1 and 2.0)."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import Example
from bertgpt.data.tasks.templates import Feature, SequenceTemplate
from bertgpt.errors import InputError


class Window(NamedTuple):
    """The part of a context in one input, n pieces.

    Attributes:
        offsets: [n 2] int64, the start and end of each piece in characters of the context.
        begin: the first piece's position in the input.
        max_context: [n] bool, whether the piece has more context here than in any other window.
    """

    offsets: np.ndarray
    begin: int
    max_context: np.ndarray


class Span(NamedTuple):
    """A candidate answer, in characters of the context; the null answer has start and end None."""

    answer: str
    start: int | None
    end: int | None
    score: float  # start logit + end logit


@dataclass(frozen=True)
class Answers:
    """Questions whose answer is a span of a context, read in windows (Devlin et al. 2019, 4.2 and 4.3; run_squad.py).

    Attributes:
        template: BERT's special tokens; the question is segment 0, the window segment 1.
        stride: pieces from the start of one window to the start of the next.
        max_question: maximum pieces of a question; the rest is truncated.
        n_best: candidates that are kept for the start, for the end and for the answer.
        max_answer: maximum pieces of an answer.
        null_threshold: no answer is predicted if the null score exceeds the best span's score by more than this.
            None: every question has an answer.
        question_column, context_column: columns of texts.
        answers_column: the column of {"text": [...], "answer_start": [...]}, of a list of {"text": ...,
            "answer_start": ...}, or of a text. Without `answer_start`, the first occurrence is the answer.
            `answer_start` is in characters.
    """

    template: SequenceTemplate
    stride: int = 128
    max_question: int = 64
    n_best: int = 20
    max_answer: int = 30
    null_threshold: float | None = None
    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    per_token: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    info = Window

    def __post_init__(self) -> None:
        for name in ("stride", "max_question", "n_best", "max_answer"):
            if getattr(self, name) < 1:
                raise InputError(f"task.{name} is {getattr(self, name)}; it must be at least 1")

    def texts(self, row: Row, labelled: bool = True) -> list[str]:
        """The question and the context."""
        return [row.text(self.question_column, "task.question"), row.text(self.context_column, "task.context")]

    def encode(self, row: Row, labelled: bool = True) -> Example:
        """A feature for each window: [CLS] question [SEP] window [SEP].

        Returns:
            Features of `input_ids`, `attention_mask`, `token_type_ids` int32 [up to T] and `loss_mask` float32 1. If
            labelled, also `start_positions` and `end_positions` int32: the positions of the first answer in the input,
            or 0 if the window does not contain all of it. `decode_info` is the windows.

        Raises:
            InputError: a column is missing or empty; the answer is not in the context; there is no answer and
                `null_threshold` is None; the question leaves no room for the context.
        """
        question = self.template.content(row, row.text(self.question_column, "task.question"))
        context = row.text(self.context_column, "task.context")
        encoding = self.template.encoding(row, context)
        offsets = _offsets(context, encoding.offsets)
        target = self._target(row, context, offsets) if labelled else None
        kept = question[: self.max_question]
        spans = windows(len(offsets), self._room(row, len(kept)), self.stride)
        decode_info, features = [], []
        for (start, end), most in zip(spans, max_context(spans), strict=True):
            window = Window(offsets[start:end], len(kept) + 2, most)
            feature = self.template.join(kept, encoding.ids[start:end]) | {"loss_mask": np.array(1, np.float32)}
            features.append(feature | (_label(target, start, window) if labelled else {}))
            decode_info.append(window)
        return Example(row, features, decode_info, len(kept) < len(question))

    def decode(self, example: Example, outputs: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        """The best span over the windows, as in `write_predictions` of run_squad.py.

        There are three differences. Candidates are the `n_best` starts and ends among the context's pieces
        (run_squad.py: among all positions). The answer is the context's own text (run_squad.py: words joined by single
        spaces). A list has each span once (run_squad.py: each text once).

        Args:
            example: from `encode`.
            outputs: `start_logits` and `end_logits` [T] for each of its features.

        Returns:
            `answer`, `start`, `end`, `probability` (among the listed answers), and `n_best`, a list of the same values
            from best to worst. The null answer is "" with start and end None. It is listed with `null_threshold`, or if
            no span is allowed. With `null_threshold` also `null_score_difference`, the null score minus the best span's
            score (None if no span is allowed).
        """
        context = example.row.text(self.context_column, "task.context")
        names = ("start_logits", "end_logits")
        logits = [[np.asarray(output[name], np.float64) for name in names] for output in outputs]
        found = [self._candidates(window, *pair) for window, pair in zip(example.decode_info, logits, strict=True)]
        spans = self._best(context, found)
        if self.null_threshold is None:
            spans = spans or [Span("", None, None, 0.0)]
            return _prediction(spans[0], spans)
        null = Span("", None, None, float(min(start[0] + end[0] for start, end in logits)))
        difference = null.score - spans[0].score if spans else None
        chosen = null if difference is None or difference > self.null_threshold else spans[0]
        return _prediction(chosen, [*spans, null]) | {"null_score_difference": difference}

    def gold(self, row: Row) -> list[str]:
        """The row's answers, [] if it has none.

        Raises:
            InputError: the column is missing, or does not contain answers.
        """
        return [text for text, _ in self._answers(row)]

    def _room(self, row: Row, question: int) -> int:
        """Pieces of a window next to a question of `question` pieces."""
        room = self.template.length - question - 3
        if room < 1:
            raise InputError(
                f"{row.place}: {question} pieces of the question leave no room for the context in "
                f"{self.template.length} tokens; lower task.max_question or raise data.sequence_length"
            )
        return room

    def _answers(self, row: Row) -> list[tuple[str, int | None]]:
        """Answers that are not blank, with their starts if given."""
        absent = self.answers_column in row.values and row.values[self.answers_column] is None
        value = [] if absent else row.get(self.answers_column, "task.answers")
        answers = _answer_list(value)
        if answers is None:
            raise InputError(
                f"{row.place}: column {self.answers_column!r} is {repr(value)[:60]}, not answers; give "
                '{"text": [...], "answer_start": [...]}, a list of {"text": ..., "answer_start": ...}, or a text'
            )
        return [(text, start) for text, start in answers if text.strip()]

    def _target(self, row: Row, context: str, offsets: np.ndarray) -> tuple[int, int] | None:
        """The first and the last piece that the first answer overlaps; None if there is no answer."""
        answers = self._answers(row)
        if not answers and self.null_threshold is None:
            raise InputError(f"{row.place}: it has no answer; set task.null_threshold for SQuAD 2.0, or remove the row")
        if not answers:
            return None
        text, given = answers[0]
        start = _find(row, context, text, given)
        pieces = np.flatnonzero((offsets[:, 0] < start + len(text)) & (offsets[:, 1] > start))
        if not pieces.size:
            raise InputError(f"{row.place}: the answer {text[:40]!r} has no tokens; correct it or remove the row")
        return int(pieces[0]), int(pieces[-1])

    def _candidates(self, window: Window, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The allowed spans of one window from logits [T]: scores [m], and start and end in characters [m 2]."""
        pieces = slice(window.begin, window.begin + len(window.offsets))
        start, end = start[pieces], end[pieces]
        first, last = (np.argsort(-logits, kind="stable")[: self.n_best] for logits in (start, end))
        length = last - first[:, None] + 1
        rows, columns = np.nonzero(window.max_context[first][:, None] & (length >= 1) & (length <= self.max_answer))
        first, last = first[rows], last[columns]
        return start[first] + end[last], np.stack([window.offsets[first, 0], window.offsets[last, 1]], axis=1)

    def _best(self, context: str, found: list[tuple[np.ndarray, np.ndarray]]) -> list[Span]:
        """The `n_best` spans of highest score over all windows, each once."""
        scores, places = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(-scores, kind="stable")
        first = np.sort(np.unique(places[order], axis=0, return_index=True)[1])  # of equal spans, the best comes first
        chosen = order[first[: self.n_best]]
        return [
            Span(context[start:end], start, end, score)
            for score, (start, end) in zip(scores[chosen].tolist(), places[chosen].tolist(), strict=True)
        ]


def windows(count: int, length: int, stride: int) -> list[tuple[int, int]]:
    """Splits `count` pieces into windows of up to `length`: start and end of each (`doc_spans` of run_squad.py).

    The first window that reaches the end is the last. No piece is skipped, even if the stride exceeds the length.
    """
    spans = [(0, min(length, count))]
    while spans[-1][1] < count:
        start = spans[-1][0] + min(length, stride)
        spans.append((start, min(start + length, count)))
    return spans


def max_context(spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """For each window, whether each of its pieces has its maximum context there, bool [length of the window].

    The context is min(pieces to the left, pieces to the right) + 0.01 x the window's length. If windows are equal, the
    first counts (`_check_is_max_context` of run_squad.py). Each piece has exactly one such window.
    """
    count = spans[-1][1]
    best, owner = np.full(count, -1.0), np.zeros(count, np.int64)
    for index, (start, end) in enumerate(spans):
        left = np.arange(end - start)
        score = np.minimum(left, left[::-1]) + 0.01 * (end - start)
        better = score > best[start:end]
        best[start:end][better] = score[better]
        owner[start:end][better] = index
    return [owner[start:end] == index for index, (start, end) in enumerate(spans)]


def _offsets(context: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The pieces' start and end in characters [n 2] int64. A piece includes following accents that have no piece.

    An uncased tokenizer drops accents: the piece of "e" and a combining accent covers the "e" only, which is half a
    letter.
    """
    places = np.array(offsets, np.int64)
    if context.isascii():
        return places
    for piece, limit in enumerate([*places[1:, 0].tolist(), len(context)]):
        while places[piece, 1] < limit and unicodedata.category(context[places[piece, 1]]) == "Mn":
            places[piece, 1] += 1
    return places


def _label(target: tuple[int, int] | None, start: int, window: Window) -> Feature:
    """The answer's positions in the input of the window that begins at piece `start`, or those of [CLS]."""
    first, last = target or (-1, -1)
    inside = start <= first and last < start + len(window.offsets)
    first, last = (piece - start + window.begin if inside else 0 for piece in (first, last))
    return {"start_positions": np.array(first, np.int32), "end_positions": np.array(last, np.int32)}


def _answer_list(value: Any) -> list[tuple[str, int | None]] | None:
    """The answers of a column in any supported form; None for other values."""
    if isinstance(value, str):
        value = [{"text": value}]
    elif isinstance(value, dict) and isinstance(value.get("text"), list):
        texts, starts = value["text"], value.get("answer_start")
        starts = [None] * len(texts) if starts is None else starts
        if not isinstance(starts, list) or len(starts) != len(texts):
            return None
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(value, list) or not all(isinstance(answer, dict) for answer in value):
        return None
    answers = [(answer.get("text"), answer.get("answer_start")) for answer in value]
    fit = all(isinstance(text, str) and (start is None or type(start) is int) for text, start in answers)
    return answers if fit else None


def _find(row: Row, context: str, text: str, given: int | None) -> int:
    """The start of the answer in the context."""
    start = context.find(text) if given is None else given
    if start < 0 or not context.startswith(text, start):
        place = "in the context" if given is None else f"at character {given} of the context"
        raise InputError(f"{row.place}: the answer {text[:40]!r} is not {place}; correct it or remove the row")
    return start


def _prediction(chosen: Span, spans: Sequence[Span]) -> dict[str, Any]:
    """The chosen span and all spans as JSON values, with the softmax of their scores."""
    ranked = sorted(spans, key=lambda span: -span.score)
    weights = np.exp([span.score - ranked[0].score for span in ranked])
    listed = [
        {"answer": span.answer, "start": span.start, "end": span.end, "probability": probability}
        for span, probability in zip(ranked, (weights / weights.sum()).tolist(), strict=True)
    ]
    return listed[ranked.index(chosen)] | {"n_best": listed}


def normalize_answer(text: str) -> str:
    """The text in lower case without ASCII punctuation and articles, words joined by one space (evaluate-v1.1.py)."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the normalized prediction is one of the answers, else 0; no answers count as the answer ""."""
    return float(normalize_answer(prediction) in map(normalize_answer, answers or [""]))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best word F1 over the answers; 1 if both texts have no words, 0 if only one has none (evaluate-v2.0.py)."""
    return max(_word_f1(prediction, answer) for answer in answers or [""])


def _word_f1(prediction: str, answer: str) -> float:
    said, wanted = (normalize_answer(text).split() for text in (prediction, answer))
    if not said or not wanted:
        return float(said == wanted)
    return 2 * (Counter(said) & Counter(wanted)).total() / (len(said) + len(wanted))


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """`exact_match` and `f1` in percent, from predictions and all correct answers of each.

    If every question has an answer, the scores are those of evaluate-v1.1.py. Otherwise they are those of
    evaluate-v2.0.py: "" is correct for a question without an answer, answers that consist only of articles and
    punctuation do not count, and the result also has `has_answer_exact_match`, `has_answer_f1` and
    `no_answer_exact_match`.

    Raises:
        InputError: there are no predictions.
    """
    if not predictions:
        raise InputError("there are no predictions to score; give at least one row")
    known = np.array([len(texts) > 0 for texts in answers])
    if not known.all():
        answers = [[text for text in texts if normalize_answer(text)] for texts in answers]
    pairs = list(zip(predictions, answers, strict=True))
    exact, overlap = (100 * np.array([score(*pair) for pair in pairs]) for score in (exact_match, f1))
    if known.all():  # in evaluate-v1.1.py, two texts without words match exactly, with F1 0
        overlap[[not normalize_answer(prediction) for prediction in predictions]] = 0
    parts = {"exact_match": exact, "f1": overlap}
    if not known.all():
        parts |= {"has_answer_exact_match": exact[known], "has_answer_f1": overlap[known]}
        parts["no_answer_exact_match"] = exact[~known]
    return {name: float(part.mean()) for name, part in parts.items() if part.size}


def threshold_scores(
    spans: Sequence[str], null_odds: Sequence[float], answers: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The best scores that a null threshold can give on labelled questions, as `find_all_best_thresh` of
    evaluate-v2.0.py: no answer is predicted for a question whose null odds exceed the threshold.

    Args:
        spans: the best span of each question, "" if it has none.
        null_odds: the null score of each question minus the score of its best span.
        answers: all correct answers of each question; [] if it has none.

    Returns:
        `best_exact` and `best_f1` in percent, and the threshold of each, `best_exact_thresh` and `best_f1_thresh`. If
        it is best to answer no question, the threshold is 0, as in evaluate-v2.0.py.
    """
    known = np.array([len(texts) > 0 for texts in answers])
    cleaned = [[text for text in texts if normalize_answer(text)] for texts in answers]
    found = {}
    for name, score in (("exact", exact_match), ("f1", f1)):
        scores = [score(span, texts) for span, texts in zip(spans, cleaned, strict=True)]
        found[f"best_{name}"], found[f"best_{name}_thresh"] = _best_threshold(
            np.array(scores), np.array(null_odds), known, np.array([span == "" for span in spans])
        )
    return found


def _best_threshold(scores: np.ndarray, odds: np.ndarray, known: np.ndarray, empty: np.ndarray) -> tuple[float, float]:
    """The best score in percent, and the lowest threshold that reaches it; all arrays are [questions].

    Answering one more question, in the order of the odds, gains the score of its span. If it has no answer, a span that
    is not empty loses the point for no answer.
    """
    order = np.argsort(odds, kind="stable")
    gains = np.where(known, scores, np.where(empty, 0.0, -1.0))[order]
    totals = np.cumsum([float((~known).sum()), *gains])
    best = int(totals.argmax())
    return 100 * float(totals[best]) / len(scores), float(odds[order[best - 1]]) if best else 0.0
