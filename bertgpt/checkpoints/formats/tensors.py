"""An array in a weights file, and what is common to files that are cut into shards.

A file is untrusted: its names and shapes are known before anything is read, nothing is unpickled freely, and an index
reaches no other folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bertgpt.errors import InputError
from bertgpt.json_files import read_json_object


class Tensor(NamedTuple):
    """An array in a file: its shape, and `read()` to get it as float32.

    `read` raises InputError where it holds no floating-point numbers.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def open_sharded(index: Path, open_shard: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The index says which file holds which array; it may name files of its own folder alone."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(f"{index}: has no weight_map of names to files")
    opened: dict[str, dict[str, Tensor]] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or "\\" in shard or shard in ("", ".", "..") or len(shard) > 200:
            raise InputError(f"{index}: {shard!r} is outside the folder; an index may only name files beside it")
        if not (index.parent / shard).is_file():
            raise InputError(f"{index}: {shard!r} is missing; copy the whole folder")
        opened[shard] = open_shard(index.parent / shard)
    for name, shard in weight_map.items():
        if name not in opened[shard]:
            raise InputError(f"{index.parent / shard}: lacks {name}, which {index.name} says is there")
    return {name: opened[shard][name] for name, shard in weight_map.items()}
