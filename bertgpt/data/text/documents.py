"""Text files to documents, and documents to sentences, one at a time."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sentencex

from bertgpt.data.text.files import File, Read, kind, lines, parse_json, read_json, stamp
from bertgpt.data.text.parquet import parquet_rows
from bertgpt.errors import InputError

TABLES = (".csv", ".tsv")
MAX_DOCUMENT = 1 << 22  # characters; a longer document, other than a row, is read as several


def read_documents(
    files: Sequence[File],
    text_key: str = "text",
    sentence_per_line: bool = False,
    document: str = "paragraph",
    read: Read | None = None,
) -> Iterator[list[str]]:
    """Each document as its paragraphs.

    - Plain text: a blank line ends a document. The lines of a document are joined into one paragraph, because a
      wrapped line does not end a sentence. With `sentence_per_line`, each line is a paragraph.
    - JSONL: one document per line, an object with its text under `text_key`.
    - JSON: a list of documents, or an object whose values are documents. A document is a text or an object with
      `text_key`.
    - Parquet: the column `text_key`, with one text per row.

    Line breaks within the texts of JSONL, JSON and Parquet separate paragraphs.

    If `document` is "line", each line of plain text is a document. If it is "file", the documents above are joined to
    one for each file, of any format. A file of over MAX_DOCUMENT characters becomes several documents.

    `read`, if given, is called with the number of bytes that were read of the files, compressed as they are.

    Raises:
        InputError: a file is a table, is not UTF-8, does not match its suffix, or lacks the key; names the file and the
            line.
    """
    for path in files:
        if kind(path) == ".jsonl":
            found = _jsonl(path, text_key, read)
        elif kind(path) == ".json":
            found = _json(path, text_key, read)
        elif kind(path) == ".parquet":
            found = _parquet(path, text_key, read)
        elif kind(path) in TABLES:
            raise InputError(f"{path}: a table is not read as text; write the column of texts to .txt or .jsonl")
        elif document == "line":
            found = ([text] for _, line in lines(path, read) if (text := line.strip()))
        else:
            found = _plain(path, sentence_per_line, read)
        yield from _joined(found) if document == "file" else found


def split_sentences(paragraphs: Sequence[str], language: str = "en", sentence_per_line: bool = False) -> list[str]:
    """The sentences of one document in order, without surrounding white space; empty sentences are dropped."""
    if sentence_per_line:
        return [line for line in paragraphs if line]
    sentences = (sentence.strip() for text in paragraphs for sentence in sentencex.segment(language, text))
    return [sentence for sentence in sentences if sentence]


def _plain(path: File, sentence_per_line: bool, read: Read | None) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for _, line in lines(path, read):
        line = line.strip()
        if line:
            block.append(line)
            size += len(line)
        if block and (not line or size > MAX_DOCUMENT):
            yield block if sentence_per_line else [" ".join(block)]
            block, size = [], 0
    if block:
        yield block if sentence_per_line else [" ".join(block)]


def _joined(documents: Iterable[list[str]]) -> Iterator[list[str]]:
    """One document of several; of over MAX_DOCUMENT characters, more than one."""
    joined: list[str] = []
    size = 0
    for document in documents:
        joined += document
        size += sum(map(len, document))
        if size > MAX_DOCUMENT:
            yield joined
            joined, size = [], 0
    if joined:
        yield joined


def _jsonl(path: File, text_key: str, read: Read | None) -> Iterator[list[str]]:
    for number, line in lines(path, read):
        if line.strip():
            yield _paragraphs(parse_json(path, f"line {number}", line.strip()), text_key, f"{path} line {number}")


def _json(path: File, text_key: str, read: Read | None) -> Iterator[list[str]]:
    value = read_json(path)
    if not isinstance(value, dict | list):
        raise InputError(f"{path}: contains one {type(value).__name__}; give an object or a list of documents")
    share = stamp(path)[0] / max(1, len(value)) if read else 0.0  # the file is in memory, and its documents are to come
    for name, document in value.items() if isinstance(value, dict) else enumerate(value):
        yield _paragraphs(document, text_key, f"{path} document {name!r}")
        if read is not None:
            read(share)


def _parquet(path: File, text_key: str, read: Read | None) -> Iterator[list[str]]:
    for number, row in enumerate(parquet_rows(path, text_key, read), 1):
        yield _paragraphs(row[text_key], text_key, f"{path} row {number}")


def _paragraphs(document: Any, text_key: str, place: str) -> list[str]:
    text = document.get(text_key) if isinstance(document, dict) else document
    if not isinstance(text, str):
        found = f"keys {', '.join(map(str, document))}" if isinstance(document, dict) else type(document).__name__
        raise InputError(f"{place}: no text under {text_key!r} (found {found}); set data.text_key")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: an unpaired surrogate, which UTF-8 cannot encode; remove it") from error
    return [line for part in text.splitlines() if (line := part.strip())]
