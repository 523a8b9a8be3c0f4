"""Locks between processes, so that two runs do not write into one place.

A lock is a byte range of a small file (`fcntl.lockf`). It ends with the process that holds it, however that ends, and
no child process inherits it. The file says who holds it, and is removed at the end.
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
    """Another process holds the lock; the text says which."""


class Unlocked:
    """In place of a locked file, on a file system without locks."""


@contextlib.contextmanager
def lock(path: Path, wait: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Holds the lock of a file, which is made where it is missing, as its folder is.

    Yields True; or False where the file system has no locks: a warning says so, and the body runs without one.

    Args:
        path: the file.
        wait: called once with who holds the lock, where it is taken; then waits for it. None: does not wait.

    Raises:
        TakenError: it is taken, and `wait` is None.
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
        path.unlink(missing_ok=True)
        file.close()


@contextlib.contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """A run's folder, made where it is missing, with every other run kept out. An empty one is removed at the end.

    Raises:
        InputError: another run uses it, or it is or lies below a file.
    """
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"{nearest} is a file; choose a folder as out")
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
            out.rmdir()  # fails where it is not empty


def _acquire(path: Path) -> IO[str] | Unlocked | None:
    """The locked file, open; None where another process has it."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:
            continue  # whoever had the lock has removed the empty folder
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in TAKEN:
                return None
            path.unlink(missing_ok=True)
            warn(f"{path.parent}: its file system has no locks ({error}); start no second run there")
            return Unlocked()
        if _is_same(file, path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()  # whoever had the lock has removed this file; make another


def _is_same(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """What the lock's file says; it may have gone, or may not be written yet."""
    try:
        return path.read_text(encoding="utf-8").strip()[:200] or UNKNOWN
    except OSError:
        return UNKNOWN
