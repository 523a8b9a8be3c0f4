"""Compilation of steps and placement of arrays: plain jit, pmap over local devices, or a mesh."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from bertgpt.errors import InputError

from .sections import ParallelSection
from .state import TrainState
from .step import GradFn

AXES = DATA, FSDP = "data", "fsdp"  # of a mesh: both split the batch, fsdp also parameters and optimizer state
BATCH_SPEC, REPLICATED = PartitionSpec(AXES), PartitionSpec()
LANES = 128  # columns of a TPU's tile: it exchanges whole arrays if the columns of a part are fewer
MOST_SHARDS = 8  # of parameters and optimizer state by default: the devices of a common host
# Last key of a path -> axes to split, best first. An array that does not divide is replicated, and so are biases and
# gains: they are many small arrays that would each need an exchange of its own.
SHARDING_RULES = {
    "embedding": (1, 0),  # the width first: vocabularies of 30,522 and 40,478 do not divide by 8
    "kernel": (0, 1),  # rows first: a part of 96 columns would be padded to the TPU's 128
}
Step = Callable[..., Any]


class Strategy(Protocol):
    """How a step runs on devices; the global batch is split over `devices` of them."""

    name: str
    devices: int
    options: dict[str, Any]

    def distribute(self, local: GradFn) -> GradFn:
        """Turn `step.gradients` of one device into a function that sums over all devices."""
        ...

    def compile_init(self, create: Callable[[Any], TrainState]) -> Callable[[Any], TrainState]:
        """Compile (params or None) -> the state at step 0 as one program, not one program per parameter."""
        ...

    def compile_train(self, step: Step) -> Step:
        """Compile (state, batch) -> (state, metrics); the memory of the state is donated."""
        ...

    def lower(self, step: Step, state: TrainState, batch: dict[str, Any]) -> Any:
        """Lower the train step for the shapes of a state and a global batch, without allocating arrays."""
        ...

    def lower_eval(self, step: Step, state: TrainState, batch: dict[str, Any]) -> Any:
        """The same for an evaluation step."""
        ...

    def compile_eval(self, step: Step) -> Step:
        """Compile (params, batch) -> (sums, outputs)."""
        ...

    def abstract_state(self, shapes: TrainState) -> TrainState:
        """Shapes of a state -> the shapes and shardings into which a checkpoint is loaded."""
        ...

    def put_state(self, state: TrainState) -> TrainState:
        """Put a state on the devices, in the form that `to_checkpoint` or a loaded checkpoint has."""
        ...

    def to_checkpoint(self, state: TrainState) -> TrainState:
        """The state in the form that checkpoints contain; it does not depend on the strategy."""
        ...

    def put_batch(self, batch: dict[str, np.ndarray]) -> Any:
        """Prepare this process's rows of a batch as the argument of a step; the step or this call sends them."""
        ...

    def fetch(self, figures: Any, rows: Any = ()) -> Any:
        """Copy two pytrees to the host as NumPy arrays, in one transfer.

        Args:
            figures: arrays that all devices share, such as metrics of several steps.
            rows: outputs [B ...] of each row of a batch.
        """
        ...


class Jit:
    """Plain jit on one device."""

    name = "jit"
    devices = 1

    def __init__(self, device: Any = None) -> None:
        """`device`: the device; None: the first one of this process."""
        self.replicated: Sharding = SingleDeviceSharding(device or jax.local_devices()[0])
        self.rows: Sharding = self.replicated
        self.options: dict[str, Any] = {}  # of the compiler, for a train step

    def distribute(self, local: GradFn) -> GradFn:
        return local

    def shardings(self, state: TrainState) -> TrainState:
        """The sharding of each array of a state, or of its shapes."""
        return jax.tree.map(lambda _: self.replicated, state)

    def compile_init(self, create: Callable[[Any], TrainState]) -> Callable[[Any], TrainState]:
        return lambda params: jax.jit(create, out_shardings=self.shardings(jax.eval_shape(create, params)))(params)

    def compile_train(self, step: Step) -> Step:
        compiled: list[Step] = []

        def run(state: TrainState, batch: Any) -> Any:
            if not compiled:
                compiled.append(self._jitted(step, state))
            return compiled[0](state, batch)

        return run

    def lower(self, step: Step, state: TrainState, batch: dict[str, Any]) -> Any:
        return self._jitted(step, state).lower(self.abstract_state(state), self._abstract_rows(batch))

    def lower_eval(self, step: Step, state: TrainState, batch: dict[str, Any]) -> Any:
        compiled: Any = self.compile_eval(step)
        return compiled.lower(self.abstract_state(state).params, self._abstract_rows(batch))

    def _abstract_rows(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.rows) for name, x in batch.items()}

    def _jitted(self, step: Step, state: TrainState) -> Any:
        places = self.shardings(state), self.replicated
        return jax.jit(step, donate_argnums=0, out_shardings=places, compiler_options=self.options)

    def compile_eval(self, step: Step) -> Step:
        return jax.jit(step, out_shardings=self.replicated)

    def abstract_state(self, shapes: TrainState) -> TrainState:
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, self.shardings(shapes)
        )

    def put_state(self, state: TrainState) -> TrainState:
        return jax.device_put(state, self.shardings(state))

    def to_checkpoint(self, state: TrainState) -> TrainState:
        return state

    def put_batch(self, batch: dict[str, np.ndarray]) -> Any:
        return batch  # the call of a step sends it, ten times as fast as further calls from Python

    def fetch(self, figures: Any, rows: Any = ()) -> Any:
        return jax.device_get((figures, rows))


class OnMesh(Jit):
    """One program over the global arrays of a mesh, on one or many hosts.

    The batch is split over both axes; parameters and optimizer state over `fsdp`, by `SHARDING_RULES`. In a step, each
    device gathers all parameters, rounded to the dtype of the computation, computes the gradient of its rows, and keeps
    its part of the summed gradient, in float32.
    """

    name = "mesh"

    def __init__(self, mesh: Mesh, dtype: DTypeLike = jnp.float32, gradient_dtype: DTypeLike = jnp.float32) -> None:
        """
        Args:
            mesh: with the axes `AXES`.
            dtype: that of the computation, in which devices send each other their parts of the parameters.
            gradient_dtype: in which they send each other gradients of kernels; sums are float32.
        """
        super().__init__(mesh.devices.flat[0])
        self.mesh, self.dtype, self.gradient_dtype = mesh, dtype, gradient_dtype
        self.devices = mesh.devices.size
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.rows = NamedSharding(mesh, BATCH_SPEC)
        if mesh.devices.flat[0].platform == "tpu":
            self.options = {"xla_tpu_enable_async_all_to_all": True}  # beside the backward pass

    def shardings(self, state: TrainState) -> TrainState:
        return jax.tree.map(lambda where: NamedSharding(self.mesh, where), specs(state, self.mesh), is_leaf=_is_spec)

    def put_batch(self, batch: dict[str, np.ndarray]) -> Any:
        return {name: jax.make_array_from_process_local_data(self.rows, value) for name, value in batch.items()}

    def compile_init(self, create: Callable[[Any], TrainState]) -> Callable[[Any], TrainState]:
        make = super().compile_init(create)
        return lambda params: make(jax.device_get(params))  # arrays on a single device cannot be used on a mesh

    def distribute(self, local: GradFn) -> GradFn:
        def run(params: Any, batch: Any, key: Any) -> Any:
            places = specs(params, self.mesh)

            def on_device(params: Any, batch: Any, key: Any) -> Any:
                key = jax.random.fold_in(key, jax.lax.axis_index(AXES))
                grads, sums = local(gather(params, places, self.dtype), batch, key, AXES)
                return scatter(grads, places, self.gradient_dtype), jax.lax.psum(sums, AXES)

            return self._map(on_device, (places, BATCH_SPEC, REPLICATED), (places, REPLICATED))(params, batch, key)

        return run

    def compile_eval(self, step: Step) -> Step:
        def run(params: Any, batch: Any) -> Any:
            places = specs(params, self.mesh)

            def on_device(params: Any, batch: Any) -> Any:
                sums, kept = step(gather(params, places, self.dtype), batch)
                return jax.lax.psum(sums, AXES), kept

            return self._map(on_device, (places, BATCH_SPEC), (REPLICATED, BATCH_SPEC))(params, batch)

        return super().compile_eval(run)

    def _map(self, function: Step, inputs: Any, outputs: Any) -> Step:
        return jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def gather(params: Any, places: Any, dtype: DTypeLike) -> Any:
    """Gather the whole parameters from the parts on each device; values are rounded to `dtype`, arrays keep theirs."""

    def whole(part: Any, place: PartitionSpec) -> Any:
        if FSDP not in place:
            return part
        return jax.lax.all_gather(part.astype(dtype), FSDP, axis=place.index(FSDP), tiled=True).astype(part.dtype)

    return jax.tree.map(whole, params, places)


def scatter(grads: Any, places: Any, dtype: DTypeLike = jnp.float32) -> Any:
    """Sum the gradients over devices, and return this device's part, in float32.

    Gradients of kernels are sent in `dtype`. If it is not float32, each device receives the parts of all others and
    adds them up itself, so that sums are not rounded to `dtype`.
    """

    def part(path: Any, whole: Any, place: PartitionSpec) -> Any:
        if FSDP not in place:
            return jax.lax.psum(whole, AXES)
        axis, devices = place.index(FSDP), jax.lax.axis_size(FSDP)
        if path[-1].key == "kernel" and dtype != jnp.float32:
            shape = (*whole.shape[:axis], devices, -1, *whole.shape[axis + 1 :])
            parts = jnp.moveaxis(whole.astype(dtype).reshape(shape), axis, 0)
            mine = jax.lax.all_to_all(parts, FSDP, split_axis=0, concat_axis=0).astype(jnp.float32).sum(0)
        elif axis == 1 and whole.shape[1] // devices % LANES:
            return _narrow_part(whole)
        else:
            mine = jax.lax.psum_scatter(whole, FSDP, scatter_dimension=axis, tiled=True)
        return jax.lax.psum(mine, DATA)

    return jax.tree_util.tree_map_with_path(part, grads, places)


def _narrow_part(table: Any) -> Any:
    """Sum a table's gradient [V D] over devices, and return this device's columns.

    A TPU adds up whole arrays if the columns of a part are not whole tiles. So devices first sum parts of the rows, and
    then exchange columns, which are 1 / fsdp of the bytes. Rows of zeros make the number of rows divide.
    """
    rows = jnp.pad(table, ((0, -len(table) % jax.lax.axis_size(FSDP)), (0, 0)))
    mine = jax.lax.psum(jax.lax.psum_scatter(rows, FSDP, tiled=True), DATA)
    return jax.lax.all_to_all(mine, FSDP, split_axis=1, concat_axis=0, tiled=True)[: len(table)]


def specs(tree: Any, mesh: Mesh) -> Any:
    """The PartitionSpec of each array of a state, or of its parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, x: spec(path, x.shape, mesh), tree)


def _is_spec(value: Any) -> bool:
    return isinstance(value, PartitionSpec)


def spec(path: Any, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The PartitionSpec of one array of the state, by the last key of its path."""
    size = mesh.shape[FSDP]
    for axis in SHARDING_RULES.get(getattr(path[-1], "key", ""), ()):
        if size > 1 and axis < len(shape) and shape[axis] % size == 0:
            return PartitionSpec(*[None] * axis, FSDP)
    return PartitionSpec()


class Pmap:
    """A copy of the state on every local device; gradients are summed over them."""

    name = "pmap"
    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, devices: list[Any]) -> None:
        self.list = devices
        self.devices = len(devices)

    def distribute(self, local: GradFn) -> GradFn:
        def run(params: Any, batch: Any, key: Any) -> Any:
            key = jax.random.fold_in(key, jax.lax.axis_index(DATA))
            return jax.lax.psum(local(params, batch, key, (DATA,)), DATA)

        return run

    def compile_init(self, create: Callable[[Any], TrainState]) -> Callable[[Any], TrainState]:
        return jax.jit(create)

    def compile_train(self, step: Step) -> Step:
        return jax.pmap(step, axis_name=DATA, devices=self.list, donate_argnums=0)

    def lower(self, step: Step, state: TrainState, batch: dict[str, Any]) -> Any:
        compiled: Any = self.compile_train(step)
        return compiled.lower(self._copies(state), self._abstract_rows(batch))

    def lower_eval(self, step: Step, state: TrainState, batch: dict[str, Any]) -> Any:
        compiled: Any = self.compile_eval(step)
        return compiled.lower(self._copies(state.params), self._abstract_rows(batch))

    def _copies(self, shapes: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.devices, *x.shape), x.dtype), shapes)

    def _abstract_rows(self, batch: dict[str, Any]) -> dict[str, Any]:
        shape = {name: (self.devices, x.shape[0] // self.devices, *x.shape[1:]) for name, x in batch.items()}
        return {name: jax.ShapeDtypeStruct(shape[name], x.dtype) for name, x in batch.items()}

    def compile_eval(self, step: Step) -> Step:
        def run(params: Any, batch: Any) -> Any:
            sums, kept = step(params, batch)
            return jax.lax.psum(sums, DATA), kept

        return jax.pmap(run, axis_name=DATA, devices=self.list)

    def abstract_state(self, shapes: TrainState) -> TrainState:
        return shapes

    def put_state(self, state: TrainState) -> TrainState:
        rows = NamedSharding(Mesh(np.array(self.list), (DATA,)), PartitionSpec(DATA))  # as the step returns it
        copies = jax.tree.map(
            lambda x: np.broadcast_to(np.asarray(x), (self.devices, *x.shape)), state
        )  # a view: takes no memory
        return jax.device_put(copies, rows)

    def to_checkpoint(self, state: TrainState) -> TrainState:
        return jax.tree.map(lambda x: x.addressable_data(0)[0], state)

    def put_batch(self, batch: dict[str, np.ndarray]) -> Any:
        return {name: value.reshape(self.devices, -1, *value.shape[1:]) for name, value in batch.items()}

    def fetch(self, figures: Any, rows: Any = ()) -> Any:
        figures, rows = jax.device_get((jax.tree.map(lambda x: x.addressable_data(0), figures), rows))
        return jax.tree.map(lambda x: x[0], figures), jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def make_strategy(
    section: ParallelSection, dtype: DTypeLike = jnp.float32, devices: list[Any] | None = None
) -> Strategy:
    """Return the strategy that a configuration selects.

    `auto` is a mesh for several devices, else jit.

    Args:
        section: `parallel` of the configuration.
        dtype: that of the computation.
        devices: the devices; None: all that JAX has.

    Raises:
        InputError: the sizes do not fit the devices, or the strategy does not support them.
    """
    devices = jax.devices() if devices is None else devices
    processes = len({device.process_index for device in devices})
    data, fsdp = mesh_shape(section, len(devices))
    name = section.strategy
    if name == "auto":
        name = "mesh" if processes > 1 or data * fsdp > 1 else "jit"
    if processes > 1 and name != "mesh":
        raise InputError(f"parallel.strategy {name} runs in one process, but there are {processes}; use mesh")
    if name != "mesh" and fsdp > 1:
        raise InputError(f"parallel.fsdp is {section.fsdp}, which parallel.strategy {name} does not support; use mesh")
    if name == "jit" and section.data > 1:
        raise InputError(f"parallel.data is {section.data}, but parallel.strategy jit uses 1 device; use pmap or mesh")
    if processes > 1 and data * fsdp < len(devices):
        raise InputError(
            f"parallel.data is {section.data} and parallel.fsdp {section.fsdp}, but {processes} processes "
            f"must use all {len(devices)} devices; set one of the two to -1, for the rest"
        )
    used = devices[: data * fsdp]
    if name == "mesh":
        # Auto axes: under Explicit ones, which make_mesh gives by default, Linen's Embed raises ShardingTypeError.
        mesh = jax.make_mesh((data, fsdp), (DATA, FSDP), (AxisType.Auto,) * 2, devices=used)
        return OnMesh(mesh, dtype, jnp.promote_types(dtype, section.gradient_dtype))
    return Pmap(used) if name == "pmap" else Jit(used[0])


def mesh_shape(section: ParallelSection, count: int) -> tuple[int, int]:
    """The number of devices on both axes, of `count` in all; -1 is replaced by the number that the other axis leaves.

    Without a number for `fsdp`, a mesh of all devices shards over the largest divisor of their number up to
    `MOST_SHARDS`.

    Raises:
        InputError: the sizes do not fit the number of devices.
    """
    data, fsdp = section.data, section.fsdp
    if fsdp is None:
        shards = data == -1 and section.strategy in ("auto", "mesh")
        fsdp = max(size for size in range(1, MOST_SHARDS + 1) if count % size == 0) if shards else 1
    given = f"parallel.data is {data} and parallel.fsdp {fsdp}, but there are {count} devices"
    if data == fsdp == -1 or min(data, fsdp) < -1 or 0 in (data, fsdp):
        raise InputError(f"{given}; give two numbers, or set one of them to -1, for the rest")
    data = count // fsdp if data == -1 else data
    fsdp = count // data if fsdp == -1 and data else fsdp
    if not 1 <= data * fsdp <= count:
        raise InputError(f"{given}; set one of the two to -1, for the rest")
    return data, fsdp


def check_batch(batch_size: int, accumulate: int, strategy: Strategy) -> None:
    """
    Raises:
        InputError: the global batch is not divisible by the devices and micro-batches.
    """
    if batch_size % (strategy.devices * accumulate):
        raise InputError(
            f"train.batch_size {batch_size} is not divisible by {strategy.devices} devices x train.accumulate "
            f"{accumulate}; choose a multiple of {strategy.devices * accumulate}"
        )


def compile_steps(strategy: Strategy, train_step: Step, eval_step: Step) -> tuple[Step, Step]:
    """Distribute both steps over the strategy's devices and compile them."""
    return (
        strategy.compile_train(functools.partial(train_step, distribute=strategy.distribute)),
        strategy.compile_eval(eval_step),
    )
