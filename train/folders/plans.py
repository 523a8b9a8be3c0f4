"""Plans of epochs in files on local disk, so that the processes of a host share the memory of one plan.

Each plan is a folder with one flat little-endian file per array and meta.json, which contains their shapes and hashes.
It is written under a temporary name and renamed when it is complete.
"""

import contextlib
import hashlib
import json
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bertgpt.data.pretraining import plans
from bertgpt.data.pretraining.plans import Keep, Make, Plan
from bertgpt.data.text import store
from bertgpt.data.text.integrity import first_changed, hash_file
from bertgpt.data.text.store import Split
from bertgpt.errors import InputError
from bertgpt.json_files import read_json_object

from ..atomic_files import user_cache
from ..reports import say, warn
from ..sections import RunConfig
from . import locks

UNUSED_DAYS = 7  # after which the plans of other runs are removed
KINDS = ("<i4", "<i8", "<u2", "<u8")  # of arrays


def keep(config: RunConfig, store_folder: Path, split: Split, name: str, seed: int) -> Keep:
    """Where the plans of a split are kept: in files if they are large, else in memory.

    Args:
        config: of the run.
        store_folder: the token store.
        split: the split of the store.
        name: its name.
        seed: of the plans.
    """
    if plans.has_one_block(split):
        return plans.in_memory
    made_of = {
        "version": 1,
        "store": store.digest(store_folder, words=False),
        "split": name,
        "objective": config.train.objective,
        "sequence_length": config.data.sequence_length,
        "pack": config.data.pack,
        "balance_nsp": config.data.balance_nsp,
        "seed": seed,
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
    return PlanFolder(user_cache() / "plans" / socket.gethostname() / key)


class PlanFolder:
    """The plans of one source; callable as `plans.Keep`. Of all processes and threads, one makes a plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.threads: dict[Path, threading.Lock] = {}
        self.guard = threading.Lock()

    def __call__(self, name: str, epoch: int, make: Make) -> Plan:
        """Find the plan of an epoch, or make it.

        If the folder cannot be written, the plan is made in memory, after a warning.
        """
        folder = self.folder / f"{name}-{epoch}"
        plan = _read(folder)
        if plan is not None:
            return plan
        try:
            with self._locked(folder):
                return _read(folder) or _write(folder, epoch, make)
        except OSError as error:
            warn(
                f"{folder}: cannot be written ({error}), so each process keeps this plan in its own memory; set "
                "XDG_CACHE_HOME to a folder on a local disk with more room"
            )
            return plans.in_memory(name, epoch, make)

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Lock a plan against other threads and processes; remove what is no longer needed."""
        with self.guard:
            mine = self.threads.setdefault(folder, threading.Lock())
        lock = folder.with_name(f".{folder.name}.lock")
        with mine, locks.lock(lock, lambda holder: say(f"waiting for {folder}, which {holder} is making")) as held:
            _tidy(folder, held)
            yield


def _write(folder: Path, epoch: int, make: Make) -> Plan:
    """Make a plan in files."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:

        def gather(name: str, blocks: Iterable[np.ndarray]) -> np.ndarray:
            """Write blocks to a file, and map it."""
            return _append(temporary / f"{name}.bin", blocks)

        plan = make(epoch, gather)
        for path in set(temporary.iterdir()) - {temporary / f"{name}.bin" for name in plan.arrays}:
            path.unlink()
        meta = {
            "arrays": {name: [array.dtype.str, *array.shape] for name, array in plan.arrays.items()},
            "facts": plan.facts,
            "hashes": {f"{name}.bin": hash_file(temporary / f"{name}.bin") for name in plan.arrays},
        }
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Plan({name: np.asarray(array) for name, array in plan.arrays.items()}, plan.facts)


def _append(path: Path, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Write blocks to a new file, and map it: [N ...]."""
    path.unlink(missing_ok=True)
    count, rest, dtype = 0, (), np.dtype(np.int64)
    with path.open("wb") as file:
        for block in blocks:
            count, rest, dtype = count + len(block), block.shape[1:], block.dtype
            file.write(np.ascontiguousarray(block).data)
    return np.memmap(path, dtype, "r", shape=(count, *rest))


def _read(folder: Path) -> Plan | None:
    """The plan in a folder, memory-mapped; None if it is missing or damaged."""
    path = folder / "meta.json"
    try:
        meta = read_json_object(path) if path.is_file() else {}
        hashes = {f"{name}.bin": meta["hashes"][f"{name}.bin"] for name in meta["arrays"]}
        if first_changed(folder, hashes):
            return None
        arrays = {name: _map(folder, name, *kind) for name, kind in meta["arrays"].items()}
        path.touch()  # it is in use: see `_tidy`
        return Plan(arrays, {name: int(value) for name, value in meta["facts"].items()})
    except (InputError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _map(folder: Path, name: str, dtype: str, *shape: Any) -> np.ndarray:
    if dtype not in KINDS or not re.fullmatch(r"\w+", name):
        raise ValueError(f"{folder}: {name} is not an array of a plan")
    return np.asarray(np.memmap(folder / f"{name}.bin", dtype, "r", shape=shape))


def _tidy(folder: Path, held: bool) -> None:
    """Remove earlier epochs of the source and the plans of unused sources; with the lock held, also what killed
    processes left of this plan.

    Files that a process has mapped stay readable for it. Another process may remove the same files.
    """
    name, _, epoch = folder.name.rpartition("-")
    for path in folder.parent.iterdir():
        found = re.fullmatch(rf"{name}-(\d+)", path.name)
        leftover = held and path.name.startswith(f".{folder.name}.") and path.suffix == ".tmp"
        if leftover or (found and 0 < int(found[1]) <= int(epoch) - plans.KEPT):
            shutil.rmtree(path, ignore_errors=True)
    oldest = time.time() - UNUSED_DAYS * 86400
    for source in folder.parents[1].iterdir():
        with contextlib.suppress(OSError):
            used = [path.stat().st_mtime for path in source.glob("*/meta.json")]
            if source != folder.parent and max([source.stat().st_mtime, *used]) < oldest:
                shutil.rmtree(source, ignore_errors=True)
