"""Write a folder so that its files are replaced only after all new ones are complete."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bertgpt.errors import InputError, check_local

CARD = "README.md"  # the model card, which the user may have edited
LAST = "config.json"  # moved last, since it makes the folder a model folder


@contextlib.contextmanager
def atomic_folder(folder: Path, superseded: Iterable[str] = ()) -> Iterator[Path]:
    """Yield an empty folder. At the end its files are moved to `folder`, config.json last.

    If an exception is raised, nothing is moved. An existing README.md is kept.

    Args:
        folder: created if it is missing; it then appears with all of its files at once.
        superseded: globs of old files to remove if they were not overwritten.

    Raises:
        InputError: `folder` is a file or an address.
    """
    check_local("the folder to write to", folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # on the file system of the target: an existing folder may be a link or a mount
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder if folder.is_dir() else folder.parent))
    try:
        yield new
        _apply_umask(new)
        if not folder.exists():
            new.replace(folder)
            return
        if (folder / CARD).exists():
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
    """Set the usual modes of new files, since mkdtemp and safetensors give access only to the owner."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.iterdir():
        file.chmod(mode)
    folder.chmod(mode | mode >> 2 & 0o111)
