"""The transformer block that GPT-1 and BERT share, and a stack of them."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bertgpt.config import ModelConfig
from bertgpt.errors import InputError, check_array
from bertgpt.losses.chunked_cross_entropy import narrowed
from bertgpt.model.masks import dense_mask

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_erf": functools.partial(nn.gelu, approximate=False),  # Google's checkpoints of 2018
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),  # OpenAI's GPT-1; Google's code since 2019-02
    "relu": nn.relu,
}


REMAT: dict[str, Callable[..., bool] | None] = {  # what is kept of a block beside its input
    "none": None,  # everything that the backward pass reads
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with parameters; not attention's own
    "full": jax.checkpoint_policies.nothing_saveable,
}


def weight_init(config: ModelConfig) -> nn.initializers.Initializer:
    """N(0, initializer_range), cut at two deviations for BERT (modeling.py) and not cut for GPT-1 (train.py)."""
    if config.architecture == "bert":
        return nn.initializers.truncated_normal(config.initializer_range)
    return nn.initializers.normal(config.initializer_range)


def dense(features: int, config: ModelConfig, dtype: DTypeLike, name: str | None = None, bias: bool = True) -> nn.Dense:
    """x @ kernel + bias; kernel [in, out] initialised as the paper's, bias zero."""
    return nn.Dense(features, dtype=dtype, kernel_init=weight_init(config), use_bias=bias, name=name)


def layer_norm(config: ModelConfig, dtype: DTypeLike, name: str | None = None) -> nn.LayerNorm:
    """Over the last axis, with float32 statistics and the exact (two-pass) variance."""
    return nn.LayerNorm(config.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name)


class Dropout(nn.Module):
    """Zeroes each value with probability `rate` (from 0, under 1), and scales the others so that the mean stays.

    A hash of a value's place and the key decides. It is computed where it is used and gives the same on every kind of
    device; random words, drawn and written out, took a twelfth of a step on a CPU.
    """

    rate: float
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: Any, deterministic: bool | None = None) -> Any:
        if nn.merge_param("deterministic", self.deterministic, deterministic) or self.rate == 0:
            return x
        if not 0 < self.rate < 1 or x.size > 2**32:  # beyond, places would repeat
            raise InputError(f"dropout of {x.size} values at rate {self.rate}; it takes at most 2**32, and under 1")
        key = jax.random.key_data(self.make_rng("dropout"))
        place = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
        drawn = scrambled(scrambled(place ^ key[0]) ^ key[1])
        kept = drawn >= np.uint32(self.rate * 2**32)
        return jnp.where(kept, x / np.float32(1 - self.rate), 0).astype(x.dtype)  # bfloat16 has no 0.9


def scrambled(x: Array) -> Array:
    """uint32 -> uint32, one to one, every bit depending on all: the finaliser of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool,
    attention_mask: Array | None = None,
    pack_ids: Array | None = None,
    dropout: Dropout | None = None,
) -> Array:
    """Self-attention by the fastest form that can do it: cuDNN's on a GPU where `cudnn_obstacle` finds nothing against
    it, else `mix`.

    Args:
        query, key, value: [B T H W].
        causal: whether a position sees only itself and what stands before it.
        attention_mask, pack_ids: [B T] as in `masks.py`.
        dropout: of the probabilities.

    Returns:
        [B T H W].
    """
    masks = {"attention_mask": attention_mask, "pack_ids": pack_ids}
    rate = 0.0 if dropout is None or dropout.deterministic else dropout.rate
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]  # a device, its kind, or None
    device = chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]
    if cudnn_obstacle(device, query.dtype, query.shape[1], query.shape[3], rate) is None:
        return fused(query, key, value, causal=causal, implementation="cudnn", **masks)
    return mix(query, key, value, dense_mask(query.shape[1], causal=causal, **masks), dropout)


def cudnn_obstacle(device: Any, dtype: DTypeLike, length: int, width: int, dropout: float) -> str | None:
    """Why cuDNN's fused attention cannot be taken for T tokens and heads of a width; None where it can."""
    if not device.device_kind.startswith("NVIDIA"):
        return f"the device is a {device.device_kind}"
    if float(device.compute_capability) < 8:
        return f"the GPU's compute capability is {device.compute_capability}, under 8.0"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16, and this is {jnp.dtype(dtype)}"
    if width % 8 or width > 128 or length % 2:
        return f"it takes heads of a width that 8 divides, to 128, and an even length; these are {width} and {length}"
    return f"it has no dropout, and model.attention_dropout is {dropout}" if dropout else None


def fused(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool,
    attention_mask: Array | None = None,
    pack_ids: Array | None = None,
    implementation: Any = None,
) -> Array:
    """`mix` by `jax.nn.dot_product_attention`, which never writes the scores out under cuDNN. Arguments as `attend`."""
    length = query.shape[1]
    mask = dense_mask(length, causal=False, attention_mask=attention_mask, pack_ids=pack_ids)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (mask.shape[0], 1, length, length))
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation=implementation)


def mix(query: Array, key: Array, value: Array, mask: Array | None, dropout: nn.Module | None = None) -> Array:
    """softmax(query key^T / sqrt(W)) value, the softmax in float32.

    query [B T H W], key and value [B S H W]; mask bool, broadcast to [B H T S], True = may attend; `dropout` acts on
    the probabilities. Returns [B T H W]. Source: Vaswani et al. 2017, section 3.2.1.
    """
    scores = jnp.einsum("BTHW,BSHW->BHTS", query, key, preferred_element_type=jnp.float32) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores).astype(value.dtype)  # [B H T S]
    if dropout is not None:
        probabilities = dropout(probabilities)
    return jnp.einsum("BHTS,BSHW->BTHW", probabilities, value)


def look_up(table: Array, ids: Array) -> Array:
    """The rows of a table [N ...] at integer ids [...]; NaN for an id that is negative or not under N.

    JAX's own indexing counts a negative id from the end, and clamps or fills a large one. An id out of range gives no
    row a gradient. NumPy's ids may have 64 bits, but not as an argument of a jitted function (see `narrowed`).
    """
    return jnp.asarray(table).at[narrowed(ids)].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


class Embedding(nn.Embed):
    """`nn.Embed` by `look_up`: ids [...] -> [... D]. Linen's takes any id where its table has one row."""

    def __call__(self, ids: Array) -> Array:
        return look_up(self.embedding, ids)


def check_inputs(config: ModelConfig, axes: str, input_ids: Any, **others: Any) -> None:
    """Checks the shapes of a model's arguments, while it is traced.

    Args:
        config: the model's.
        axes: of `input_ids`, "BT" or "BCT".
        input_ids: integer.
        others: arguments of the same shape, or None; `position_ids` may be one row for all.

    Raises:
        InputError: an argument is no such array, or a row is longer than the model's positions. With `position_ids`
            any length will do, as in a row of many short examples.
    """
    sizes = check_array("input_ids", input_ids, axes)
    row = dict.fromkeys(axes, 1) | {"T": sizes["T"]}
    for name, array in others.items():
        for_all = name == "position_ids" and np.shape(array)[:-1] == (1,) * (len(axes) - 1)
        if array is not None:
            check_array(name, array, axes, row if for_all else sizes, integer=name != "attention_mask")
    shape = f"input_ids [{' '.join(axes)}] = [{' '.join(map(str, input_ids.shape))}]"
    if sizes["T"] < 1:
        raise InputError(f"{shape} has no tokens; give at least one in a row")
    if others.get("position_ids") is None and sizes["T"] > config.max_positions:
        raise InputError(
            f"{shape} is longer than the model's max_positions {config.max_positions}; shorten it, or give "
            f"position_ids under {config.max_positions} where a row holds several examples"
        )


def flatten_choices(config: ModelConfig, input_ids: Any, **others: Any) -> list[Any]:
    """Each [B C T] -> [B*C T]: every choice is a row of its own; what is absent stays so. Checks as `check_inputs`."""
    check_inputs(config, "BCT", input_ids, **others)
    return [None if x is None else x.reshape(-1, x.shape[-1]) for x in (input_ids, *others.values())]


class Attention(nn.Module):
    """Multi-head self-attention: x [B T D] -> [B T D]. Source: Vaswani et al. 2017, section 3.2.2."""

    config: ModelConfig
    causal: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, attention_mask: Array | None, pack_ids: Array | None, deterministic: bool = True
    ) -> Array:
        config = self.config
        heads = (*x.shape[:2], config.num_heads, config.hidden_size // config.num_heads)  # B T H W
        query, key, value = (
            dense(config.hidden_size, config, self.dtype, name)(x).reshape(heads) for name in ("query", "key", "value")
        )
        mixed = attend(
            query,
            key,
            value,
            causal=self.causal,
            attention_mask=attention_mask,
            pack_ids=pack_ids,
            dropout=Dropout(config.attention_dropout, deterministic=deterministic),
        )
        return dense(config.hidden_size, config, self.dtype, "out")(mixed.reshape(x.shape))


class FeedForward(nn.Module):
    """x [B T D] -> activation(x up) down [B T D], through width F."""

    config: ModelConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = ACTIVATIONS[self.config.activation](dense(self.config.mlp_size, self.config, self.dtype, "up")(x))
        return dense(self.config.hidden_size, self.config, self.dtype, "down")(hidden)


class Block(nn.Module):
    """One layer of either model: post-LN, as both papers have it. x [B T D] -> [B T D]."""

    config: ModelConfig
    causal: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        attention_mask: Array | None = None,
        pack_ids: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        attention = Attention(self.config, self.causal, self.dtype, name="attention")
        feed_forward = FeedForward(self.config, self.dtype, name="feed_forward")
        dropout = Dropout(self.config.hidden_dropout, deterministic=deterministic)
        attention_norm, feed_forward_norm = (
            layer_norm(self.config, self.dtype, name) for name in ("attention_norm", "feed_forward_norm")
        )
        x = attention_norm(x + dropout(attention(x, attention_mask, pack_ids, deterministic)))
        x = feed_forward_norm(x + dropout(feed_forward(x)))
        return x


class Model(nn.Module):
    """What every model is given.

    Attributes:
        config: sizes and constants.
        dtype: that it computes in; parameters stay float32.
        remat: what the backward pass finds kept (one of REMAT); the rest of a block it computes again, so that a larger
            batch fits. Outputs and gradients are the same.
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"


class Stack(Model):
    """`num_layers` blocks, one after the other, each with parameters of its own.

    A plain loop: a scan over stacked parameters compiles in half the time, but costs over 5 % of a step
    (docs/performance.md).
    """

    @nn.compact
    def __call__(
        self,
        x: Array,
        attention_mask: Array | None = None,
        pack_ids: Array | None = None,
        deterministic: bool = True,
    ) -> list[Array]:
        """x [B T D] -> every block's output, each [B T D]."""
        outputs = []
        kept = REMAT[self.remat]
        make = Block if kept is None else nn.remat(Block, policy=kept, static_argnums=(4,))  # deterministic
        for layer in range(self.config.num_layers):
            block = make(self.config, self.config.causal, self.dtype, name=f"block_{layer}")
            x = block(x, attention_mask, pack_ids, deterministic)
            outputs.append(x)
        return outputs
