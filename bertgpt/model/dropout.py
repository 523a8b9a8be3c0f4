"""Dropout by a hash of a value's place."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bertgpt.errors import InputError


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
        drawn = murmur3_fmix32(murmur3_fmix32(place ^ key[0]) ^ key[1])
        kept = drawn >= np.uint32(self.rate * 2**32)
        return jnp.where(kept, x / np.float32(1 - self.rate), 0).astype(x.dtype)  # bfloat16 has no 0.9


def murmur3_fmix32(x: Array) -> Array:
    """uint32 -> uint32, one to one, every bit depending on all: the finaliser of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
