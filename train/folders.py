"""Places in the file system, and files that are there whole or not at all."""

import os
from pathlib import Path


def user_cache() -> Path:
    """The folder of the user's that holds what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "bertgpt"


def write_whole(path: Path, text: str) -> None:
    """Writes a file under another name, and gives it its own when it is on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
