"""Labelled data files to rows: JSON, JSONL, CSV, TSV, CoNLL columns, SQuAD JSON, Parquet."""

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
from bertgpt.errors import InputError

MAX_WORDS = 1 << 16  # of a sentence in CoNLL columns; more, or MAX_LINE characters, is a file of another kind
NO_WORD = re.compile(r"#|\d+[-.]\d+\s")  # a comment, a multi-word token and an empty node of CoNLL-U

T = TypeVar("T", str, int, list)


def read_rows(inputs: str | Sequence[str], *, word_column: int = 0, tag_column: int = -1) -> Iterator[Row]:
    """The rows of the files that paths, folders, globs and `package:NAME/FILE` name, one at a time.

    The suffix, that of a compression aside, is the format. JSONL: an object a line. JSON: a list of objects, or
    SQuAD's. CSV and TSV: the first line names the columns, and every cell is a text; TSV has no quotes. CoNLL columns
    (.conll, .conllu, .iob, .iob2, .bio, .txt): a token a line and a blank line after a sentence, which is a row of
    `words` and `tags`.
    Parquet: a row is a row. A question of SQuAD is a row of `id`, `question`, `context` and
    `answers` = {"text": [...], "answer_start": [...]}, empty lists where it has no answer.

    Args:
        word_column: of CoNLL columns, from 0, or from the end with -1.
        tag_column: likewise.

    Raises:
        InputError: an input names no file, or none of these formats, at once; a file or a row of it cannot be read,
            when it is reached.
    """
    files = _find_files(inputs)
    return itertools.chain.from_iterable(_read(path, word_column, tag_column) for path in files)


def read_all_rows(inputs: str | Sequence[str], *, word_column: int = 0, tag_column: int = -1) -> list[Row]:
    """As `read_rows`, all held at once.

    Compressed files and Parquet may claim far more rows than they have bytes, so what these take together is bounded.
    Files that are not compressed are about as large as their rows.

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
                way = "as JSONL" if kind(path) == ".parquet" else "unpacked"
                problem = f"up to here rows take {taken} bytes in memory, over {MAX_RATIO} times their files' {packed}"
                raise InputError(f"{row.place}: {problem}; if they are sound, give the file {way}")
            rows.append(row)
    return rows


def _memory(row: Row) -> int:
    """About how many bytes a row takes in memory, and no fewer than its texts."""
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
    """BLAKE2b, in hex, of the files' contents in order, whatever their names.

    Raises:
        InputError: as `read_rows`.
    """
    digest = hashlib.blake2b()
    for path in _find_files(inputs):
        try:
            with open_raw(path) as file:  # a digest a file, so that their ends and their number count
                digest.update(hashlib.file_digest(file, "blake2b").digest())  # type: ignore[arg-type]
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
    return digest.hexdigest()


def _find_files(inputs: str | Sequence[str]) -> list[File]:
    files = find_files(inputs, SUFFIXES)
    for path in files:
        if kind(path) not in SUFFIXES:
            choices = f"one of {', '.join(SUFFIXES)}, also with {', '.join(PACKED)}"
            raise InputError(f"{path}: cannot read this kind of file; give {choices}")
    return files


def _read(path: File, word_column: int, tag_column: int) -> Iterator[Row]:
    if kind(path) in COLUMNS:
        return _conll(path, word_column, tag_column)
    return READERS[kind(path)](path)


def _text_lines(path: File) -> Iterator[tuple[int, str]]:
    """As `lines`, without NUL bytes."""
    for number, line in lines(path):
        if "\0" in line:
            raise InputError(f"{path} line {number}: a NUL byte, so not UTF-8 text; convert the file")
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
        raise InputError(f"{path}: neither a list of objects nor SQuAD's object with a list under 'data'; give one")


def make_row(place: str, value: Any) -> Row:
    """A row of a JSON value.

    Raises:
        InputError: it is no object, or a text of it is no UTF-8.
    """
    if not isinstance(value, dict):
        raise InputError(f"{place}: a {type(value).__name__}; give an object with a value for each column")
    _check_text(place, value)
    return Row(place, value)


def _check_text(place: str, value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: half a surrogate pair, which UTF-8 cannot hold; remove it") from error
    except RecursionError as error:
        raise InputError(f"{place}: JSON that is nested too deep: {error}; flatten it") from error


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
        raise InputError(f"{place}: no {kind.__name__} under {key!r}; write the file as SQuAD's are")
    return found


def _table(path: File) -> Iterator[Row]:
    """CSV as RFC 4180 has it, or TSV."""
    tabs = kind(path) == ".tsv"
    header: list[str] = []
    for number, cells in _records(path, tabs):
        place = f"{path} line {number}"
        if not header:
            header = cells
            check_columns(place, header)
        elif len(cells) != len(header):
            advice = "take tabs out of the cells" if tabs else "quote a cell that holds a comma"
            raise InputError(f"{place}: {len(cells)} cells under a header of {len(header)}; {advice}")
        else:
            yield Row(place, dict(zip(header, cells, strict=True)))
    if not header:
        raise InputError(f"{path}: empty; name the columns in the first line")


def _records(path: File, tabs: bool) -> Iterator[tuple[int, list[str]]]:
    """(number of the record's first line, its cells); blank lines are skipped."""
    number, size = 1, 0  # of the record under way: where it begins, characters of its lines so far

    def record_lines() -> Iterator[str]:
        nonlocal size
        for _, line in _text_lines(path):
            size += len(line)
            if size > MAX_LINE:
                raise InputError(f"{path} line {number}: a record of over {MAX_LINE} characters; close its quotes")
            yield line

    quoting: Any = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    reader = csv.reader(record_lines(), delimiter="\t" if tabs else ",", quoting=quoting, strict=True)
    while True:
        number, size = reader.line_num + 1, 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path} line {number}: {error}; mend it, or give the file as JSONL") from error
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
    # ASCII white space alone parts columns: a word may hold a no-break space
    cells = [cell.strip(" \r\n") for cell in line.split("\t")] if "\t" in line else re.findall(r"[^ \r\n]+", line)
    size = len(cells)
    apart = (word_column - tag_column) % size != 0
    if not (apart and -size <= word_column < size and -size <= tag_column < size):
        wanted = f"the word in column {word_column} and the tag in column {tag_column}"
        raise InputError(f"{place}: columns: {size}, too few for {wanted}; mend the line or choose other columns")
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
