"""Texts of a command: its arguments, the documents of files, or the lines of standard input."""

import argparse
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
OBJECT = re.compile(r'\s*\{\s*("|\}|$)')  # how a JSON object begins; a text may begin with a brace too
LIST = re.compile(r"\s*\[\s*(\{|$)")  # how a list of objects begins; a text may begin with a bracket too


def add_texts(parser: argparse.ArgumentParser, document: str) -> None:
    """Add the arguments; `document` is the default of --document."""
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="texts (default: the lines of standard input)")
    parser.add_argument("--file", metavar="PATH", help="a file, folder or glob of texts, as data.train")
    parser.add_argument(
        "--document",
        choices=("paragraph", "line", "file"),
        default=document,
        help=f"what a text of --file is, as data.document (default {document})",
    )
    parser.add_argument("--text-key", default="text", metavar="KEY", help="of the texts in JSON (default text)")


def read_texts(options: argparse.Namespace) -> Iterator[str]:
    """The texts, one after another, with little text in memory.

    Raises:
        InputError: there are none, both arguments and a file are given, or a text cannot be read.
    """
    from bertgpt.errors import InputError, quoted

    from ..config import expand_home
    from ..reports import check_text, warn

    if options.texts and options.file is not None:
        raise InputError("give texts as arguments or with --file, not both")
    if options.file is not None:
        yield from _documents(expand_home(options.file, "--file"), options)
        return
    found = False
    for text in options.texts or _texts_of_input(options.text_key):
        check_text(text)
        if options.texts and os.path.isfile(text):
            warn(f"{quoted(text)} is taken as a text, and a file has this name; to read the file, give --file")
        found = True
        yield text
    if not found:
        raise InputError("there are no texts; give some as arguments, with --file, or on standard input")


def count_texts(options: argparse.Namespace) -> int | None:
    """The number of texts in --file; None without it, or if they cannot all be read, which `read_texts` tells."""
    from bertgpt.errors import InputError

    try:
        return None if options.file is None else sum(1 for _ in read_texts(options))
    except InputError:
        return None


def watched(results: Iterable[T], doing: str, options: argparse.Namespace, prints: bool) -> Iterator[T]:
    """Yield the results, one per text, with their progress.

    Nothing is shown of texts given as arguments, or if the results themselves are printed on a terminal (`prints`).
    """
    import functools
    import sys

    from ..progress import counted

    shown = not options.texts and not (prints and sys.stdout.isatty())
    return counted(results, doing, "texts", functools.partial(count_texts, options), shown)


def _documents(address: Any, options: argparse.Namespace) -> Iterator[str]:
    from bertgpt.data.text.documents import read_documents
    from bertgpt.data.text.files import find_files
    from bertgpt.errors import InputError

    found = False
    try:
        for paragraphs in read_documents(find_files(address), options.text_key, document=options.document):
            if paragraphs:
                found = True
                yield "\n".join(paragraphs)
    except InputError as error:
        raise InputError(str(error).replace("data.text_key", "--text-key")) from error
    if not found:
        raise InputError(f"--file: {address} contains no text")


def _texts_of_input(key: str) -> Iterator[str]:
    """The text of each line of standard input."""
    from bertgpt.errors import InputError, excerpt, quoted

    for place, values in input_lines(key):
        text = values.get(key)
        if not isinstance(text, str) or not text.strip():
            found = ", ".join(values) or "none"
            raise InputError(f"{place}: no text under {quoted(key)} (found keys {excerpt(found)}); set --text-key")
        yield text


def input_lines(key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, values) of each line of standard input that is not blank: a JSON object, or a text under `key`.

    Raises:
        InputError: a line is not UTF-8 or too long, or begins like an object and is not JSON.
    """
    import sys

    from bertgpt.data.text.files import parse_json, stream_lines
    from bertgpt.errors import InputError

    name = "standard input"
    if sys.stdin.isatty():
        print("reading texts from the terminal, one a line; end with Ctrl-D", file=sys.stderr)
    for number, line in stream_lines(name, sys.stdin.buffer):
        if not line.strip():
            continue
        if LIST.match(line):
            raise InputError(f"{name} line {number}: a JSON list; give one object a line, or a .json file with --file")
        if not OBJECT.match(line):
            yield f"{name} line {number}", {key: line.rstrip("\r\n")}
            continue
        try:
            yield f"{name} line {number}", parse_json(name, f"line {number}", line.strip())
        except InputError as error:
            advice = f'an object must end on its line, and a text that begins so is given as {{"{key}": "..."}}'
            raise InputError(f"{error}; {advice}") from error
