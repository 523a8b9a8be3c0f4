"""Places in the file system, and files that are there whole or not at all."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


def user_cache() -> Path:
    """The folder of the user's that holds what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "bertgpt"


def write_whole(path: Path, text: str) -> None:
    """Writes a file under another name, and gives it its own when it is on disk."""
    with _written(path, text) as temporary:
        temporary.replace(path)


def write_first(path: Path, text: str) -> None:
    """As `write_whole`, unless another process has made the file meanwhile: then that one stays."""
    with _written(path, text) as temporary:
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            temporary.replace(path)


@contextlib.contextmanager
def _written(path: Path, text: str) -> Iterator[Path]:
    """A file beside another that holds the text, on disk; gone at the end."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
