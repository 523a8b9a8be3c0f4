"""Token classification, such as named entities and parts of speech: one tag per word."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import Example
from bertgpt.data.tasks.templates import Feature, SequenceTemplate
from bertgpt.errors import InputError, excerpt, quoted
from bertgpt.tokenizers import special_id

OUTSIDE = "O"
UNNAMED = "_"  # the label of entities whose tags are bare letters
ENTITY_TAG = re.compile(r"([BIESLUMW])(?:-([^-].*))?", re.DOTALL)  # a letter alone, or with an entity's label
POSITIONS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}  # by a tag's letter
SCHEMES = ("BIES", "BILU", "BMESW")  # letters that are used together: IOB, IOE and IOBES; BILOU; BMES and BMEWO

Span = tuple[int, int]  # first, and one past the last


class Reads(NamedTuple):
    """The n words whose output is used in one window; each word of a row is in one window.

    Attributes:
        words: [n] int64, their numbers in the row.
        positions: [n] int64, the positions of their first pieces in the input.
        spans: [n 2] int64, start and end of each in characters of the text.
    """

    words: np.ndarray
    positions: np.ndarray
    spans: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tagging:
    """A tag for every word: the output at its first piece (Devlin et al. 2019, section 5.3).

    Attributes:
        template: BERT's special tokens.
        labels: the tags in the order of the model's outputs.
        words_column: the column of a list of words, or of a string of words separated by white space. In rows without
            labels, a string is raw text, which the tokenizer splits into words.
        tags_column: the column of a list with one tag per word, or of a string of tags separated by white space.
        stride: maximum pieces that neighbouring windows of a long sentence share; never more than half a window.
    """

    template: SequenceTemplate
    labels: tuple[str, ...]
    words_column: str = "words"
    tags_column: str = "tags"
    stride: int = 32
    per_token = ("input_ids", "attention_mask", "token_type_ids", "labels", "loss_mask")
    info = Reads

    def texts(self, row: Row, labelled: bool = True) -> list[str]:
        """The words."""
        text, spans = self._sentence(row, labelled)
        return [text[start:end] for start, end in spans]

    def encode(self, row: Row, labelled: bool = True) -> Example:
        """[CLS] pieces [SEP], in several windows if a sentence is too long; `decode_info` is a `Reads` for each.

        Features have `loss_mask` float32 [T], 1 at the first piece of each word read there, and `labels` int32 [T].

        Raises:
            InputError: no words, words that are not texts, not as many tags as words, or an unknown tag.
        """
        text, spans = self._sentence(row, labelled)
        targets = self._targets(row, len(spans)) if labelled else None
        room = self.template.length - 2
        unknown = [special_id(self.template.tokenizer, "[UNK]")]  # some words have no pieces; they become [UNK]
        whole = [self.template.pieces(text[start:end]).ids or unknown for start, end in spans]
        pieces = [word[:room] for word in whole]
        sizes = [len(word) for word in pieces]
        windows = cut_windows(sizes, room, self.stride)
        reads = choose_reads(sizes, windows)
        features = [
            self._feature(list(itertools.chain(*pieces[first:end])), chosen, targets)
            for (first, end), chosen in zip(windows, reads, strict=True)
        ]
        return Example(row, features, [_reads(chosen, spans) for chosen in reads], cut=pieces != whole)

    def _text(self, row: Row) -> str:
        """The row's text, or its words joined by spaces."""
        if isinstance(row.get(self.words_column, "task.words"), str):
            return row.text(self.words_column, "task.words")
        return " ".join(_strings(row, self.words_column, "task.words"))

    def _sentence(self, row: Row, labelled: bool) -> tuple[str, list[Span]]:
        """The text, and the spans of its words."""
        text = self._text(row)
        if isinstance(row.get(self.words_column, "task.words"), str):
            spans = word_spans(text, None if labelled else self.template.tokenizer)
        else:
            words = _strings(row, self.words_column, "task.words")
            starts = itertools.accumulate((len(word) + 1 for word in words), initial=0)
            spans = [(start, start + len(word)) for start, word in zip(starts, words, strict=False)]
        if not spans:
            raise InputError(
                f"{row.place}: column {quoted(self.words_column)} has no words; fill it in or remove the row"
            )
        return text, spans

    def _targets(self, row: Row, count: int) -> np.ndarray:
        """The indices of the tags in `labels`, int32 [words]."""
        tags = self.gold(row)
        if len(tags) != count:
            raise InputError(f"{row.place}: {count} words but {len(tags)} tags; give every word one tag")
        for tag in sorted(set(tags).difference(self.labels)):
            problem = f"label {quoted(tag)} is not among those of the training data ({excerpt(', '.join(self.labels))})"
            raise InputError(f"{row.place}: {problem}; correct it, or add it to the training data")
        return np.array([self.labels.index(tag) for tag in tags], np.int32)

    def _feature(self, pieces: list[int], reads: list[tuple[int, int]], targets: np.ndarray | None) -> Feature:
        feature = self.template.join(pieces)
        words, positions = np.array(reads, np.int64).reshape(-1, 2).T
        feature["loss_mask"] = np.zeros(len(feature["input_ids"]), np.float32)
        feature["loss_mask"][positions] = 1
        if targets is not None:
            feature["labels"] = np.zeros(len(feature["input_ids"]), np.int32)
            feature["labels"][positions] = targets[words]
        return feature

    def gold(self, row: Row) -> list[str]:
        """The row's tags.

        Raises:
            InputError: they are missing or not texts.
        """
        return _strings(row, self.tags_column, "task.tags")

    def decode(self, example: Example, outputs: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        """Tags, their probabilities, and the entities that they mark, from `logits` [T labels] for each feature.

        Returns:
            `text`, `words`, `tags`, `probabilities`, and `entities` with `label`, `text`, `start`, `end` (characters)
            and `probability` (the mean over words). `entities` is empty if the labels mark none, such as parts of
            speech.
        """
        text, count = self._text(example.row), sum(len(reads.words) for reads in example.decode_info)
        logits, bounds = np.empty((count, len(self.labels))), np.empty((count, 2), np.int64)
        for output, reads in zip(outputs, example.decode_info, strict=True):
            logits[reads.words] = output["logits"][reads.positions]
            bounds[reads.words] = reads.spans
        spans = [(start, end) for start, end in bounds.tolist()]
        probabilities = (1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)).tolist()  # of the tag
        tags = [self.labels[index] for index in logits.argmax(axis=1)]
        return {
            "text": text,
            "words": [text[start:end] for start, end in spans],
            "tags": tags,
            "probabilities": probabilities,
            "entities": self._entities(text, spans, tags, probabilities),
        }

    def _entities(self, text: str, spans: list[Span], tags: list[str], shares: list[float]) -> list[dict[str, Any]]:
        entities = []
        for label, first, end in entity_spans(tags) if mark_entities(self.labels) else []:
            place = slice(spans[first][0], spans[end - 1][1])
            entity = {"label": label, "text": text[place], "start": place.start, "end": place.stop}
            entities.append({**entity, "probability": float(np.mean(shares[first:end]))})
        return entities


def _reads(pairs: list[tuple[int, int]], spans: list[Span]) -> Reads:
    """The (word, position) pairs of a window as arrays, with the words' spans."""
    words, positions = np.array(pairs, np.int64).reshape(-1, 2).T
    return Reads(words, positions, np.array(spans, np.int64)[words])


def _strings(row: Row, column: str, key: str) -> list[str]:
    """A column's list of texts, or its string split at white space; InputError for other values."""
    value = row.get(column, key)
    items = value.split() if isinstance(value, str) else value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, str):
            raise InputError(
                f"{row.place}: column {quoted(column)} has {quoted(item)}, not a text; set {key} to a list of texts"
            )
    return items


def word_spans(text: str, tokenizer: Tokenizer | None = None) -> list[Span]:
    """The words of a text, as start and end in characters.

    They are the pre-tokenizer's words, split further if the normalizer splits them, as it does Chinese characters.
    Without a pre-tokenizer, words are separated by white space.
    """
    if tokenizer is None or tokenizer.pre_tokenizer is None:
        return [match.span() for match in re.finditer(r"\S+", text)]
    spans: list[Span] = []
    for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text):
        encoding = tokenizer.encode(text[start:end], add_special_tokens=False)
        places = zip(itertools.pairwise(encoding.word_ids), encoding.offsets[1:], strict=True)
        cuts = {start + offset for (before, word), (offset, _) in places if word != before}
        spans += itertools.pairwise(sorted({start, end} | cuts))
    return spans


def cut_windows(sizes: Sequence[int], room: int, stride: int) -> list[Span]:
    """Windows of whole words. Each is as long as fits, and has a word that no earlier window has.

    Args:
        sizes: pieces per word, 1 to room.
        room: maximum pieces per window.
        stride: maximum pieces that a window shares with the one before it, at most room / 2; words are not split.
    """
    begins = np.cumsum([0, *sizes])
    windows, first, end = [], 0, 0
    while True:
        end = int(np.searchsorted(begins, begins[first] + room, "right")) - 1
        windows.append((first, end))
        if end == len(sizes):
            return windows
        shared = min(stride, room // 2, room - sizes[end])
        first = int(np.searchsorted(begins, begins[end] - shared))


def choose_reads(sizes: Sequence[int], windows: Sequence[Span]) -> list[list[tuple[int, int]]]:
    """For each window, the (word, position of its first piece) pairs whose output is used.

    A word's output is used in the first window where min(context to the left, context to the right) is greatest
    (`_check_is_max_context` of google-research/bert run_squad.py).
    """
    begins = np.cumsum([0, *sizes])
    best: list[tuple[int, int]] = [(-1, 0)] * len(sizes)  # context, window
    for index, (first, end) in enumerate(windows):
        for word in range(first, end):
            context = int(min(begins[word] - begins[first], begins[end] - begins[word + 1]))
            if context > best[word][0]:
                best[word] = context, index
    return [
        [(word, int(begins[word] - begins[first]) + 1) for word in range(first, end) if best[word][1] == index]
        for index, (first, end) in enumerate(windows)
    ]


def find_tags(rows: Iterable[Row], tags_column: str) -> tuple[str, ...]:
    """All tags of the rows: O first, then the rest sorted.

    Raises:
        InputError: a row's tags are missing or not texts.
    """
    found = {tag for row in rows for tag in _strings(row, tags_column, "task.tags")}
    return tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, tag)))


def mark_entities(labels: Iterable[str]) -> bool:
    """Whether a set of tags marks entities. If not, its tags are classes of words, such as parts of speech.

    It does if a tag such as B-PER or I-PER is among them. Otherwise every tag but O must be a letter of the same
    scheme, and at least one tag must have a label (U-PER) or be a bare B or I.
    """
    labels = set(labels) - {OUTSIDE}
    found = [match for match in map(ENTITY_TAG.fullmatch, labels) if match]
    letters, named = {match[1] for match in found}, any(match[2] for match in found)
    if named and not letters.isdisjoint("BI"):
        return True
    alone = len(found) == len(labels) and any(letters.issubset(scheme) for scheme in SCHEMES)
    return alone and (named or not labels or not letters.isdisjoint("BI"))


def _split(tag: str) -> tuple[str, str]:
    """A tag of any scheme in IOBES, as (position, label): U-PER -> S, PER; a bare M -> I, _; other forms -> O, ""."""
    match = ENTITY_TAG.fullmatch(tag)
    return (POSITIONS[match[1]], match[2] or UNNAMED) if match else (OUTSIDE, "")


def entity_spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(label, first word, one past the last) of each entity, as in CoNLL's conlleval.

    The tags may be IOB, IOE, IOBES, BILOU, BMES or BMEWO. An I or E continues an entity of the same label that has not
    ended, and otherwise begins a new one. Tags of other forms count as O.
    """
    spans: list[tuple[str, int, int]] = []
    last = (OUTSIDE, "")
    for index, tag in enumerate(tags):
        position, label = _split(tag)
        if position in "IE" and last[0] in "BI" and label == last[1]:
            spans[-1] = (label, spans[-1][1], index + 1)
        elif position != OUTSIDE:
            spans.append((label, index, index + 1))
        last = position, label
    return spans
