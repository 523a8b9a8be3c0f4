"""Token stores at an address, and their copies on this machine.

A store at an address has the files of a local one. Its meta.json, which has the hashes of the arrays, is written last
and removed first. Each machine copies the arrays once to its cache; they are hashed while they are written.
"""

import shutil
from pathlib import Path

from bertgpt.data.text import store
from bertgpt.errors import InputError

from ..addresses import Remote
from ..progress import Bar
from ..reports import say, warn
from . import verified

META = "meta.json"


def fetch(remote: Remote, folder: Path) -> bool:
    """Make the copy in the folder equal to the store at an address; returns whether there is an intact one.

    Without one, the copy is left as it is.
    """
    meta = remote.read(META)
    if meta is None:
        return False
    if (folder / META).exists() and (folder / META).read_bytes() == meta and verified.fault(folder) is None:
        return True
    say(f"copying {remote.address} to {folder}")
    try:
        with store.temporary_folder(folder) as new:
            (new / META).write_bytes(meta)
            _copy(remote, new)
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
    except InputError as error:
        warn(f"{remote.address}: {error}")
        return False
    verified.remember(folder)
    return True


def _copy(remote: Remote, new: Path) -> None:
    """
    Raises:
        InputError: a file is missing, changed or cannot be read.
    """
    hashes = store.hashes(new)
    sizes = {name: info.size for name, info in ((name, remote.info(name)) for name in hashes) if info is not None}
    with Bar("copying", sum(sizes.values()), "bytes") as bar:
        for name in ("tokenizer.json", *hashes):
            try:
                found, _ = remote.download(name, new / name)
            except FileNotFoundError:
                raise InputError(f"{name} is missing") from None
            if found != hashes.get(name, found):
                raise InputError(f"{name} is changed")
            bar.advance(sizes.get(name, 0))


def need(remote: Remote, folder: Path) -> None:
    """As `fetch`, for a store that must be there.

    Raises:
        InputError: it is not.
    """
    if not fetch(remote, folder):
        raise InputError(f"{remote.address}: no intact token store; start the run again to prepare it")


def push(folder: Path, remote: Remote, intact: bool) -> None:
    """Copy the store in the folder to its address, unless an intact one is there that is equal.

    Raises:
        InputError: a file cannot be written.
    """
    meta = (folder / META).read_bytes()
    if intact and remote.read(META) == meta:
        return
    say(f"copying {folder} to {remote.address}")
    remote.remove(META)
    for name in ("tokenizer.json", *store.hashes(folder)):
        remote.upload(folder / name, name)
    remote.write(META, meta)
