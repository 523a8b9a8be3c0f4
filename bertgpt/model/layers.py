"""The layers with parameters that both models use."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bertgpt.config import ModelConfig
from bertgpt.ids import narrowed

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_erf": functools.partial(nn.gelu, approximate=False),  # Google's checkpoints of 2018
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),  # OpenAI's GPT-1; Google's code since 2019-02
    "relu": nn.relu,
}


def weight_init(config: ModelConfig) -> nn.initializers.Initializer:
    """N(0, initializer_range^2), truncated at two deviations for BERT (modeling.py), not for GPT-1 (train.py)."""
    if config.architecture == "bert":
        return nn.initializers.truncated_normal(config.initializer_range)
    return nn.initializers.normal(config.initializer_range)


def dense(features: int, config: ModelConfig, dtype: DTypeLike, name: str | None = None, bias: bool = True) -> nn.Dense:
    """x @ kernel + bias; the kernel [in, out] is initialized with `weight_init`, the bias with zeros."""
    return nn.Dense(features, dtype=dtype, kernel_init=weight_init(config), use_bias=bias, name=name)


def layer_norm(config: ModelConfig, dtype: DTypeLike, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm over the last axis, with float32 statistics and the exact (two-pass) variance."""
    return nn.LayerNorm(config.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name)


def look_up(table: Array, ids: Array) -> Array:
    """Return the rows of a table [N ...] at integer ids [...], with NaN for an id outside 0 to N - 1.

    JAX's own indexing counts a negative id from the end, and clamps or fills a large one. An id out of range adds
    nothing to the gradient. Ids may be 64-bit NumPy integers, but not as arguments of a jitted function (see
    `narrowed`).
    """
    table, ids = jnp.asarray(table), jnp.asarray(narrowed(ids))
    options: dict[str, Any] = {"mode": "fill", "fill_value": jnp.nan, "wrap_negative_indices": False}
    if jax.sharding.get_abstract_mesh().explicit_axes:  # the rows are sharded as the ids
        unsharded = (None,) * (table.ndim - 1)
        options["out_sharding"] = jax.sharding.PartitionSpec(*jax.typeof(ids).sharding.spec, *unsharded)
    return table.at[ids].get(**options)


def embedded_tokens(table: nn.Embed, input_ids: Array | None, inputs_embeds: Array | None) -> Array:
    """Return the token embeddings [B T D] of ids [B T]; or `inputs_embeds`, if they are given in place of ids."""
    if inputs_embeds is None:
        return table(input_ids)
    _ = table.embedding  # initialization creates the table
    return inputs_embeds


class Embedding(nn.Embed):
    """`nn.Embed` with `look_up`: ids [...] -> [... D]. Linen's own accepts any id if the table has one row."""

    def __call__(self, ids: Array) -> Array:
        return look_up(self.embedding, ids)
