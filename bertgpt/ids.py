"""Token ids and labels, as JAX can index by them."""

from typing import Any

import numpy as np

LARGEST = np.iinfo(np.int32).max


def narrowed(ids: Any) -> Any:
    """Integers as JAX can hold them: NumPy's of 64 bits become int32, and one beyond -1 or the largest of these goes to
    that bound. JAX would cut off the upper bits, so that 2**32 + 5 became 5.

    Under `jit` they are cut before anything here sees them, so check such an array before, or give int32.
    """
    if isinstance(ids, np.ndarray | np.generic) and ids.dtype.kind in "iu" and ids.dtype.itemsize == 8:
        return np.clip(ids, -1 if ids.dtype.kind == "i" else 0, LARGEST).astype(np.int32)
    return ids
