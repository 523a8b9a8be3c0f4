"""Hugging Face's model folder: config.json, and weights in safetensors, Flax or torch files."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertgpt.checkpoints.formats.flax_msgpack import FLAX, FLAX_INDEX, open_flax, open_flax_shards
from bertgpt.checkpoints.formats.safetensors import INDEX, WHOLE, open_safetensors
from bertgpt.checkpoints.formats.tensors import Tensor, open_sharded, read_index
from bertgpt.checkpoints.formats.torch_bin import TORCH, TORCH_INDEX, import_torch, open_torch
from bertgpt.errors import InputError, check_regular
from bertgpt.hub import Snapshot
from bertgpt.json_files import read_json_object

CONFIG = "config.json"
READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {  # by file name; the first file that exists is read
    WHOLE: open_safetensors,
    INDEX: functools.partial(open_sharded, open_shard=open_safetensors),
    FLAX: open_flax,  # before torch's, which need a further package
    FLAX_INDEX: open_flax_shards,
    TORCH: open_torch,
    TORCH_INDEX: functools.partial(open_sharded, open_shard=open_torch),
}
SHARDS = ("model-*-of-*.safetensors", "flax_model-*-of-*.msgpack", "pytorch_model-*-of-*.bin")
WEIGHTS = (*READERS, *SHARDS)  # globs of all weight files


def is_in(folder: Path) -> bool:
    """Whether the folder has a config.json."""
    return (folder / CONFIG).exists()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the contents of config.json.

    Raises:
        InputError: it is missing or not a JSON object.
    """
    return read_json_object(folder / CONFIG)


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a model folder by name, without reading their values.

    Raises:
        InputError: the folder has no weight file, or a file is damaged or incomplete.
    """
    for name, read in READERS.items():
        if (folder / name).exists():
            check_regular(folder / name)
            return read(folder / name)
    raise InputError(f"{folder}: contains no weights; add {WHOLE}, {INDEX} with its shards, {FLAX} or {TORCH}")


def fetch_weights(snapshot: Snapshot) -> None:
    """Fetch the weight files that `open_tensors` will read.

    Raises:
        InputError: the model has none, or only torch's without torch being installed; or a file cannot be downloaded.
    """
    name = next((name for name in READERS if name in snapshot.files), None)
    if name is None:
        raise snapshot.lacks(f"{WHOLE}, {INDEX}, {FLAX} or {TORCH}")
    if name in (TORCH, TORCH_INDEX):
        import_torch(f"{snapshot.name}/{name}")
    file = snapshot.fetch(name)
    for shard in sorted(set(read_index(file).values())) if name.endswith(".index.json") else ():
        snapshot.fetch(shard)
