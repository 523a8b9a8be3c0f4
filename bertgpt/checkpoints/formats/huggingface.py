"""Hugging Face's model folder: config.json, and weights in one of several kinds of file."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertgpt.checkpoints.formats.safetensors import INDEX, WHOLE, open_safetensors
from bertgpt.checkpoints.formats.tensors import Tensor, open_sharded
from bertgpt.checkpoints.formats.torch_bin import TORCH, TORCH_INDEX, open_torch
from bertgpt.errors import InputError, check_regular
from bertgpt.json_files import read_json_object

CONFIG = "config.json"
READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {  # by the file's name; the first that is there is read
    WHOLE: open_safetensors,
    INDEX: functools.partial(open_sharded, open_shard=open_safetensors),
    TORCH: open_torch,
    TORCH_INDEX: functools.partial(open_sharded, open_shard=open_torch),
}
WEIGHTS = (*READERS, "model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")  # globs of all weights files


def is_in(folder: Path) -> bool:
    """Whether the folder is such a one."""
    return (folder / CONFIG).exists()


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json holds.

    Raises:
        InputError: it is missing or no JSON object.
    """
    return read_json_object(folder / CONFIG)


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Every array of a model folder by name, none of them read yet.

    Raises:
        InputError: there is no weights file, or one is damaged or incomplete.
    """
    for name, read in READERS.items():
        if (folder / name).exists():
            check_regular(folder / name)
            return read(folder / name)
    raise InputError(f"{folder}: no weights: neither {WHOLE}, {INDEX} nor {TORCH} is there")
