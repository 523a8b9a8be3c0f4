"""What a run carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from bertgpt.model.blocks import Model
from bertgpt.model.inputs import example_ids

PRNG = "rbg"  # the same under every sharding; of dropout it gives the keys alone


@flax.struct.dataclass
class TrainState:
    """A pytree of arrays alone, so that it can be sharded, donated and saved as it is.

    Attributes:
        step: int32, updates made so far.
        params: float32 parameters.
        opt_state: the optimizer's.
        key: uint32 [4], the run's random key; each step folds its number into it.
    """

    step: Array
    params: Any
    opt_state: Any
    key: Array


def create_state(model: Model, optimizer: optax.GradientTransformation, seed: int, params: Any = None) -> TrainState:
    """Step 0: fresh parameters from the seed, or the given ones."""
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
    """The random key of the step that comes next."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=PRNG), state.step)
