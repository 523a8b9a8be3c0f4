"""Several processes of one run: how they meet, which of them speaks, and how they agree."""

import contextlib
import importlib.util
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from bertgpt.errors import InputError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # what srun and mpirun tell of the number of processes
LOST = ("gloo", "nccl", "coordination service", "connection closed by peer", "socket closed", "heartbeat")


def connect() -> None:
    """Joins the other processes of a run, where it has any; call it before anything asks for a device.

    They are told by JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; else JAX
    finds them under srun and mpirun, and on the hosts of a Cloud TPU. SIGTERM to one process is a notice to all.

    Raises:
        InputError: the environment gives one of the three values without the others, or no numbers.
    """
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", True)
    if given := {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if name in os.environ}:
        jax.distributed.initialize(*_checked(given))
    elif any(int(os.environ.get(name, 1)) > 1 for name in LAUNCHED):
        jax.distributed.initialize()
    elif importlib.util.find_spec("libtpu") and os.environ.get("JAX_PLATFORMS", "tpu") == "tpu":
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


def is_lost_peer(error: Exception) -> bool:
    """Whether a failure tells of another process that went away."""
    text = str(error).lower()
    return several() and any(word in text for word in LOST)


def lost(error: Exception) -> str:
    """The same in one line, with what to do."""
    reason = " ".join(str(error).split())[:300]
    return (
        f"process {jax.process_index()}: another process of this run ended ({reason}); start all of them again with "
        "the same command: the run goes on from its last checkpoint"
    )
