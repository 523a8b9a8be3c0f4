"""Token ids and labels as integers that JAX can index with."""

from typing import Any

import numpy as np

LARGEST = np.iinfo(np.int32).max


def narrowed(ids: Any) -> Any:
    """Convert 64-bit NumPy integers to int32, clipped to the range from -1 to the largest int32.

    JAX itself would drop the upper bits and turn 2**32 + 5 into 5. For an argument of a jitted function, JAX does this
    before this function runs. Check such an array first, or pass int32. Other arrays are returned unchanged.
    """
    if isinstance(ids, np.ndarray | np.generic) and ids.dtype.kind in "iu" and ids.dtype.itemsize == 8:
        return np.clip(ids, -1 if ids.dtype.kind == "i" else 0, LARGEST).astype(np.int32)
    return ids
