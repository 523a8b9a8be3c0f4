"""The token stores that this machine has verified: one small file per store in the user's cache folder.

It contains the size and modification time of each file of the store. The store is verified again only if one of them
changes.
"""

import contextlib
import hashlib
import json
import socket
from pathlib import Path

from bertgpt.data.text import store

from ..atomic_files import user_cache, write_whole


def fault(folder: Path, always: bool = False) -> str | None:
    """The damage of a store, as `store.fault` returns it; a store that this machine has verified is not read again.

    Args:
        folder: the store.
        always: read the store in any case.

    Raises:
        InputError: there is no store, or its meta.json is damaged.
    """
    stamps = _stamps(folder)
    if not always and stamps is not None and stamps == _known(folder):
        return None
    found = store.fault(folder)
    if found is None:
        _write(folder, stamps)  # taken before reading, so a file that changed meanwhile is read again
    else:
        with contextlib.suppress(OSError):
            _file(folder).unlink()
    return found


def remember(folder: Path) -> None:
    """Record that the store is intact in its present state."""
    _write(folder, _stamps(folder))


def _write(folder: Path, stamps: list[list[int]] | None) -> None:
    file = _file(folder)
    with contextlib.suppress(OSError):  # if the cache is not writable, the store is read again at the next start
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(stamps))


def _known(folder: Path) -> object:
    try:
        return json.loads(_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _stamps(folder: Path) -> list[list[int]] | None:
    """Size and modification time (ns) of each file; None if one is missing."""
    try:
        found = [path.stat() for path in store.array_files(folder)]
    except FileNotFoundError:
        return None
    return [[status.st_size, status.st_mtime_ns] for status in found] if len(found) > 1 else None


def _file(folder: Path) -> Path:
    """The file of a store; its name depends on the host, since a home may be shared but a path may differ per host."""
    name = hashlib.sha256(f"{socket.gethostname()} {folder.resolve()}".encode()).hexdigest()[:32]
    return user_cache() / "verified_stores" / f"{name}.json"
