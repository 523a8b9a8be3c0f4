"""Makes the encoding of a kind of task from its settings, and its examples from rows."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from bertgpt.data.tasks.classification import (
    Choice,
    Classification,
    find_labels,
    label_name,
    label_names,
    most_choices,
)
from bertgpt.data.tasks.readers import make_row
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.sft import Responses
from bertgpt.data.tasks.squad import Answers
from bertgpt.data.tasks.tagging import Tagging, find_tags
from bertgpt.data.tasks.task import TaskData, TaskExamples, TaskSettings, encode_rows
from bertgpt.data.tasks.templates import END, GPT_TASK_TOKENS, SequenceTemplate, make_template
from bertgpt.errors import InputError

PROBLEMS = {  # Hugging Face's `problem_type` by kind of task, where there is one
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
LEAST = 8  # tokens of an input: the special tokens of a pair, and some text
LABELLED = ("classification", "multi_label", "tagging")  # kinds with named classes or tags


def task_tokens(kind: str) -> tuple[str, ...]:
    """The special tokens that a kind of task adds to GPT-1's vocabulary."""
    return (*GPT_TASK_TOKENS[:2], END) if kind == "sft" else GPT_TASK_TOKENS


def labels_of(settings: TaskSettings, rows: Sequence[Row]) -> tuple[str, ...]:
    """The classes or tags of labelled rows, sorted; () for a kind of task without them.

    Raises:
        InputError: a row has no label, or there are too few or too many different ones.
    """
    if settings.kind not in LABELLED:
        return ()
    if settings.kind == "tagging":
        return find_tags(rows, settings.tags)
    return find_labels(rows, settings.label, several=settings.kind == "multi_label")


def named_by_number(settings: TaskSettings, count: int, rows: Sequence[Row]) -> tuple[str, ...]:
    """The names "0", "1", ... of classes that have none (Hugging Face's LABEL_0, LABEL_1, ...), if rows have them.

    Args:
        settings: the kind of task and the columns.
        count: the number of classes.
        rows: labelled rows.

    Returns:
        () if the rows' labels are not such numbers, or it is another kind of task.

    Raises:
        InputError: a row has no label.
    """
    if settings.kind not in ("classification", "multi_label"):
        return ()
    names = tuple(map(str, range(count)))
    values = [(row, row.get(settings.label, "task.label")) for row in rows]
    if settings.kind == "classification":
        found = {label_name(row, value) for row, value in values}
    else:
        found = {name for row, value in values for name in label_names(row, value)}
    return names if found <= set(names) else ()


def make_task(
    settings: TaskSettings,
    tokenizer: Tokenizer,
    length: int,
    *,
    causal: bool = False,
    labels: tuple[str, ...] = (),
    choices: int = 2,
) -> TaskData:
    """The encoding of a task's rows, and how its predictions are decoded.

    Args:
        settings: the kind of task and the columns.
        tokenizer: the model's. GPT-1's has the tokens of `task_tokens`.
        length: T, tokens of an input, at least 8.
        causal: whether the model is a GPT-1.
        labels: the names of the classes or tags in order; () if the task has none.
        choices: C, the number of choices of a multiple-choice task.

    Raises:
        InputError: the length is below 8, or the tokenizer lacks a special token.
    """
    if length < LEAST:
        raise InputError(f"the length is {length} tokens; it must be at least {LEAST}")
    kind = settings.kind
    template = make_template(tokenizer, length, not causal, END if kind == "sft" else GPT_TASK_TOKENS[2])
    if kind == "multiple_choice":
        return Choice(template, choices, settings.text, settings.choices, settings.label)
    if kind == "question_answering":
        return _answers(settings, template)
    if kind == "tagging":
        return Tagging(template, labels, settings.words, settings.tags)
    if kind == "sft":
        cut = settings.too_long == "cut"
        return Responses(template, settings.prompt, settings.response, settings.messages, cut)
    labels = () if kind == "regression" else labels
    both = settings.both_orders and causal
    return Classification(template, labels, PROBLEMS[str(kind)], settings.text, settings.pair, settings.label, both)


def _answers(settings: TaskSettings, template: SequenceTemplate) -> Answers:
    return Answers(
        template,
        stride=settings.stride,
        max_question=settings.max_question,
        n_best=settings.n_best,
        max_answer=settings.max_answer,
        null_threshold=settings.null_threshold,
        question_column=settings.question,
        context_column=settings.context,
        answers_column=settings.answers,
    )


def task_examples(
    rows: Sequence[Row | dict[str, Any]],
    settings: TaskSettings,
    tokenizer: Tokenizer,
    length: int,
    *,
    causal: bool = False,
    labels: tuple[str, ...] | None = None,
) -> TaskExamples:
    """The examples of labelled rows.

    Args:
        rows: from `read_rows`, or dictionaries by column name, such as {"text": "A fine film.", "label": "pos"}.
        settings: the kind of task and the columns.
        tokenizer: as in `make_task`.
        length: T, tokens of an input, at least 8.
        causal: whether the model is a GPT-1.
        labels: the names of the classes or tags in order; None: those of the rows, sorted. They are `task.labels` of
            the result.

    Raises:
        InputError: a row cannot be used, the length is below 8, or the tokenizer lacks a special token.
    """
    found = [row if isinstance(row, Row) else make_row(f"row {number}", row) for number, row in enumerate(rows, 1)]
    names = labels_of(settings, found) if labels is None else labels
    choices = most_choices(found, settings.choices)
    task = make_task(settings, tokenizer, length, causal=causal, labels=names, choices=choices)
    return TaskExamples(task, list(encode_rows(task, found)))
