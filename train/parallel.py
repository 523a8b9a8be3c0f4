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

DATA, FSDP = "data", "fsdp"  # a mesh's axes: batches are split over both, parameters and optimizer over the second
SHARDED = {  # by the end of a path, the axes that may be split, best first; one that does not divide is left whole
    "embedding": (1, 0),  # the width: 30,522 and 40,478 tokens do not divide by 8
    "kernel": (1, 0),
    "bias": (0,),
    "scale": (0,),
}
Step = Callable[..., Any]


class Strategy(Protocol):
    """How a step runs. `axis` goes to the step functions; `devices` divide the global batch."""

    name: str
    axis: str | None
    devices: int

    def compile_init(self, create: Callable[[Any], TrainState]) -> Callable[[Any], TrainState]:
        """(params or None) -> the state at step 0, as one program: apart, every parameter would be compiled alone."""
        ...

    def compile_train(self, step: Step) -> Step:
        """(state, batch) -> (state, metrics), compiled; the state's memory is reused."""
        ...

    def compile_eval(self, step: Step) -> Step:
        """(params, batch) -> sums and outputs, compiled."""
        ...

    def like(self, shapes: TrainState) -> TrainState:
        """A state's shapes -> what a checkpoint is read into: with shardings, straight onto the devices."""
        ...

    def put_state(self, state: TrainState) -> TrainState:
        """Onto the devices, from the form that `saved` or a checkpoint gives."""
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
    """One program over global arrays: on one device, or on a mesh.

    The batch is split over both axes of a mesh; parameters and optimizer over `fsdp`, as `SHARDED` says.
    """

    axis: str | None = None

    def __init__(self, mesh: Mesh | None = None) -> None:
        self.name = "jit" if mesh is None else "mesh"
        self.mesh = mesh
        self.devices = 1 if mesh is None else mesh.devices.size
        self.replicated: Sharding = SingleDeviceSharding(jax.local_devices()[0])
        self.rows: Sharding = self.replicated
        if mesh is not None:
            self.replicated = NamedSharding(mesh, PartitionSpec())
            self.rows = NamedSharding(mesh, PartitionSpec((DATA, FSDP)))

    def shardings(self, state: TrainState) -> TrainState:
        """Where each array of a state (or of its shapes) lies."""
        if self.mesh is None:
            return jax.tree.map(lambda _: self.replicated, state)
        mesh = self.mesh
        return jax.tree_util.tree_map_with_path(lambda path, x: NamedSharding(mesh, spec(path, x.shape, mesh)), state)

    def compile_init(self, create: Callable[[Any], TrainState]) -> Callable[[Any], TrainState]:
        def run(params: Any) -> TrainState:
            params = jax.device_get(params) if self.mesh is not None else params  # arrays of one device fit no mesh
            return jax.jit(create, out_shardings=self.shardings(jax.eval_shape(create, params)))(params)

        return run

    def compile_train(self, step: Step) -> Step:
        compiled: list[Step] = []

        def run(state: TrainState, batch: Any) -> Any:
            if not compiled:
                lies = jax.tree.map(lambda x: x.sharding, state)
                compiled.append(jax.jit(step, donate_argnums=0, out_shardings=(lies, self.replicated)))
            return compiled[0](state, batch)

        return run

    def compile_eval(self, step: Step) -> Step:
        return jax.jit(step, out_shardings=self.replicated)

    def like(self, shapes: TrainState) -> TrainState:
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, self.shardings(shapes)
        )

    def put_state(self, state: TrainState) -> TrainState:
        return jax.device_put(state, self.shardings(state))

    def saved(self, state: TrainState) -> TrainState:
        return state

    def put_batch(self, batch: dict[str, np.ndarray]) -> Any:
        return {name: jax.make_array_from_process_local_data(self.rows, value) for name, value in batch.items()}

    def scalar(self, value: Any) -> float:
        return float(value)

    def gathered(self, value: Any) -> np.ndarray:
        return np.asarray(value)


def spec(path: Any, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How an array of the state is split over `fsdp`, by the end of its path."""
    size = mesh.shape[FSDP]
    for axis in SHARDED.get(getattr(path[-1], "key", ""), ()):
        if size > 1 and axis < len(shape) and shape[axis] % size == 0:
            return PartitionSpec(*[None] * axis, FSDP)
    return PartitionSpec()


class Pmap:
    """A copy of the state on every local device; gradients are summed over them."""

    name = "pmap"
    axis: str | None = DATA

    def __init__(self, devices: list[Any]) -> None:
        self.list = devices
        self.devices = len(devices)

    def compile_init(self, create: Callable[[Any], TrainState]) -> Callable[[Any], TrainState]:
        return jax.jit(create)

    def compile_train(self, step: Step) -> Step:
        return jax.pmap(step, axis_name=DATA, devices=self.list, donate_argnums=0)

    def compile_eval(self, step: Step) -> Step:
        return jax.pmap(step, axis_name=DATA, devices=self.list)

    def like(self, shapes: TrainState) -> TrainState:
        return shapes

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
    """`auto`: a mesh with several processes or fsdp, pmap with several local devices in one process, else jit.

    Raises:
        InputError: the sizes do not fit the devices, or the strategy cannot do what is asked.
    """
    data, fsdp = mesh_shape(section)
    name = section.strategy
    if name == "auto":
        name = "mesh" if jax.process_count() > 1 or fsdp > 1 else "pmap" if data > 1 else "jit"
    if jax.process_count() > 1 and name != "mesh":
        raise InputError(f"parallel.strategy {name} runs in one process, but there are {jax.process_count()}; use mesh")
    if name != "mesh" and fsdp > 1:
        raise InputError(f"parallel.fsdp is {section.fsdp}, which parallel.strategy {name} cannot do; use mesh")
    if name == "jit" and section.data > 1:
        raise InputError(f"parallel.data is {section.data}, but parallel.strategy jit runs on one; use pmap or mesh")
    devices = jax.devices()[: data * fsdp]
    if name == "mesh":
        # Auto axes: under Explicit ones, which make_mesh gives by default, Linen's Embed raises ShardingTypeError.
        return Jit(jax.make_mesh((data, fsdp), (DATA, FSDP), (AxisType.Auto,) * 2, devices=devices))
    return Pmap(devices) if name == "pmap" else Jit()


def mesh_shape(section: ParallelSection) -> tuple[int, int]:
    """The devices on both axes; -1 takes what the other leaves.

    Raises:
        InputError: they do not fit.
    """
    count, data, fsdp = jax.device_count(), section.data, section.fsdp
    given = f"parallel.data is {data} and parallel.fsdp {fsdp}, but there are {count} devices"
    if data == fsdp == -1 or min(data, fsdp) < -1 or 0 in (data, fsdp):
        raise InputError(f"{given}; give numbers, or -1 for one of them, which takes the rest")
    data = count // fsdp if data == -1 else data
    fsdp = count // data if fsdp == -1 and data else fsdp
    if not 1 <= data * fsdp <= count:
        raise InputError(f"{given}; -1 for one of them takes the rest")
    return data, fsdp


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


def compile_steps(strategy: Strategy, train_step: Step, eval_step: Step) -> tuple[Step, Step]:
    """Both steps, told the strategy's axis and compiled."""
    train = strategy.compile_train(functools.partial(train_step, axis=strategy.axis))
    return train, strategy.compile_eval(functools.partial(eval_step, axis=strategy.axis))
