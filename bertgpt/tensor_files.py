"""Named arrays in files: safetensors (whole or sharded), torch's pytorch_model.bin, and OpenAI's params_*.npy.

A file is untrusted: its names and shapes are known before anything is read, nothing is unpickled freely, and an index
reaches no other folder.
"""

import functools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401, makes bfloat16 known to NumPy
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bertgpt.errors import InputError

MAX_JSON = 1 << 26  # bytes of a configuration or an index
FLOATS = ("float64", "float32", "float16", "bfloat16")
SHARD_BYTES = 5_000_000_000  # "5GB", as Hugging Face counts
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Tensor(NamedTuple):
    """An array in a file: its shape, and `read()` to get it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: it is missing, too large or not JSON.
    """
    try:
        if file.stat().st_size > MAX_JSON:
            raise InputError(f"{file}: over {MAX_JSON} bytes; not a configuration")
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: not JSON: {error}") from error


def read_json_object(file: Path) -> dict[str, Any]:
    """As `read_json`, of an object."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file}: not a JSON object")
    return value


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Every array of a model folder by name, none of them read yet.

    Raises:
        InputError: there is no weights file, or one is damaged or incomplete.
    """
    if (folder / WHOLE).is_file():
        return _open_safetensors(folder / WHOLE)
    if (folder / INDEX).is_file():
        return _open_sharded(folder / INDEX, _open_safetensors)
    if (folder / TORCH).is_file():
        return _open_torch(folder / TORCH)
    if (folder / TORCH_INDEX).is_file():
        return _open_sharded(folder / TORCH_INDEX, _open_torch)
    raise InputError(f"{folder}: no weights: neither {WHOLE}, {INDEX} nor {TORCH} is there")


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        handle = safe_open(file, framework="numpy")
        return {
            name: Tensor(tuple(handle.get_slice(name).get_shape()), functools.partial(handle.get_tensor, name))
            for name in handle.keys()  # noqa: SIM118, the handle is no mapping
        }
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged or cut short: {error}; copy it again") from error


def _open_sharded(index: Path, open_shard: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The index says which file holds which array; it may name files of its own folder alone."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(f"{index}: has no weight_map of names to files")
    opened: dict[str, dict[str, Tensor]] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or "\\" in shard or shard in ("", ".", ".."):
            raise InputError(f"{index}: {shard!r} is outside the folder; an index may only name files beside it")
        if not (index.parent / shard).is_file():
            raise InputError(f"{index}: {shard} is missing; copy the whole folder")
        opened[shard] = open_shard(index.parent / shard)
    for name, shard in weight_map.items():
        if name not in opened[shard]:
            raise InputError(f"{index.parent / shard}: lacks {name}, which {index.name} says is there")
    return {name: opened[shard][name] for name, shard in weight_map.items()}


def _open_torch(file: Path) -> dict[str, Tensor]:
    """Through torch's weights-only unpickler, which makes tensors and nothing else."""
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{file}: reading torch's format needs torch; install it, or convert the file where torch is: "
            "from_pretrained(folder).save_pretrained(folder) of transformers writes model.safetensors"
        ) from None
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises several kinds, UnpicklingError and RuntimeError among them
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)  # the format before 1.6 has no mmap
        except Exception:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{file}: not a weights file that can be read safely: {reason}") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{file}: holds something else than named tensors")
    return {name: Tensor(tuple(value.shape), functools.partial(_numpy, value)) for name, value in loaded.items()}


def _numpy(value: Any) -> np.ndarray:
    """A torch tensor; bfloat16, which NumPy does not know, as float32."""
    return (value.float() if value.is_floating_point() else value).numpy()


def read_float(name: str, tensor: Tensor) -> np.ndarray:
    """The array as float32.

    Raises:
        InputError: it holds no floating-point numbers.
    """
    array = tensor.read()
    if array.dtype.name not in FLOATS:
        raise InputError(f"{name} holds {array.dtype.name}; only floating-point weights can be loaded")
    return np.asarray(array, np.float32)


def open_npy_parts(files: Iterable[Path], shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Flat float arrays in several .npy files, one after the other, that hold arrays of these shapes in order.

    Raises:
        InputError: a file is missing or no plain array, or they hold more or fewer numbers.
    """
    parts, names = [], []
    for file in files:
        try:
            parts.append(np.load(file, mmap_mode="r", allow_pickle=False).reshape(-1))
            names.append(file.name)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{file}: missing, damaged or no plain array: {error}") from error
    sizes = [math.prod(shape) for shape in shapes]
    found = sum(part.size for part in parts)
    if found != sum(sizes):
        raise InputError(f"{', '.join(names)}: hold {found} numbers, and their shapes ask for {sum(sizes)}")
    pieces = np.split(np.concatenate(parts), np.cumsum(sizes)[:-1])
    return [Tensor(shape, functools.partial(piece.reshape, shape)) for shape, piece in zip(shapes, pieces, strict=True)]


def write_tensors(folder: Path, tensors: dict[str, np.ndarray], shard_bytes: int = SHARD_BYTES) -> None:
    """`model.safetensors`, or shards of at most `shard_bytes` (a larger array has one of its own) with their index."""
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
