"""Which token stores this machine has found sound: a small file a store in the user's cache folder.

It holds the size and time of each of the store's files, so that they are read again only after one of them changed.
"""

import contextlib
import hashlib
import json
import socket
from pathlib import Path

from bertgpt.data.text import store

from ..atomic_files import user_cache, write_whole


def fault(folder: Path, always: bool = False) -> str | None:
    """What is wrong with a store's arrays, as `store.fault` has it; they are not read where this machine knows them.

    Args:
        folder: the store.
        always: reads them all the same.

    Raises:
        InputError: there is no store, or its meta.json is damaged.
    """
    stamps = _stamps(folder)
    if not always and stamps is not None and stamps == _known(folder):
        return None
    found = store.fault(folder)
    if found is None:
        _write(folder, stamps)  # of before: what changed while it was read is read again
    else:
        with contextlib.suppress(OSError):
            _file(folder).unlink()
    return found


def remember(folder: Path) -> None:
    """Notes that the store is sound as it is now."""
    _write(folder, _stamps(folder))


def _write(folder: Path, stamps: list[list[int]] | None) -> None:
    file = _file(folder)
    with contextlib.suppress(OSError):  # a home that cannot be written costs a look at the next start, no more
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(stamps))


def _known(folder: Path) -> object:
    try:
        return json.loads(_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _stamps(folder: Path) -> list[list[int]] | None:
    """Size and time in ns of each file; None where one is missing."""
    try:
        found = [path.stat() for path in store.array_files(folder)]
    except FileNotFoundError:
        return None
    return [[status.st_size, status.st_mtime_ns] for status in found] if len(found) > 1 else None


def _file(folder: Path) -> Path:
    """The home may be shared by machines, each with a view of its own of the store's storage."""
    name = hashlib.sha256(f"{socket.gethostname()} {folder.resolve()}".encode()).hexdigest()[:32]
    return user_cache() / "verified_stores" / f"{name}.json"
