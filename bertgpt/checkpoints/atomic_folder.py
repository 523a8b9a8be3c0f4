"""A folder whose files are replaced together."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bertgpt.errors import InputError, check_local

CARD = "README.md"  # of a model; a user may have written on it
LAST = "config.json"  # the file that makes a folder a model's is put in its place last


@contextlib.contextmanager
def atomic_folder(folder: Path, superseded: Iterable[str] = ()) -> Iterator[Path]:
    """An empty folder, whose files take their places in `folder` when all are written: weights before config.json.

    Args:
        folder: made where it is missing; all of it appears at once then.
        superseded: globs of files that go where they were not written anew.

    Raises:
        InputError: `folder` is a file or an address.
    """
    check_local("the folder to write to", folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # On the file system that the files will be on: a folder that is there may be a link or a mount.
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder if folder.is_dir() else folder.parent))
    try:
        yield new
        _apply_umask(new)
        if not folder.exists():
            new.replace(folder)
            return
        if (folder / CARD).exists():  # somebody may have written on it
            (new / CARD).unlink(missing_ok=True)
        written = sorted(file.name for file in new.iterdir())
        for name in written:
            if name != LAST:
                os.replace(new / name, folder / name)
        for file in {file for pattern in superseded for file in folder.glob(pattern)}:
            if file.name not in written:
                file.unlink()
        if LAST in written:
            os.replace(new / LAST, folder / LAST)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    """Modes as any new file's: mkdtemp and safetensors make theirs for the owner alone."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.iterdir():
        file.chmod(mode)
    folder.chmod(mode | mode >> 2 & 0o111)
