"""An array in a weight file, and the index of sharded files.

Files are untrusted. Names and shapes are checked before values are read, pickles are loaded only with torch's
weights-only unpickler, and an index may name only files in its folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bertgpt.errors import InputError, check_regular
from bertgpt.json_files import read_json_object


class Tensor(NamedTuple):
    """An array in a file: its shape, `read()`, which returns it as float32, and its dtype as the file spells it.

    `read` raises InputError if the array is not floating-point.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    dtype: str = "float32"

    def transposed(self) -> "Tensor":
        """Return the tensor with its axes reversed; its values are still read later."""
        return Tensor(self.shape[::-1], lambda: self.read().T, self.dtype)


def open_sharded(index: Path, open_shard: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all shards that an index lists.

    Raises:
        InputError: the index is damaged, names a file outside its folder, or a file is missing, is a git-lfs pointer or
            lacks a tensor.
    """
    weight_map = read_index(index)
    opened: dict[str, dict[str, Tensor]] = {}
    for shard in sorted(set(weight_map.values())):
        if not (index.parent / shard).is_file():
            raise InputError(f"{index}: {shard!r} is missing; copy the whole folder")
        check_regular(index.parent / shard)
        opened[shard] = open_shard(index.parent / shard)
    for name, shard in weight_map.items():
        if name not in opened[shard]:
            raise InputError(f"{index.parent / shard}: lacks {name}, which {index.name} lists; copy the whole folder")
    return {name: opened[shard][name] for name, shard in weight_map.items()}


def read_index(index: Path) -> dict[str, str]:
    """Return the file of each tensor that an index of shards lists.

    Raises:
        InputError: the index is damaged, or names a file outside its folder.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(f"{index}: has no weight_map from names to files; copy it again")
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or "\\" in shard or shard in ("", ".", "..") or len(shard) > 200:
            raise InputError(f"{index}: {shard!r} is outside the folder; an index may only name files in its folder")
    return weight_map
