"""Several processes of one run: how they meet, which of them speaks, and how they agree."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import bertgpt
from bertgpt.errors import InputError

from . import native_errors

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # what launchers tell of their processes
PATIENCE = 5  # seconds that a process waits for the first one without a word
SHOWN = 10  # seconds that a shared file system may take to show a new file to other hosts
LOST = ("gloo", "nccl", "coordination service", "connection closed by peer", "socket closed", "heartbeat")


def connect() -> None:
    """Joins the other processes of a run, where it has any; call it before anything asks for a device.

    They are told by JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; else JAX
    finds them under Slurm's srun and Open MPI 4, and on the hosts of a Cloud TPU. From then on SIGTERM to one process
    is a notice to all, which is acted upon between steps.

    Raises:
        InputError: the environment gives one of the three values without the others, or no numbers; or a launcher has
            started several processes and JAX does not know it.
    """
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", True)
    launched = [name for name in LAUNCHED if int(os.environ.get(name, 1)) > 1]
    if given := {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if name in os.environ}:
        address, count, index = _checked(given)
        print(f"process {index} of {count} joins the others at {address}, for which it waits up to 300 s", flush=True)
        jax.distributed.initialize(address, count, index)
    elif launched:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise InputError(
                f"{launched[0]} tells of several processes, but JAX cannot find them ({error}); set {ADDRESS}, {COUNT} "
                f"and {INDEX} in each"
            ) from error
    elif importlib.util.find_spec("libtpu") and "tpu" in os.environ.get("JAX_PLATFORMS", "tpu").split(","):
        with contextlib.suppress(ValueError):  # one host alone: JAX found no others
            jax.distributed.initialize()
    if several():
        native_errors.attach(jax.process_index())


def _checked(given: dict[str, str]) -> tuple[str, int, int]:
    missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in given]
    if missing:
        raise InputError(f"the environment has {', '.join(given)} without {', '.join(missing)}; give all three or none")
    try:
        count, index = int(given[COUNT]), int(given[INDEX])
    except ValueError as error:
        raise InputError(f"{COUNT} and {INDEX} must be whole numbers: {error}") from error
    if not 0 <= index < count or ":" not in given[ADDRESS]:
        raise InputError(
            f"{ADDRESS}={given[ADDRESS]} {COUNT}={count} {INDEX}={index}: give host:port and an index under the number"
        )
    return given[ADDRESS], count, index


def several() -> bool:
    """Whether this run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return not several() or jax.process_index() == 0


def sync(name: str) -> None:
    """Until every process is here."""
    if several():
        multihost_utils.sync_global_devices(name)


def check_same(values: dict[str, Any]) -> None:
    """Compares what every process was started with, and its code; call it before anything else that they do together.

    Args:
        values: of this process, by key; ready for JSON.

    Raises:
        InputError: a process has other values than the first; names process and key.
    """
    if not several():
        return
    mine = json.dumps(values | _versions(), sort_keys=True, default=str).encode()
    sizes = _gathered(np.array([len(mine)], np.int32))
    texts = _gathered(np.frombuffer(mine.ljust(sizes.max()), np.uint8))
    first, *others = (json.loads(text.tobytes()) for text in texts)
    for process, other in enumerate(others, 1):
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise InputError(
                    f"process {process} has {key} = {other.get(key)}, and process 0 has {first.get(key)}; start every "
                    "process with the same command and the same code"
                )


def _gathered(values: np.ndarray) -> np.ndarray:
    """[N] of every process -> [processes N]."""
    return np.asarray(multihost_utils.process_allgather(values))


def _versions() -> dict[str, str]:
    """Of the packages that compute; of this project a hash of its code, since two checkouts may share a version."""
    digest = hashlib.sha256()
    for folder in (Path(bertgpt.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    versions = {f"version of {name}": importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return versions | {"code of bertgpt": digest.hexdigest()[:16]}


def after_first(folder: Path, work: Callable[[], bool], waiting: str) -> bool:
    """Runs `work` in the first process, while the others wait for it; returns what it returns, in the others True.

    The wait is for a file and not for a collective, which gives up after a while.

    Args:
        folder: that all share.
        work: may take hours.
        waiting: what the others tell where they wait long.
    """
    if not several():
        return work()
    mark = folder / f".done_{agreed(secrets.randbelow(2**31))}"
    if is_first():
        outcome = work()
        mark.touch()
    else:
        outcome, began, told = True, time.monotonic(), False
        while not mark.exists():  # should the first process fail, this one ends too
            time.sleep(0.2)
            if not told and time.monotonic() - began > PATIENCE:
                told = True
                print(f"process {jax.process_index()}: {waiting}", file=sys.stderr, flush=True)
    sync(f"{mark} is seen")
    if is_first():
        mark.unlink()
    return outcome


def agreed(number: int) -> int:
    """The first process's number, in every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if several() else number


def summed(values: Sequence[float]) -> list[float]:
    """Numbers of this process [N], added over all of them."""
    if not several():
        return list(values)
    return np.asarray(multihost_utils.process_allgather(np.asarray(values, np.float32)), np.float64).sum(0).tolist()


def check_shared(folder: Path) -> None:
    """Makes the folder, if this run has several processes, and looks whether all of them see the same.

    Raises:
        InputError: one does not.
    """
    if not several():
        return
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".shared_{agreed(secrets.randbelow(2**31))}"
    if is_first():
        mark.touch()
    sync(f"{folder} is marked")  # nobody looks before, since a file system may remember for a while what was not there
    began = time.monotonic()
    while not mark.exists() and time.monotonic() - began < SHOWN:
        time.sleep(0.1)
    (blind,) = summed([not mark.exists()])
    if is_first():
        mark.unlink()
    if blind:
        raise InputError(
            f"{folder}: {blind:.0f} of {jax.process_count()} processes have another folder of that name; "
            "give one on storage that all share"
        )


def is_lost_peer(error: Exception) -> bool:
    """Whether a failure tells of another process that went away."""
    text = str(error).lower()
    own = isinstance(error, InputError | OSError | MemoryError) or "resource_exhausted" in text or "memory" in text
    return several() and not own and any(word in text for word in LOST)


def lost(error: Exception) -> str:
    """The same in one line, with what to do."""
    return native_errors.lost(jax.process_index(), " ".join(str(error).split())[:300])
