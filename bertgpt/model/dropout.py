"""Dropout that hashes the index of each value instead of drawing random bits."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bertgpt.errors import InputError


class Dropout(nn.Module):
    """Zero each value with probability `rate` (at least 0, below 1), and scale the rest to preserve the mean.

    A hash of the value's index and the key decides. XLA fuses it into the operation that uses it, so no random bits are
    written to memory (docs/performance.md). The result is the same on every kind of device.
    """

    rate: float
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: Any, deterministic: bool | None = None) -> Any:
        if nn.merge_param("deterministic", self.deterministic, deterministic) or self.rate == 0:
            return x
        if not 0 < self.rate < 1 or x.size > 2**32:  # uint32 indices would repeat
            raise InputError(
                f"dropout of {x.size} values at rate {self.rate}; it takes at most 2**32 values and a rate below 1"
            )
        key = jax.random.key_data(self.make_rng("dropout"))
        place = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
        drawn = murmur3_fmix32(murmur3_fmix32(place ^ key[0]) ^ key[1])
        kept = drawn >= np.uint32(self.rate * 2**32)
        return jnp.where(kept, x / np.float32(1 - self.rate), 0).astype(x.dtype)  # bfloat16 cannot represent 0.9


def murmur3_fmix32(x: Array) -> Array:
    """uint32 -> uint32, a bijection whose output bits each depend on all input bits: the finalizer of MurmurHash3
    (Appleby 2011).
    """
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
