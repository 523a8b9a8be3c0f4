"""Atomic writes of files, and the user's cache folder."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bertgpt.errors import InputError


def user_cache() -> Path:
    """The user's cache folder, for files that can be created again."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "bertgpt"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: under a temporary name, which is renamed when the content is on disk."""
    with _written(path, content) as temporary:
        temporary.replace(path)


def write_first(path: Path, text: str) -> None:
    """As `write_whole`, but keep the existing file if another process has created it in the meantime."""
    with _written(path, text) as temporary:
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            temporary.replace(path)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears at `path` when the body ends without an error; until then it has a temporary name.

    Raises:
        InputError: its folder does not exist.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; create it, or give another file")
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextlib.contextmanager
def _written(path: Path, content: str | bytes) -> Iterator[Path]:
    """A temporary file next to `path` with this content, flushed to disk; removed at the end."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
