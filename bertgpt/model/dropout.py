"""Dropout that hashes the index of each value instead of drawing random bits."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bertgpt.errors import InputError

SPREAD = np.uint32(0xED5AD4BB)  # odd, so places stay distinct


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
        self.check(x.size)
        place = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
        kept = keeps(place * SPREAD, self.words(), self.rate)
        return jnp.where(kept, x / np.float32(1 - self.rate), 0).astype(x.dtype)  # bfloat16 cannot represent 0.9

    def check(self, size: int) -> None:
        """
        Raises:
            InputError: the rate or the number of values is out of range.
        """
        if not 0 < self.rate < 1 or size > 2**32:  # uint32 indices would repeat
            raise InputError(
                f"dropout of {size} values at rate {self.rate}; it takes at most 2**32 values and a rate below 1"
            )

    def words(self) -> Array:
        """The key of this call as two words, uint32 [2]; another call has another key."""
        return jax.random.key_data(self.make_rng("dropout"))[:2]


def keeps(spread: Array, words: Any, rate: float) -> Array:
    """Decide by a hash, under a key of two words, which values to keep; each is dropped with probability `rate`.

    `spread` is place x SPREAD, uint32, for the index of each value: a kernel multiplies once for many places. Every
    operation counts, since a step hashes each probability of attention several times. The three multipliers are those
    of `triple32` (Wellons 2018, github.com/skeeto/hash-prospector), but it shifts four times and this hash twice.
    tests/test_layers.py tests the statistics. Signed numbers are compared, as a TPU does.
    """
    x = (spread + words[0]) ^ words[1]
    x = (x ^ (x >> 17)) * np.uint32(0xAC4C1B51)
    x = (x ^ (x >> 15)) * np.uint32(0x31848BAB)
    return x.astype(jnp.int32) >= np.int32(int(rate * 2**32) - 2**31)
