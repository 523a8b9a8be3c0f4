"""Locks between processes, so two runs do not write to the same folder.

A lock is a byte range of a small file (`fcntl.lockf`). The system releases it when its process exits, even if it is
killed, and child processes do not inherit it. The file names the process, and is removed when the lock is released.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from bertgpt.errors import InputError

from .. import hosts
from ..reports import warn

TAKEN = (errno.EACCES, errno.EAGAIN)
RUN_LOCK = ".lock"  # in a run's folder
UNKNOWN = "another process"


class TakenError(Exception):
    """Another process has the lock; the text names the process."""


class Unlocked:
    """Takes the place of a locked file on a file system without locks."""


@contextlib.contextmanager
def lock(path: Path, wait: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Lock a file while the body runs; the file and its folder are created if they are missing.

    Yields True; or False, after a warning, if the file system has no locks.

    Args:
        path: the file.
        wait: if another process has the lock, called once with the name of that process; then `lock` waits. None: do
            not wait.

    Raises:
        TakenError: another process has the lock, and `wait` is None.
    """
    file = _acquire(path)
    if file is None:
        holder = _holder(path)
        if wait is None:
            raise TakenError(holder)
        wait(holder)
        while (file := _acquire(path)) is None:
            time.sleep(0.5)
    if isinstance(file, Unlocked):
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # somebody may have removed or replaced the folder
            path.unlink()
        file.close()


@contextlib.contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Create a run's folder if it is missing, and lock it against other runs.

    At the end an empty folder is removed, with the parents that were created for it.

    Raises:
        InputError: another run uses the folder, or a file has its path or the path of a parent.
    """
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"{nearest} is a file; choose a folder as out")
    made = [path for path in (out, *out.absolute().parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            holder = ""
            if hosts.is_first():
                try:
                    stack.enter_context(lock(out / RUN_LOCK))
                except TakenError as error:
                    holder = str(error)
            if hosts.agreed(bool(holder)):
                raise InputError(f"{out}: in use by {holder or 'another run'}; stop that run, or choose another out")
            yield
    finally:
        with contextlib.suppress(OSError):
            for path in made or [out]:
                path.rmdir()  # fails if it is not empty


def _acquire(path: Path) -> IO[str] | Unlocked | None:
    """Open and lock the file; None if another process has the lock."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:
            continue  # the previous owner of the lock has removed the empty folder
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in TAKEN:
                return None
            path.unlink(missing_ok=True)
            warn(f"{path.parent}: the file system has no locks ({error}); do not start a second run there")
            return Unlocked()
        if _is_same(file, path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()  # the previous owner of the lock has removed this file; create another


def _is_same(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """The process named in the file of a lock; the file may be missing or still empty."""
    try:
        return path.read_text(encoding="utf-8").strip()[:200] or UNKNOWN
    except OSError:
        return UNKNOWN
