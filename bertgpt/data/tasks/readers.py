"""Reads rows from labelled data files: JSON, JSONL, CSV, TSV, CoNLL columns, SQuAD JSON, Parquet."""

import csv
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from bertgpt.data.tasks.rows import Row
from bertgpt.data.text.files import (
    MAX_LINE,
    MAX_RATIO,
    PACKED,
    File,
    check_columns,
    find_files,
    kind,
    lines,
    open_raw,
    packing,
    parse_json,
    read_json,
    stamp,
    unpacked_limit,
)
from bertgpt.data.text.parquet import parquet_rows
from bertgpt.errors import InputError, quoted

MAX_WORDS = 1 << 16  # of a sentence in CoNLL columns; more, or over MAX_LINE characters, means another format
FIRST_AND_LAST, FORM_AND_UPOS = (0, -1), (1, 3)  # columns of the word and the tag; the second ones of .conllu
NO_WORD = re.compile(r"#|\d+[-.]\d+\s")  # a comment, a multi-word token and an empty node of CoNLL-U

T = TypeVar("T", str, int, list)


def read_rows(
    inputs: str | Sequence[str], *, word_column: int | None = None, tag_column: int | None = None
) -> Iterator[Row]:
    """The rows of files, one at a time.

    The suffix, without that of a compression, gives the format:

    - JSONL: one object per line.
    - JSON: a list of objects, or SQuAD's format. A question of SQuAD is a row of `id`, `question`, `context` and
      `answers` = {"text": [...], "answer_start": [...]}, with empty lists if it has no answer.
    - CSV and TSV: the first line names the columns, and each cell is a text. TSV has no quotes.
    - CoNLL columns (.conll, .conllu, .iob, .iob2, .bio, .txt): one token per line, and a blank line after each
      sentence. A sentence is a row of `words` and `tags`.
    - Parquet: each row is a row.

    Args:
        inputs: paths, folders, globs, addresses or `package:NAME/FILE`, as in `find_files`.
        word_column: the column of the word in CoNLL columns, from 0; negative numbers count from the end. None: the
            first, and FORM of .conllu.
        tag_column: the column of the tag, likewise. None: the last, and UPOS of .conllu.

    Raises:
        InputError: immediately, if an input matches no file or its format is unknown; when it is reached, if a file or
            a row cannot be read.
    """
    files = _find_files(inputs)
    return itertools.chain.from_iterable(_read(path, word_column, tag_column) for path in files)


def read_all_rows(
    inputs: str | Sequence[str], *, word_column: int | None = None, tag_column: int | None = None
) -> list[Row]:
    """Like `read_rows`, but all rows in one list.

    Compressed and Parquet files can contain far more rows than their size suggests, so the memory of these rows is
    limited. Other files are about as large as their rows.

    Raises:
        InputError: as `read_rows`, or the rows take more memory than `unpacked_limit` allows for the files' sizes.
    """
    rows: list[Row] = []
    packed = taken = 0  # bytes so far, in the files and in memory
    for path in _find_files(inputs):
        bounded = bool(packing(path)) or kind(path) == ".parquet"
        packed += stamp(path)[0] if bounded else 0
        for row in _read(path, word_column, tag_column):
            taken += _memory(row) if bounded else 0
            if taken > unpacked_limit(packed):
                way = "convert it to JSONL" if kind(path) == ".parquet" else "unpack it"
                problem = f"up to here rows take {taken} bytes in memory, over {MAX_RATIO} times their files' {packed}"
                raise InputError(f"{row.place}: {problem}; if the file is valid, {way}")
            rows.append(row)
    return rows


def _memory(row: Row) -> int:
    """Approximate bytes that a row takes in memory, at least those of its texts."""
    size, rest = sys.getsizeof(row) + sys.getsizeof(row.place), [row.values]
    while rest:
        value: Any = rest.pop()
        size += sys.getsizeof(value)
        if isinstance(value, dict):
            size += sum(map(len, value))
            rest += value.values()
        elif isinstance(value, list | tuple):
            rest += value
    return size


def data_digest(inputs: str | Sequence[str]) -> str:
    """BLAKE2b, in hex, of the contents of the files in order; their names do not count.

    Raises:
        InputError: as `read_rows`.
    """
    digest = hashlib.blake2b()
    for path in _find_files(inputs):
        try:
            with open_raw(path) as file:  # one digest per file: their ends and number count
                digest.update(hashlib.file_digest(file, "blake2b").digest())  # type: ignore[arg-type]
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
    return digest.hexdigest()


def _find_files(inputs: str | Sequence[str]) -> list[File]:
    files = find_files(inputs, SUFFIXES)
    for path in files:
        if kind(path) not in SUFFIXES:
            choices = f"one of {', '.join(SUFFIXES)}, optionally with {', '.join(PACKED)}"
            raise InputError(f"{path}: unknown file format; give {choices}")
    return files


def _read(path: File, word_column: int | None, tag_column: int | None) -> Iterator[Row]:
    if kind(path) in COLUMNS:
        usual = FORM_AND_UPOS if kind(path) == ".conllu" else FIRST_AND_LAST
        word = usual[0] if word_column is None else word_column
        return _conll(path, word, usual[1] if tag_column is None else tag_column)
    return READERS[kind(path)](path)


def _text_lines(path: File) -> Iterator[tuple[int, str]]:
    """Like `lines`, but rejects NUL bytes."""
    for number, line in lines(path):
        if "\0" in line:
            raise InputError(f"{path} line {number}: contains a NUL byte; convert the file to UTF-8 text")
        yield number, line


def _jsonl(path: File) -> Iterator[Row]:
    for number, line in lines(path):
        if line.strip():
            yield make_row(f"{path} line {number}", parse_json(path, f"line {number}", line.strip()))


def _json(path: File) -> Iterator[Row]:
    value = read_json(path)
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        yield from _squad(path, value["data"])
    elif isinstance(value, list):
        for number, row in enumerate(value, 1):
            yield make_row(f"{path} row {number}", row)
    else:
        raise InputError(f"{path}: must contain a list of objects, or SQuAD's object with a list under 'data'")


def make_row(place: str, value: Any) -> Row:
    """A row from a JSON value.

    Raises:
        InputError: the value is not an object, or it contains a text that UTF-8 cannot encode.
    """
    if not isinstance(value, dict):
        raise InputError(f"{place}: is a {type(value).__name__}; give an object with one value per column")
    _check_text(place, value)
    return Row(place, value)


def _check_text(place: str, value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: an unpaired surrogate, which UTF-8 cannot encode; remove it") from error
    except RecursionError as error:
        raise InputError(f"{place}: JSON that is nested too deeply: {error}; flatten it") from error


def _squad(path: File, articles: list[Any]) -> Iterator[Row]:
    for number, article in enumerate(articles, 1):
        for index, paragraph in enumerate(_field(f"{path} article {number}", article, "paragraphs", list), 1):
            place = f"{path} article {number} paragraph {index}"
            _check_text(place, paragraph)
            context = _field(place, paragraph, "context", str)
            for question in _field(place, paragraph, "qas", list):
                identity = _field(place, question, "id", str)
                yield _question(f"{path} question {identity}", identity, question, context)


def _question(place: str, identity: str, question: dict[str, Any], context: str) -> Row:
    answers: list[Any] = []
    if "answers" in question and not question.get("is_impossible"):
        answers = _field(place, question, "answers", list)
    flat = {
        "text": [_field(place, answer, "text", str) for answer in answers],
        "answer_start": [_field(place, answer, "answer_start", int) for answer in answers],
    }
    asked = _field(place, question, "question", str)
    return Row(place, {"id": identity, "question": asked, "context": context, "answers": flat})


def _field(place: str, value: Any, key: str, kind: type[T]) -> T:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        more = "; for labelled rows give the list alone" if key == "paragraphs" else ""
        raise InputError(f"{place}: no {kind.__name__} under {quoted(key)}; use the format of SQuAD{more}")
    return found


def _table(path: File) -> Iterator[Row]:
    """CSV as in RFC 4180, or TSV."""
    tabs = kind(path) == ".tsv"
    header: list[str] = []
    for number, cells in _records(path, tabs):
        place = f"{path} line {number}"
        if not header:
            header = cells
            check_columns(place, header)
            _check_separator(place, header, tabs)
        elif len(cells) != len(header):
            advice = "remove tabs from the cells" if tabs else "quote cells that contain commas"
            if len(cells) < len(header):
                advice = "fill in the missing ones"
            raise InputError(f"{place}: {len(cells)} cells, but the header has {len(header)}; {advice}")
        else:
            yield Row(place, dict(zip(header, cells, strict=True)))
    if not header:
        raise InputError(f"{path}: empty; name the columns in the first line")


def _check_separator(place: str, header: list[str], tabs: bool) -> None:
    """
    Raises:
        InputError: the only column's name contains a separator of other tables.
    """
    if len(header) == 1 and not tabs and "\t" in header[0]:
        raise InputError(f"{place}: one column, whose name contains tabs; rename the file to .tsv")
    if len(header) == 1 and ";" in header[0]:
        raise InputError(
            f"{place}: one column, {quoted(header[0])}; if semicolons separate the columns, replace them by commas"
        )


def _records(path: File, tabs: bool) -> Iterator[tuple[int, list[str]]]:
    """(number of the record's first line, its cells); blank lines are skipped."""
    number, size = 1, 0  # of the current record: its first line, and the characters read so far

    def record_lines() -> Iterator[str]:
        """The lines of the file, while no record is too long."""
        nonlocal size
        for _, line in _text_lines(path):
            size += len(line)
            if size > MAX_LINE:
                raise InputError(f"{path} line {number}: a record of over {MAX_LINE} characters; close its quotes")
            yield line

    csv.field_size_limit(max(MAX_LINE, csv.field_size_limit()))  # of all readers of the process; 128 KiB by default
    quoting: Any = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    reader = csv.reader(record_lines(), delimiter="\t" if tabs else ",", quoting=quoting, strict=True)
    while True:
        number, size = reader.line_num + 1, 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path} line {number}: {error}; correct it, or convert the file to JSONL") from error
        if cells:
            yield number, cells


def _conll(path: File, word_column: int, tag_column: int) -> Iterator[Row]:
    for sentence in _sentences(path):
        pairs = [_word_and_tag(f"{path} line {number}", line, word_column, tag_column) for number, line in sentence]
        values = {"words": [word for word, _ in pairs], "tags": [tag for _, tag in pairs]}
        yield Row(f"{path} line {sentence[0][0]}", values)


def _sentences(path: File) -> Iterator[list[tuple[int, str]]]:
    """Each sentence as its token lines with their numbers."""
    sentence: list[tuple[int, str]] = []
    size = 0  # characters
    conllu = kind(path) == ".conllu"
    for number, line in itertools.chain(_text_lines(path), [(0, "")]):
        if conllu and NO_WORD.match(line):
            continue
        if line.strip(" \t\r\n") and not line.startswith("-DOCSTART-"):
            sentence.append((number, line))
            size += len(line)
        elif sentence:
            yield sentence
            sentence, size = [], 0
        if len(sentence) > MAX_WORDS or size > MAX_LINE:
            raise InputError(f"{path} line {number}: a sentence of over {MAX_WORDS} words; end it with a blank line")


def _word_and_tag(place: str, line: str, word_column: int, tag_column: int) -> tuple[str, str]:
    # Only ASCII white space separates columns: a word may contain a no-break space.
    cells = [cell.strip(" \r\n") for cell in line.split("\t")] if "\t" in line else re.findall(r"[^ \r\n]+", line)
    size = len(cells)
    apart = (word_column - tag_column) % size != 0
    if not (apart and -size <= word_column < size and -size <= tag_column < size):
        wanted = f"the word in column {word_column} and the tag in column {tag_column}"
        raise InputError(f"{place}: columns: {size}, too few for {wanted}; correct the line or set other columns")
    word, tag = cells[word_column], cells[tag_column]
    if not word or not tag:
        raise InputError(f"{place}: an empty {'tag' if word else 'word'}; fill it in or remove the line")
    return word, tag


def _parquet(path: File) -> Iterator[Row]:
    for number, values in enumerate(parquet_rows(path), 1):
        yield Row(f"{path} row {number}", values)


READERS: dict[str, Callable[[File], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
COLUMNS = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".txt")
SUFFIXES = (*READERS, *COLUMNS)
