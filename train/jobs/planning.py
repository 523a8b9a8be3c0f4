"""The parameters, FLOPs and memory of a run, computed from shapes; no array of the run is allocated."""

import functools
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from bertgpt.data.text.store import Split
from bertgpt.model.blocks import Model
from bertgpt.tokenizers import train_wordpiece

from .. import flops, model_section, parallel, reports
from ..fast_dense import fast_apply
from ..folders import run_folder, token_store
from ..optimizers import make_optimizer
from ..parallel import Strategy
from ..sections import RunConfig
from ..state import PRNG, TrainState, create_state
from ..step import Objective, apply, eval_step, train_step, trained
from . import finetuning, objectives, task_rows


class Plan(NamedTuple):
    """Shapes of a run.

    Attributes:
        config: the run's.
        model: with its head.
        objective: losses and accuracies.
        strategy: how a step runs on devices.
        state: shapes of the state at step 0.
        batch: shapes of the global batch.
        eval_batch: shapes of the batch of an evaluation.
        device: for which the steps are traced; None: JAX's default.
    """

    config: RunConfig
    model: Model
    objective: Objective
    strategy: Strategy
    state: TrainState
    batch: dict[str, Any]
    eval_batch: dict[str, Any]
    device: Any = None


Examples = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  # batches of one row: of training, of an evaluation


def make_plan(config: RunConfig, devices: list[Any] | None = None) -> Plan:
    """The shapes of the run that `pretrain` or `finetune` would start.

    Args:
        config: the run's configuration.
        devices: the devices of the run; None: all that JAX has.

    Raises:
        InputError: as `pretrain` or `finetune`.
    """
    strategy = parallel.make_strategy(config.parallel, config.train.dtype, devices)
    parallel.check_batch(config.train.batch_size, config.train.accumulate, strategy)
    model, objective, examples = _pretraining(config) if config.task.kind is None else _finetuning(config)
    device = devices[0] if devices else None
    if device is not None:
        objective = objective._replace(apply=fast_apply(model, device.platform))
    size = config.train.batch_size
    batch = _shapes(examples[0], size)
    eval_batch = _shapes(examples[1] | {"place": np.zeros(1, np.int32)}, size // config.train.accumulate)
    objective = trained(objective, config.train.freeze)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.train.freeze)
    with jax.default_device(device):  # attention asks which device will compute
        state = jax.eval_shape(functools.partial(create_state, model, optimizer, config.seed))
    return Plan(config, model, objective, strategy, state, batch, eval_batch, device)


def _shapes(example: dict[str, np.ndarray], rows: int) -> dict[str, Any]:
    return {name: jax.ShapeDtypeStruct((rows, *value.shape[1:]), value.dtype) for name, value in example.items()}


def _pretraining(config: RunConfig) -> tuple[Model, Objective, Examples]:
    """Model, objective and batches of one row, from an artificial text."""
    initial = run_folder.find_initial_model(config)
    model_config = model_section.model_config(
        config, token_store.expected_vocab_size(config, initial), initial.config if initial else None
    )
    objective = objectives.decide(config, initial)
    model = objectives.make_model(
        objective, model_config, config.train.dtype, config.train.remat, config.model.attention
    )
    bounds = np.arange(0, 41, 10)
    empty = Split(np.zeros(40, np.uint16), bounds, np.arange(5), np.zeros(30, np.int64), 40)
    tokenizer = train_wordpiece(["a b"], 30)
    sources = (objectives.train_source(empty, tokenizer, config), objectives.eval_source(empty, tokenizer, config))
    train, held_out = (source.batch(np.arange(1)) for source in sources)
    return model, objectives.make_objective(objective, model), (train, held_out)


def _finetuning(config: RunConfig) -> tuple[Model, Objective, Examples]:
    """Model, objective and batches of the first row; loads the initial model and the data, as the run does."""
    job = finetuning.make_job(config, finetuning.find_initial_model(config), task_rows.read_splits(config))
    finetuning.decide_steps(config, job)
    train, held_out = (source.batch(np.arange(1)) for source in (job.train_source, job.deciding.source))
    return job.model, job.objective, (train, held_out)


def exact(plan: Plan) -> dict[str, int]:
    """Parameters, FLOPs per token, and bytes on one device.

    During a step, a device also holds the whole gradient and, with fsdp, the gathered parameters.
    """
    sharded = plan.strategy.abstract_state(plan.state)
    parameters, whole = device_bytes(sharded.params), _bytes(plan.state.params)
    return {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(plan.state.params)),
        "flops_per_token": flops.step_flops(plan.model.config, plan.batch) // tokens(plan.batch),
        "parameter_bytes": parameters,
        "gathered_bytes": whole if parameters < whole else 0,
        "gradient_bytes": whole,
        "optimizer_bytes": device_bytes(sharded.opt_state),
        "batch_bytes": _bytes(plan.batch) // plan.strategy.devices,
        "kept_bytes": kept_bytes(plan),
    }


def tokens(batch: dict[str, Any]) -> int:
    """The number of positions in a batch, padding included."""
    return math.prod(batch["input_ids"].shape)


def device_bytes(sharded: Any) -> int:
    """Bytes on one device of arrays given by shape and sharding; an array without a sharding counts in full."""
    return sum(
        math.prod(x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(sharded)
    )


def kept_bytes(plan: Plan) -> int:
    """Bytes of the activations that one device keeps for the backward pass of a micro-batch.

    Parameters and batch are not included. The sizes are those that JAX traces for an accelerator; XLA needs less if it
    fuses or recomputes operations.
    """
    rows = plan.config.train.batch_size // plan.strategy.devices // plan.config.train.accumulate
    batch = {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in plan.batch.items()}

    objective = plan.objective
    if plan.device is None or plan.device.platform != "tpu":  # Linen's layers, as on a GPU
        objective = trained(objective._replace(apply=None), plan.config.train.freeze)

    def backward(params: Any, batch: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            sums = plan.objective.losses(apply(objective, params, batch, key), batch)
            return plan.objective.total({name: value.sum for name, value in sums.items()})

        return jax.vjp(loss, params)[1]

    key = jax.eval_shape(lambda: jax.random.key(0, impl=PRNG))
    with jax.default_device(plan.device):
        traced = jax.make_jaxpr(backward)(plan.state.params, batch, key).jaxpr
    given = {id(variable) for variable in traced.invars}
    kept = {id(variable): variable.aval for variable in traced.outvars if id(variable) not in given}
    return _bytes(list(kept.values()))


def lower_train(plan: Plan) -> Any:
    """Lower the train step."""
    step = functools.partial(
        train_step,
        objective=plan.objective,
        optimizer=make_optimizer(plan.config.optimizer, plan.config.train.steps, plan.config.train.freeze),
        accumulate=plan.config.train.accumulate,
        distribute=plan.strategy.distribute,
    )
    with jax.default_device(plan.device):
        return plan.strategy.lower(step, plan.state, plan.batch)


def lower_eval(plan: Plan) -> Any:
    """Lower the evaluation step."""
    step = functools.partial(eval_step, objective=plan.objective)
    with jax.default_device(plan.device):
        return plan.strategy.lower_eval(step, plan.state, plan.eval_batch)


def describe(config: RunConfig) -> Iterator[str]:
    """Yield the plan for the devices of this machine, line by line; lines that need a compilation come last."""
    plan = make_plan(config)
    yield from describe_exact(plan, jax.devices())
    yield f"compiling for {jax.devices()[0].device_kind} ..."
    began = time.monotonic()
    memory = lower_train(plan).compile().memory_analysis()
    seconds = time.monotonic() - began
    yield f"  {'XLA temporaries':<28}{memory.temp_size_in_bytes:>20,}  ({seconds:.0f} s to compile)"


def describe_exact(plan: Plan, devices: list[Any]) -> Iterator[str]:
    """Yield the lines that need no compilation."""
    figures = exact(plan)
    yield from reports.opening(plan.config, plan.model.config, plan.strategy, figures["parameters"], devices)
    yield f"FLOPs per token, forward and backward: {figures['flops_per_token']:,}"
    yield "memory per device:"
    for name in ("parameter", "optimizer", "batch", "gradient"):
        yield f"  {name + ' bytes':<28}{figures[f'{name}_bytes']:>20,}"
    yield f"  {'parameters gathered':<28}{figures['gathered_bytes']:>20,}  (during a step)"
    yield f"  {'kept for the backward pass':<28}{figures['kept_bytes']:>20,}  (before XLA fuses; train.remat lowers it)"


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
