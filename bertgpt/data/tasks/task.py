"""What all fine-tuning tasks share: settings, examples and batches."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from bertgpt.data.random_access import RandomAccess
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.templates import Feature, SequenceTemplate
from bertgpt.errors import InputError
from bertgpt.settings import setting

TOGETHER = 1000  # rows whose texts are tokenized together
KINDS = (
    "classification",
    "multi_label",
    "regression",
    "multiple_choice",
    "question_answering",
    "tagging",
    "sft",
)


class Example(NamedTuple):
    """A row as input of the model.

    Attributes:
        row: its source.
        features: one, or several if the text is read in windows. All have the same keys, among them `input_ids`,
            `attention_mask`, `token_type_ids` (BERT only) and `loss_mask`. Empty if the row is skipped.
        decode_info: what `decode` needs for each feature besides the row and the model's outputs: a `TaskData.info` of
            arrays. Empty if it needs nothing.
        cut: whether some of the text did not fit.
    """

    row: Row
    features: list[Feature]
    decode_info: Sequence[Any] = ()
    cut: bool = False


@dataclasses.dataclass
class TaskSettings:
    """The task, and the columns of its data files."""

    kind: str | None = setting(None, "the task", choices=KINDS)
    text: str = setting("text", "column of the text")
    pair: str | None = setting(None, "column of a second text")
    label: str = setting("label", "column of the label; for multiple choice the number of the correct choice, from 0")
    choices: str | list[str] = setting(
        "choices", "column that lists the choices, or a list of columns", wanted="a column or a list of columns"
    )
    question: str = setting("question", "column of the question")
    context: str = setting("context", "column of the text that contains the answer")
    answers: str = setting("answers", "column of the answers, as in SQuAD")
    words: str = setting("words", "column of the words")
    tags: str = setting("tags", "column of the words' tags")
    word_column: int | None = setting(
        None,
        "number of the word's column in CoNLL files, from 0; negative numbers count from the end; null: 0, and FORM "
        "(1) of .conllu",
    )
    tag_column: int | None = setting(
        None, "number of the tag's column in CoNLL files; null: -1, and UPOS (3) of .conllu"
    )
    prompt: str = setting("prompt", "column of the prompt")
    response: str = setting("response", "column of the response")
    messages: str = setting("messages", "column of a conversation; a row that has it needs no prompt and response")
    too_long: str = setting(
        "cut",
        "what happens to rows that are too long: truncate their prompt (cut) or skip them (drop)",
        choices=("cut", "drop"),
    )
    both_orders: bool = setting(False, "GPT-1 reads a pair in both orders, for similarity")
    lm_weight: float = setting(0.5, "weight of GPT-1's next-token loss, added to the task's loss", least=0)
    max_question: int = setting(64, "maximum tokens of a question; longer ones are truncated", least=1)
    stride: int = setting(128, "tokens from the start of one window of a context to the next", least=1)
    n_best: int = setting(20, "number of start and of end positions that are combined into answers", least=1)
    max_answer: int = setting(30, "maximum tokens of an answer", least=1)
    null_threshold: float | None = setting(
        None, "score difference above which no answer is predicted (SQuAD 2.0); null: every question has an answer"
    )


class TaskData(Protocol):
    """One kind of task: encodes rows for the model, and decodes its outputs."""

    @property
    def template(self) -> SequenceTemplate:
        """The special tokens around its texts."""
        ...

    @property
    def per_token(self) -> tuple[str, ...]:
        """The keys of its features whose last axis is T; they are padded."""
        ...

    @property
    def info(self) -> Any:
        """The class of `Example.decode_info`, a NamedTuple of arrays; None if it is empty."""
        ...

    def texts(self, row: Row, labelled: bool = True) -> list[str]:
        """The texts that `encode` tokenizes.

        Raises:
            InputError: the row cannot be used.
        """
        ...

    def encode(self, row: Row, labelled: bool = True) -> Example:
        """The row as input of the model, with its labels if `labelled`.

        Raises:
            InputError: the row cannot be used.
        """
        ...

    def decode(self, example: Example, outputs: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        """A prediction as JSON values, from the model's outputs [T ...] for each feature of the example."""
        ...


def encode_rows(data: TaskData, rows: Sequence[Row], labelled: bool = True) -> Iterator[Example]:
    """The examples of `data.encode` for each row, with the texts of many rows tokenized together.

    Raises:
        InputError: a row cannot be used; the error is that of the first such row.
    """
    for start in range(0, len(rows), TOGETHER):
        chosen, texts = rows[start : start + TOGETHER], list[str]()
        for row in chosen:
            with contextlib.suppress(InputError):  # `encode` raises it, after the rows before this one
                texts += data.texts(row, labelled)
        prepared = dataclasses.replace(data, template=data.template.knowing(texts))  # type: ignore[type-var]
        yield from (prepared.encode(row, labelled) for row in chosen)


class TaskExamples(RandomAccess):
    """The features of examples as batches: row r is feature r % N."""

    def __init__(self, task: TaskData, examples: Sequence[Example]) -> None:
        self.task = task
        self.features = [feature for example in examples for feature in example.features]

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows [B] -> arrays [B ...], padded to the template's length."""
        chosen = [self.features[row % len(self)] for row in rows]
        return {name: self._stack(name, [feature[name] for feature in chosen]) for name in chosen[0]}

    @property
    def sequence_length(self) -> int:
        """T, the tokens of an input."""
        return self.task.template.length

    @property
    def pad(self) -> int:
        """The token id of padding."""
        return self.task.template.pad

    @property
    def per_token(self) -> tuple[str, ...]:
        """The keys that are [B T]."""
        return self.task.per_token

    def lengths(self, epoch: int) -> np.ndarray:
        """The number of tokens of each feature [N], the same in every epoch."""
        return np.array([feature["input_ids"].shape[-1] for feature in self.features])

    def rows(self, epochs: np.ndarray, index: np.ndarray, width: int) -> dict[str, np.ndarray]:
        """Features `index` [n] with W tokens; no feature is longer."""
        found = self.batch(index)
        return {name: value[..., :width] if name in self.per_token else value for name, value in found.items()}

    def _stack(self, name: str, values: list[np.ndarray]) -> np.ndarray:
        """The values as one array; vectors over tokens are padded at their end."""
        if name not in self.task.per_token:
            return np.stack(values)
        template = self.task.template
        shape = (len(values), *values[0].shape[:-1], template.length)
        padded = np.full(shape, template.pad if name == "input_ids" else 0, values[0].dtype)
        for row, value in enumerate(values):
            padded[row, ..., : value.shape[-1]] = value
        return padded
