"""Random numbers as a pure function of (key, counter): an example does not depend on its batch."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64 (Steele et al. 2014): a bijection whose output looks random."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seed: int, rows: np.ndarray) -> np.ndarray:
    """A seed and row numbers [B] -> one key per row, uint64 [B]."""
    start = splitmix64(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + GOLDEN)
    return splitmix64(start ^ splitmix64(rows.astype(np.uint64) * GOLDEN))


def bits(key: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Keys [B] and counters [N] -> 64 random bits for each pair, uint64 [B N]."""
    return splitmix64(key[:, None] + (counters.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def permuted(index: np.ndarray, count: int, key: np.ndarray) -> np.ndarray:
    """The place of each index in a random order of the numbers below `count`; [B] int64 both.

    A Feistel network of four rounds over the next even number of bits; results that are too large go through it again.

    Args:
        index: [B], below `count`.
        count: how many numbers are put in order.
        key: [B] uint64, which order: equal keys give one order.
    """
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    found, left = index.astype(np.uint64), np.arange(len(index))
    while len(left):
        high, low = found[left] >> half, found[left] & mask
        for turn in range(4):
            high, low = low, high ^ (splitmix64(key[left] + (low + np.uint64(turn << 40)) * GOLDEN) & mask)
        found[left] = high << half | low
        left = left[found[left] >= count]
    return found.astype(np.int64)


def uniform(random_bits: np.ndarray) -> np.ndarray:
    """Random bits -> float64 in [0, 1)."""
    return (random_bits >> np.uint64(11)) * 2.0**-53
