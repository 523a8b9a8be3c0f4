"""Reading and writing safetensors files, whole or sharded."""

import functools
import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401, registers bfloat16 with NumPy
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bertgpt.checkpoints.formats.tensors import Tensor
from bertgpt.errors import InputError

SAFETENSORS_FLOATS = ("F64", "F32", "F16", "BF16")
SHARD_BYTES = 5_000_000_000  # Hugging Face's "5GB"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def open_safetensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without reading their values.

    Raises:
        InputError: the file is damaged or cannot be read.
    """
    try:
        handle = safe_open(file, framework="numpy")
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118, the handle is not a mapping
        return {
            name: Tensor(tuple(found.get_shape()), functools.partial(_read, handle, name, file), found.get_dtype())
            for name, found in slices.items()
        }
    except SafetensorError as error:
        raise InputError(f"{file}: damaged or truncated: {error}; copy it again") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error}") from error


def _read(handle: Any, name: str, file: Path) -> np.ndarray:
    kind = handle.get_slice(name).get_dtype()
    if kind not in SAFETENSORS_FLOATS:
        raise InputError(f"{file}: {name} has dtype {kind}; it must be one of {', '.join(SAFETENSORS_FLOATS)}")
    return handle.get_tensor(name).astype(np.float32)


def write_tensors(folder: Path, tensors: dict[str, np.ndarray], shard_bytes: int = SHARD_BYTES) -> None:
    """Write `model.safetensors`, or, above `shard_bytes`, shards of at most this size and their index.

    An array larger than `shard_bytes` gets a separate shard.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    filled = 0
    for name, array in tensors.items():
        if shards[-1] and filled + array.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = np.ascontiguousarray(array)
        filled += array.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / WHOLE, {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
