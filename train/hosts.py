"""A run of several processes: connect them, log from the first one, agree on values."""

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
LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # set by launchers: the number of processes
PATIENCE = 5  # seconds that a process waits for the first one before it logs
SHOWN = 10  # seconds until a shared file system shows a new file to other hosts, at most
LOST = ("gloo", "nccl", "coordination service", "connection closed by peer", "socket closed", "heartbeat")


def connect() -> None:
    """Connect to the other processes of a run, if any; call it before anything uses a device.

    The processes are given by JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    Otherwise JAX finds them under Slurm's srun and Open MPI 4, and on the hosts of a Cloud TPU. After that, SIGTERM to
    one process stops all of them between two steps.

    Raises:
        InputError: the environment has only some of the three values, or invalid ones; or a launcher has started
            several processes and JAX cannot find them.
    """
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", True)
    launched = [name for name in LAUNCHED if int(os.environ.get(name, 1)) > 1]
    if given := {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if name in os.environ}:
        address, count, index = _checked(given)
        print(f"process {index} of {count} connects to the other processes at {address} (timeout 300 s)", flush=True)
        jax.distributed.initialize(address, count, index)
    elif launched:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise InputError(
                f"{launched[0]} is over 1, but JAX cannot find the other processes ({error}); set {ADDRESS}, {COUNT} "
                f"and {INDEX} in each process"
            ) from error
    elif importlib.util.find_spec("libtpu") and "tpu" in os.environ.get("JAX_PLATFORMS", "tpu").split(","):
        with contextlib.suppress(ValueError):  # a single host: JAX found no others
            jax.distributed.initialize()
    if several():
        native_errors.attach(jax.process_index())


def _checked(given: dict[str, str]) -> tuple[str, int, int]:
    missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in given]
    if missing:
        raise InputError(f"the environment has {', '.join(given)} without {', '.join(missing)}; set all three or none")
    try:
        count, index = int(given[COUNT]), int(given[INDEX])
    except ValueError as error:
        raise InputError(f"{COUNT} and {INDEX} must be integers: {error}") from error
    if not 0 <= index < count or ":" not in given[ADDRESS]:
        raise InputError(
            f"{ADDRESS}={given[ADDRESS]} {COUNT}={count} {INDEX}={index}: set host:port, "
            "and an index below the number of processes"
        )
    return given[ADDRESS], count, index


def several() -> bool:
    """Whether this run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes the files and the log."""
    return not several() or jax.process_index() == 0


def sync(name: str) -> None:
    """Wait until every process has reached this point."""
    if several():
        multihost_utils.sync_global_devices(name)


def check_same(values: dict[str, Any]) -> None:
    """Check that every process has the same settings and code; call it before any other collective operation.

    Args:
        values: the settings of this process, by key; JSON values.

    Raises:
        InputError: a process differs from the first; the error names the process and the key.
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
    """[N] in each process -> [processes N]."""
    return np.asarray(multihost_utils.process_allgather(values))


def _versions() -> dict[str, str]:
    """Versions of the numerical packages, and a hash of this project's code: two checkouts may share a version."""
    digest = hashlib.sha256()
    for folder in (Path(bertgpt.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    versions = {f"version of {name}": importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return versions | {"code of bertgpt": digest.hexdigest()[:16]}


def after_first(folder: Path, work: Callable[[], bool], waiting: str) -> bool:
    """Run `work` in the first process while the other processes wait for it.

    They wait for a file, because a collective operation would time out. If the first process fails, the others exit
    too.

    Args:
        folder: shared by all processes.
        work: may take hours.
        waiting: logged by a process that has waited for `PATIENCE` seconds.

    Returns:
        The result of `work` in the first process, True in the other processes.
    """
    if not several():
        return work()
    mark = folder / f".done_{agreed(secrets.randbelow(2**31))}"
    if is_first():
        outcome = work()
        mark.touch()
    else:
        outcome = True
        _wait_for([mark], waiting)
    sync(f"{mark} is seen")
    if is_first():
        mark.unlink()
    return outcome


def after_all(folder: Path, work: Callable[[], None], waiting: str) -> None:
    """Run `work` in every process, and return when all have run it; like `after_first` by files, one per process."""
    if not several():
        return work()
    name = f".done_{agreed(secrets.randbelow(2**31))}"
    marks = [folder / f"{name}_{process}" for process in range(jax.process_count())]
    work()
    marks[jax.process_index()].touch()
    _wait_for(marks, waiting)
    sync(f"{name} are seen")
    marks[jax.process_index()].unlink()


def _wait_for(marks: Sequence[Path], waiting: str) -> None:
    """Wait until the files exist; after `PATIENCE` seconds log a line."""
    began, told = time.monotonic(), False
    while not all(mark.exists() for mark in marks):
        time.sleep(0.2 if isinstance(marks[0], Path) else 2)  # in a bucket, each look is a few requests
        if not told and time.monotonic() - began > PATIENCE:
            told = True
            print(f"process {jax.process_index()}: {waiting}", file=sys.stderr, flush=True)


def agreed(number: int) -> int:
    """Return the first process's number in every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if several() else number


def agreed_text(text: str) -> str:
    """Return the first process's text, of at most 100 ASCII characters, in every process."""
    if not several():
        return text
    padded = np.frombuffer(text.encode("ascii").ljust(100), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes().decode("ascii").rstrip()


def summed(values: Sequence[float]) -> list[float]:
    """Sum numbers [N] elementwise over all processes."""
    if not several():
        return list(values)
    return np.asarray(multihost_utils.process_allgather(np.asarray(values, np.float32)), np.float64).sum(0).tolist()


def check_shared(folder: Path) -> None:
    """In a run of several processes, create the folder and check that all processes share it.

    Raises:
        InputError: a process sees another folder.
    """
    if not several():
        return
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".shared_{agreed(secrets.randbelow(2**31))}"
    if is_first():
        mark.touch()
    sync(f"{folder} is marked")  # no process looks before this point: a file system may cache that a file is missing
    began = time.monotonic()
    while not mark.exists() and time.monotonic() - began < SHOWN:
        time.sleep(0.1)
    (blind,) = summed([not mark.exists()])
    if is_first():
        mark.unlink()
    if blind:
        raise InputError(
            f"{folder}: {blind:.0f} of {jax.process_count()} processes do not see the same folder; "
            "use a folder on shared storage"
        )


def is_lost_peer(error: Exception) -> bool:
    """Whether an error means that another process has exited."""
    text = str(error).lower()
    own = isinstance(error, InputError | OSError | MemoryError) or "resource_exhausted" in text or "memory" in text
    return several() and not own and any(word in text for word in LOST)


def lost(error: Exception) -> str:
    """The error as one line that says what to do."""
    return native_errors.lost(jax.process_index(), " ".join(str(error).split())[:300])
