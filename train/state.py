"""The training state: step, parameters, optimizer state and random key."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from bertgpt.model.blocks import Model
from bertgpt.model.inputs import example_ids

PRNG = "rbg"  # independent of the sharding; dropout uses it only to derive keys


@flax.struct.dataclass
class TrainState:
    """A pytree that contains only arrays, so it can be sharded, donated and saved.

    Attributes:
        step: int32, number of updates so far.
        params: float32 parameters.
        opt_state: the optimizer's state.
        key: uint32 [4], the run's random key; each step folds in its number.
    """

    step: Array
    params: Any
    opt_state: Any
    key: Array


def create_state(model: Model, optimizer: optax.GradientTransformation, seed: int, params: Any = None) -> TrainState:
    """The state at step 0, with the given parameters, or with parameters randomly initialized from the seed."""
    key = jax.random.key(seed, impl=PRNG)
    if params is None:
        params = model.init(jax.random.fold_in(key, 1), example_ids(type(model).__name__))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(jax.random.fold_in(key, 2)),
    )


def step_key(state: TrainState) -> Array:
    """The random key of the next step."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=PRNG), state.step)
