"""The files of GLUE's nine tasks (Wang et al. 2019, arXiv 1804.07461), in the layout of its download."""

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.data.tasks.rows import Row
from bertgpt.data.text.files import check_columns, lines
from bertgpt.errors import InputError, check_regular, quoted

NOTHING = "."  # read in place of an empty text: an input needs at least one token
MOST_SCORE = 5  # of STS-B; the least is 0


class GlueTask(NamedTuple):
    """The files of a task, and their columns.

    Attributes:
        text: column of the first text.
        pair: column of the second text; None if there is only one.
        label: column of the label in the training and development files.
        labels: the labels as the files and the test server spell them; () for STS-B's numbers.
        dev: the development files by name; a single one has the name "".
        test: the files to predict, by the name that the test server gives them.
        columns: those of training and development files without a header; () if they have one.
        number: column of a row's number in the test files.
        has_damage: whether the download has rows with too few cells, which everyone skips.
    """

    text: str
    pair: str | None
    label: str
    labels: tuple[str, ...]
    test: dict[str, str]
    dev: dict[str, str] = {"": "dev.tsv"}  # noqa: RUF012
    columns: tuple[str, ...] = ()
    number: str = "index"
    has_damage: bool = False

    @property
    def kind(self) -> str:
        """The kind of task that fine-tuning knows."""
        return "classification" if self.labels else "regression"


ENTAILED = ("entailment", "not_entailment")
TASKS = {  # by the name of the folder, in the order of the paper's table 1
    "MNLI": GlueTask(
        *("sentence1", "sentence2", "gold_label", ("contradiction", "entailment", "neutral")),
        test={
            "MNLI-m": "MNLI/test_matched.tsv",
            "MNLI-mm": "MNLI/test_mismatched.tsv",
            "AX": "diagnostic/diagnostic.tsv",
        },
        dev={"matched": "dev_matched.tsv", "mismatched": "dev_mismatched.tsv"},
    ),
    "QQP": GlueTask(
        *("question1", "question2", "is_duplicate", ("0", "1"), {"QQP": "QQP/test.tsv"}), number="id", has_damage=True
    ),
    "QNLI": GlueTask("question", "sentence", "label", ENTAILED, {"QNLI": "QNLI/test.tsv"}),
    "SST-2": GlueTask("sentence", None, "label", ("0", "1"), {"SST-2": "SST-2/test.tsv"}),
    "CoLA": GlueTask(
        *("sentence", None, "label", ("0", "1"), {"CoLA": "CoLA/test.tsv"}),
        columns=("source", "label", "star", "sentence"),
    ),
    "STS-B": GlueTask("sentence1", "sentence2", "score", (), {"STS-B": "STS-B/test.tsv"}),
    "MRPC": GlueTask("#1 String", "#2 String", "Quality", ("0", "1"), {"MRPC": "MRPC/test.tsv"}),
    "RTE": GlueTask("sentence1", "sentence2", "label", ENTAILED, {"RTE": "RTE/test.tsv"}),
    "WNLI": GlueTask("sentence1", "sentence2", "label", ("0", "1"), {"WNLI": "WNLI/test.tsv"}),
}


def read_glue(
    path: Path, task: GlueTask, labelled: bool = True, skip: Callable[[str], None] | None = None
) -> Iterator[Row]:
    """The rows of a file of GLUE, one at a time.

    Nothing is quoted in these files: a tab always ends a cell. A text without letters, digits or signs is read as
    ".".

    Args:
        path: the file.
        task: its task.
        labelled: whether it is a training or development file, and not a test file.
        skip: called with the place of a row that has another number of cells than the header, and is skipped; None:
            such a row is an error.

    Yields:
        Rows of `text`, `pair` if the task has pairs, and `label` (a text), or of a test file `id`, the row's number.

    Raises:
        InputError: the file is missing, or has another layout; when it is reached, if a row cannot be used.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder of GLUE's download, unchanged")
    check_regular(path)
    wanted = {"text": task.text, "pair": task.pair, **({"label": task.label} if labelled else {"id": task.number})}
    named = {name: column for name, column in wanted.items() if column is not None}
    for place, cells in _records(path, task.columns if labelled else (), list(named.values()), skip):
        values = {name: cells[column] for name, column in named.items()}
        if labelled:
            _check_label(place, values["label"], task.labels)
        texts = {
            name: values[name] if _has_content(values[name]) else NOTHING for name in ("text", "pair") if name in values
        }
        yield Row(place, values | texts)


def _records(
    path: Path, columns: tuple[str, ...], needed: list[str], skip: Callable[[str], None] | None
) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, cells by column) of each line after the header; `columns` are those of a file without a header."""
    header = list(columns)
    for number, line in lines(path):
        place, cells = f"{path} line {number}", line.rstrip("\r\n").split("\t")
        if cells == [""]:
            continue
        if not header:
            header = cells
            check_columns(place, header)
            missing = [column for column in needed if column not in header]
            if missing:
                found = ", ".join(header)
                raise InputError(
                    f"{place}: no column {quoted(missing[0])} (columns: {found}); use GLUE's own file, unchanged"
                )
        elif len(cells) == len(header):
            yield place, dict(zip(header, cells, strict=True))
        elif skip is not None:
            skip(place)
        else:
            wanted = ", ".join(header)
            raise InputError(
                f"{place}: {len(cells)} cells, not {len(header)} ({wanted}); use GLUE's own file, unchanged"
            )


def _check_label(place: str, label: str, labels: tuple[str, ...]) -> None:
    """
    Raises:
        InputError: the label is none of the task's, or no score.
    """
    if labels and label not in labels:
        raise InputError(
            f"{place}: label {quoted(label)} is not one of {', '.join(labels)}; use GLUE's own file, unchanged"
        )
    if not labels and not _is_score(label):
        raise InputError(f"{place}: score {quoted(label)} is not a number from 0 to {MOST_SCORE}; use GLUE's own file")


def _is_score(text: str) -> bool:
    try:
        return 0 <= float(text) <= MOST_SCORE
    except ValueError:
        return False


def _has_content(text: str) -> bool:
    """Whether a text has a character that tokenizers keep: no white space, control character or bare accent."""
    return any(unicodedata.category(character)[0] not in "CZ" and not _is_dropped(character) for character in text)


def _is_dropped(character: str) -> bool:
    return character == "\ufffd" or unicodedata.category(character) == "Mn"


def server_label(prediction: dict[str, Any]) -> str:
    """A prediction as the test server expects it: the label, or STS-B's score, limited to 0 to 5."""
    if "label" in prediction:
        return str(prediction["label"])
    return f"{min(max(prediction['score'], 0.0), float(MOST_SCORE)):.6f}"
