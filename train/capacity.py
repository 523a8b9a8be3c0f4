"""Whether the arrays of a run can fit the devices at all, by arithmetic, before anything is traced or written.

What is counted is a lower bound: a run that passes may still need more memory than there is (`python -m train plan`).
"""

import math
import os
from typing import Any

import jax

from bertgpt.config import ModelConfig
from bertgpt.errors import InputError

from .parallel import Strategy
from .sections import RunConfig

MOMENTS = {"adamw": 2, "lamb": 2, "lion": 1, "muon": 1}  # arrays of each parameter's size that an optimizer keeps


def check(config: RunConfig, model: ModelConfig, strategy: Strategy) -> None:
    """Compare the least memory of the parameters, the optimizer, the activations and the batch with what there is.

    Raises:
        InputError: they cannot fit.
    """
    available, host = device_memory(jax.local_devices()[0]), host_memory()
    state, activations = least_bytes(config, model, strategy.devices)
    if state > available:
        raise InputError(
            f"a model of {model.approximate_parameters:,} parameters needs at least {gb(state)} on each device, with "
            f"the optimizer's state, and a device here has {gb(available)}; choose a smaller model (model.num_layers, "
            "model.hidden_size, model.vocab_size), or more devices"
        )
    if activations > available:
        raise InputError(
            f"train.batch_size {config.train.batch_size} with train.accumulate {config.train.accumulate} needs at "
            f"least {gb(activations)} on each device, and a device here has {gb(available)}; lower train.batch_size or "
            "raise train.accumulate"
        )
    batch = 4 * config.data.sequence_length * config.train.batch_size // jax.process_count()
    if batch > host:
        raise InputError(
            f"train.batch_size {config.train.batch_size}: a batch of token ids takes {gb(batch)}, and this machine has "
            f"{gb(host)}; lower train.batch_size"
        )


def least_bytes(config: RunConfig, model: ModelConfig, devices: int) -> tuple[int, int]:
    """Least bytes on one device: of the parameters and the optimizer's state, and of the activations kept for the
    backward pass, which are at least the inputs of the blocks."""
    moments = 0 if config.train.freeze else MOMENTS[config.optimizer.name]
    state = 4 * (1 + moments) * model.approximate_parameters // devices
    rows = config.train.batch_size // (devices * config.train.accumulate)
    layers = 1 if config.train.freeze else model.num_layers
    width = 2 if config.train.dtype == "bfloat16" else 4
    return state, rows * config.data.sequence_length * model.hidden_size * layers * width


def device_memory(device: Any) -> float:
    """The bytes of a device's memory; of a CPU device, its share of the machine's. Infinite if JAX does not tell."""
    if device.platform == "cpu":
        return host_memory() // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit") or math.inf


def host_memory() -> int:
    """The bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gb(size: float) -> str:
    """A number of bytes as gigabytes."""
    return f"{size / 1e9:,.1f} GB"
