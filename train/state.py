"""The training state: step, parameters, optimizer state and random key."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from bertgpt.model.blocks import Model
from bertgpt.model.inputs import example_ids

PRNG = "rbg"  # of the run's key, from which only dropout's keys are derived; its kind is part of old checkpoints
INITIAL = "threefry2x32"  # of the initial weights: unlike rbg, the same random bits on every kind of device


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
    """The state at step 0, with the given parameters, or with parameters randomly initialized from the seed.

    The random bits of initial parameters depend only on the seed and the model. Their transformation to normal numbers
    (`erf_inv`) is rounded differently on different kinds of device: values agree to about 1e-5 of their size.
    """
    key = jax.random.key(seed, impl=PRNG)
    if params is None:
        params = model.init(jax.random.key(seed, impl=INITIAL), example_ids(type(model).__name__))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(jax.random.fold_in(key, 2)),
    )


def step_key(state: TrainState) -> Array:
    """The random key of the next step."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=PRNG), state.step)
