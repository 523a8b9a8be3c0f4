"""The one place that compiles and places arrays: plain jit, pmap over local devices, or a mesh."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from bertgpt.errors import InputError
from train.config import ParallelSection
from train.state import TrainState

DATA = "data"  # the axis that batches are split over
Step = Callable[..., Any]


class Strategy(Protocol):
    """How a step runs. `axis` goes to the step functions; `devices` divide the global batch."""

    name: str
    axis: str | None
    devices: int

    def compile_train(self, step: Step) -> Step:
        """(state, batch) -> (state, metrics), compiled; the state's memory is reused."""
        ...

    def compile_eval(self, step: Step) -> Step:
        """(params, batch) -> sums and outputs, compiled."""
        ...

    def put_state(self, state: TrainState) -> TrainState:
        """Onto the devices, from the form that `saved` gives."""
        ...

    def saved(self, state: TrainState) -> TrainState:
        """The state as checkpoints hold it, the same whatever the strategy."""
        ...

    def put_batch(self, batch: dict[str, np.ndarray]) -> Any:
        """This process's rows onto its devices."""
        ...

    def scalar(self, value: Any) -> float:
        """A metric on the host."""
        ...

    def gathered(self, value: Any) -> np.ndarray:
        """An output of every row of a batch, on the host."""
        ...


class Jit:
    """One program over global arrays: on one device, or on a mesh whose data axis splits the batch."""

    axis: str | None = None

    def __init__(self, mesh: Mesh | None = None) -> None:
        self.name = "jit" if mesh is None else "mesh"
        self.devices = 1 if mesh is None else mesh.devices.size
        self.replicated: Sharding = SingleDeviceSharding(jax.local_devices()[0])
        self.rows: Sharding = self.replicated
        if mesh is not None:
            self.replicated = NamedSharding(mesh, PartitionSpec())
            self.rows = NamedSharding(mesh, PartitionSpec(DATA))

    def compile_train(self, step: Step) -> Step:
        return jax.jit(step, donate_argnums=0, out_shardings=self.replicated)

    def compile_eval(self, step: Step) -> Step:
        return jax.jit(step, out_shardings=self.replicated)

    def put_state(self, state: TrainState) -> TrainState:
        return jax.device_put(state, self.replicated)

    def saved(self, state: TrainState) -> TrainState:
        return state

    def put_batch(self, batch: dict[str, np.ndarray]) -> Any:
        return {name: jax.make_array_from_process_local_data(self.rows, value) for name, value in batch.items()}

    def scalar(self, value: Any) -> float:
        return float(value)

    def gathered(self, value: Any) -> np.ndarray:
        return np.asarray(value)


class Pmap:
    """A copy of the state on every local device; gradients are summed over them."""

    name = "pmap"
    axis: str | None = DATA

    def __init__(self, devices: list[Any]) -> None:
        self.list = devices
        self.devices = len(devices)

    def compile_train(self, step: Step) -> Step:
        return jax.pmap(step, axis_name=DATA, devices=self.list, donate_argnums=0)

    def compile_eval(self, step: Step) -> Step:
        return jax.pmap(step, axis_name=DATA, devices=self.list)

    def put_state(self, state: TrainState) -> TrainState:
        rows = NamedSharding(Mesh(np.array(self.list), (DATA,)), PartitionSpec(DATA))  # as the step returns it
        copies = jax.tree.map(
            lambda x: np.broadcast_to(np.asarray(x), (self.devices, *x.shape)), state
        )  # takes no memory
        return jax.device_put(copies, rows)

    def saved(self, state: TrainState) -> TrainState:
        return jax.tree.map(lambda x: x.addressable_data(0)[0], state)

    def put_batch(self, batch: dict[str, np.ndarray]) -> Any:
        return {name: value.reshape(self.devices, -1, *value.shape[1:]) for name, value in batch.items()}

    def scalar(self, value: Any) -> float:
        return float(value.addressable_data(0)[0])

    def gathered(self, value: Any) -> np.ndarray:
        return np.asarray(value).reshape(-1, *value.shape[2:])


def make_strategy(section: ParallelSection) -> Strategy:
    """`auto`: pmap with several local devices in one process, a mesh with several processes, else jit.

    Raises:
        InputError: parallel.data does not fit the devices, or pmap is asked for over several processes.
    """
    count = jax.device_count() if section.data == -1 else section.data
    if not 1 <= count <= jax.device_count():
        raise InputError(f"parallel.data is {section.data}, but there are {jax.device_count()} devices; -1 takes all")
    name = section.strategy
    if name == "auto":
        name = "mesh" if jax.process_count() > 1 else "pmap" if count > 1 else "jit"
    if jax.process_count() > 1 and name != "mesh":
        raise InputError(f"parallel.strategy {name} runs in one process, but there are {jax.process_count()}; use mesh")
    if name == "jit" and section.data > 1:
        raise InputError(f"parallel.data is {section.data}, but parallel.strategy jit runs on one; use pmap or mesh")
    if name == "mesh":
        # Auto axes: under Explicit ones, which make_mesh gives by default, Linen's Embed raises ShardingTypeError.
        return Jit(jax.make_mesh((count,), (DATA,), (AxisType.Auto,), devices=jax.devices()[:count]))
    return Pmap(jax.devices()[:count]) if name == "pmap" else Jit()


def check_batch(batch_size: int, accumulate: int, strategy: Strategy) -> None:
    """
    Raises:
        InputError: the global batch cannot be divided.
    """
    if batch_size % (strategy.devices * accumulate):
        raise InputError(
            f"train.batch_size {batch_size} is not divisible by {strategy.devices} devices x train.accumulate "
            f"{accumulate}; choose a multiple of {strategy.devices * accumulate}"
        )


def compile_init(create: Callable[[Any], TrainState]) -> Callable[[Any], TrainState]:
    """(params or None) -> the state at step 0, as one program: apart, every parameter would be compiled by itself."""
    return jax.jit(create)


def compile_steps(strategy: Strategy, train_step: Step, eval_step: Step) -> tuple[Step, Step]:
    """Both steps, told the strategy's axis and compiled."""
    train = strategy.compile_train(functools.partial(train_step, axis=strategy.axis))
    return train, strategy.compile_eval(functools.partial(eval_step, axis=strategy.axis))
