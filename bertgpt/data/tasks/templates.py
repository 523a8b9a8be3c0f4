"""The special tokens around the texts of a task."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tokenizers import Encoding, Tokenizer

from bertgpt.data.tasks.rows import Row
from bertgpt.errors import InputError
from bertgpt.tokenizers import special_id

GPT_TASK_TOKENS = ("_start_", "_delimiter_", "_classify_")  # in the order of finetune-transformer-lm/train.py
END = "_end_"  # ends a response

Feature = dict[str, np.ndarray]  # what the model reads for one input, unpadded: [T], [C T], or scalars


@dataclasses.dataclass(frozen=True)
class SequenceTemplate:
    """A tokenizer, and the special tokens around one or two texts.

    BERT: [CLS] a [SEP] b [SEP], with segments 0 and 1 (Devlin et al. 2019, figure 1). GPT-1: start a delimiter b
    extract (Radford et al. 2018, figure 1). Apart from BERT's segments, they differ only in their tokens.

    Attributes:
        tokenizer: reads a special token spelled out in a text as that token.
        start: the id of the first token.
        middle: the id of the token between two texts.
        end: the id of the token after the last text.
        pad: the id of padding.
        length: T, the maximum tokens of an input.
        bert: whether inputs have segments.
        known: results of the tokenizer for some texts, which it need not compute again.
    """

    tokenizer: Tokenizer
    start: int
    middle: int
    end: int
    pad: int
    length: int
    bert: bool
    known: Mapping[str, Encoding] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @functools.cached_property
    def special(self) -> frozenset[int]:
        """The ids of all special tokens except the unknown token."""
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        tokens = self.tokenizer.get_added_tokens_decoder().items()
        return frozenset(index for index, token in tokens if token.special and token.content != unknown)

    def pieces(self, text: str) -> Encoding:
        """A text's pieces with their offsets; there may be none."""
        found = self.known.get(text)
        return self.tokenizer.encode(text, add_special_tokens=False) if found is None else found

    def knowing(self, texts: Iterable[str]) -> "SequenceTemplate":
        """This template with `known` for the given texts, which are tokenized together, on all cores."""
        distinct = list(dict.fromkeys(texts))
        if self.tokenizer.padding is not None:  # pads a text to the longest of its batch
            return self
        encodings = self.tokenizer.encode_batch(distinct, add_special_tokens=False)
        return dataclasses.replace(self, known=dict(zip(distinct, encodings, strict=True)))

    def encoding(self, row: Row, text: str) -> Encoding:
        """A text's pieces with their offsets, without special tokens around them.

        Raises:
            InputError: the text has no pieces except special tokens.
        """
        encoding = self.pieces(text)
        if self.special.issuperset(encoding.ids):
            raise InputError(f"{row.place}: {text[:40]!r} has no tokens except special ones; give a text")
        return encoding

    def content(self, row: Row, text: str) -> list[int]:
        """The ids of `encoding`."""
        return self.encoding(row, text).ids

    def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> Feature:
        """One or two texts with their special tokens. Until both fit, the longer text loses tokens at its end.

        Returns:
            `input_ids`, `attention_mask` and for BERT `token_type_ids`, int32 [up to T].
        """
        room = self.length - (2 if second is None else 3)
        size, other = len(first), len(second or ())
        size, other = _fit(size, other, room)
        head = [self.start, *first[:size], self.middle if second is not None or self.bert else self.end]
        tail = [] if second is None else [*second[:other], self.end]
        feature = {
            "input_ids": np.array(head + tail, np.int32),
            "attention_mask": np.ones(len(head) + len(tail), np.int32),
        }
        if self.bert:
            feature["token_type_ids"] = np.array([0] * len(head) + [1] * len(tail), np.int32)
        return feature

    def overflows(self, first: Sequence[int], second: Sequence[int] | None = None) -> bool:
        """Whether `join` would truncate."""
        return len(first) + len(second or ()) + (2 if second is None else 3) > self.length


def _fit(first: int, second: int, room: int) -> tuple[int, int]:
    """Two lengths, the longer one reduced until both fit, as in run_classifier.py of google-research/bert."""
    excess = first + second - room
    if excess <= 0:
        return first, second
    even = min(max(0, abs(first - second)), excess)  # taken from the longer one only
    first, second = (first - even, second) if first > second else (first, second - even)
    rest = excess - even
    return first - rest // 2, second - (rest - rest // 2)  # then in turn, b first, because b is truncated on a tie


def make_template(tokenizer: Tokenizer, length: int, bert: bool, end: str = GPT_TASK_TOKENS[2]) -> SequenceTemplate:
    """The template of a model. A GPT-1 tokenizer must have the special tokens already (`bertgpt.add_tokens`).

    Raises:
        InputError: a special token is missing.
    """
    if bert:
        start, middle, pad = (special_id(tokenizer, token) for token in ("[CLS]", "[SEP]", "[PAD]"))
        return SequenceTemplate(tokenizer, start, middle, middle, pad, length, bert)
    start, middle, last = (special_id(tokenizer, token) for token in (*GPT_TASK_TOKENS[:2], end))
    return SequenceTemplate(tokenizer, start, middle, last, 0, length, bert)
