"""Several processes of one run: how they meet, which of them speaks, and how they agree."""

import contextlib
import importlib.util
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from bertgpt.errors import InputError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # what launchers tell of their processes
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
    reason = " ".join(str(error).split())[:300]
    return (
        f"process {jax.process_index()}: another process of this run ended ({reason}); start all of them again with "
        "the same command: the run goes on from its last checkpoint"
    )
