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
from ..folders import run_folder, token_store
from ..optimizers import make_optimizer
from ..parallel import Strategy
from ..sections import RunConfig
from ..state import PRNG, TrainState, create_state
from ..step import Objective, apply, train_step
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
    """

    config: RunConfig
    model: Model
    objective: Objective
    strategy: Strategy
    state: TrainState
    batch: dict[str, Any]


def make_plan(config: RunConfig) -> Plan:
    """The shapes of the run that `pretrain` or `finetune` would start.

    Raises:
        InputError: as `pretrain` or `finetune`.
    """
    strategy = parallel.make_strategy(config.parallel)
    parallel.check_batch(config.train.batch_size, config.train.accumulate, strategy)
    model, objective, example = _pretraining(config) if config.task.kind is None else _finetuning(config)
    size = config.train.batch_size
    batch = {name: jax.ShapeDtypeStruct((size, *value.shape[1:]), value.dtype) for name, value in example.items()}
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    state = jax.eval_shape(functools.partial(create_state, model, optimizer, config.seed))
    return Plan(config, model, objective, strategy, state, batch)


def _pretraining(config: RunConfig) -> tuple[Model, Objective, dict[str, np.ndarray]]:
    """Model, objective and a batch of one row, from an artificial text."""
    initial = run_folder.find_initial_model(config)
    model_config = model_section.model_config(
        config, token_store.expected_vocab_size(config, initial), initial.config if initial else None
    )
    objective = objectives.decide(config, initial)
    model = objectives.make_model(objective, model_config, config.train.dtype, config.train.remat)
    bounds = np.arange(0, 41, 10)
    empty = Split(np.zeros(40, np.uint16), bounds, np.arange(5), np.zeros(30, np.int64), 40)
    tokenizer = train_wordpiece(["a b"], 30)
    source = objectives.train_source(empty, tokenizer, config)
    return model, objectives.make_objective(objective, model), source.batch(np.arange(1))


def _finetuning(config: RunConfig) -> tuple[Model, Objective, dict[str, np.ndarray]]:
    """Model, objective and a batch of the first row; loads the initial model and the data, as the run does."""
    job = finetuning.make_job(config, finetuning.find_initial_model(config), task_rows.read_splits(config))
    finetuning.decide_steps(config, job)
    return job.model, job.objective, job.train_source.batch(np.arange(1))


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

    objective = plan.objective._replace(apply=None)  # Linen's layers, as on an accelerator

    def backward(params: Any, batch: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            sums = plan.objective.losses(apply(objective, params, batch, key), batch)
            return plan.objective.total({name: value.sum for name, value in sums.items()})

        return jax.vjp(loss, params)[1]

    key = jax.eval_shape(lambda: jax.random.key(0, impl=PRNG))
    traced = jax.make_jaxpr(backward)(plan.state.params, batch, key).jaxpr
    given = {id(variable) for variable in traced.invars}
    kept = {id(variable): variable.aval for variable in traced.outvars if id(variable) not in given}
    return _bytes(list(kept.values()))


def compiled(plan: Plan) -> dict[str, float]:
    """Compile the step for a device of this machine; return XLA's temporary bytes and the seconds to compile."""
    step = functools.partial(
        train_step,
        objective=plan.objective,
        optimizer=make_optimizer(plan.config.optimizer, plan.config.train.steps),
        accumulate=plan.config.train.accumulate,
        distribute=plan.strategy.distribute,
    )
    began = time.monotonic()
    memory = plan.strategy.lower(step, plan.state, plan.batch).compile().memory_analysis()
    return {"temporary_bytes": memory.temp_size_in_bytes, "compile_seconds": time.monotonic() - began}


def describe(config: RunConfig) -> Iterator[str]:
    """Yield the plan line by line; lines that need a compilation come last."""
    plan = make_plan(config)
    figures = exact(plan)
    model_config = plan.model.config
    yield from reports.opening(config, model_config, plan.strategy, figures["parameters"])
    yield f"FLOPs per token, forward and backward: {figures['flops_per_token']:,}"
    yield "memory per device:"
    for name in ("parameter", "optimizer", "batch", "gradient"):
        yield f"  {name + ' bytes':<28}{figures[f'{name}_bytes']:>20,}"
    yield f"  {'parameters gathered':<28}{figures['gathered_bytes']:>20,}  (during a step)"
    yield f"  {'kept for the backward pass':<28}{figures['kept_bytes']:>20,}  (before XLA fuses; train.remat lowers it)"
    yield f"compiling for {jax.devices()[0].device_kind} ..."
    measured = compiled(plan)
    seconds = measured["compile_seconds"]
    yield f"  {'XLA temporaries':<28}{measured['temporary_bytes']:>20,}  ({seconds:.0f} s to compile)"


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
