"""Named arrays in files: safetensors (whole or sharded), torch's pytorch_model.bin, and OpenAI's params_*.npy.

A file is untrusted: its names and shapes are known before anything is read, nothing is unpickled freely, and an index
reaches no other folder.
"""

import functools
import json
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes  # noqa: F401, makes bfloat16 known to NumPy
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bertgpt.errors import InputError, check_regular
from bertgpt.json_files import read_json_object

FLOATS = ("float64", "float32", "float16", "bfloat16")
SAFETENSORS_FLOATS = ("F64", "F32", "F16", "BF16")
SHARD_BYTES = 5_000_000_000  # "5GB", as Hugging Face counts
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAX_PICKLE = 1 << 22  # bytes of the names and shapes in torch's format; a byte of them can take 64 in memory
MAX_NAME = 1000  # characters of a name in it
OLD_PICKLES = 5  # that a file before torch 1.6 begins with: a number, a version, the machine, the names, the arrays
WEIGHTS = (WHOLE, INDEX, "model-*-of-*.safetensors", TORCH, TORCH_INDEX, "pytorch_model-*-of-*.bin")  # globs of all


class Tensor(NamedTuple):
    """An array in a file: its shape, and `read()` to get it as float32.

    `read` raises InputError where it holds no floating-point numbers.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Every array of a model folder by name, none of them read yet.

    Raises:
        InputError: there is no weights file, or one is damaged or incomplete.
    """
    readers: dict[str, Callable[[Path], dict[str, Tensor]]] = {
        WHOLE: _open_safetensors,
        INDEX: functools.partial(_open_sharded, open_shard=_open_safetensors),
        TORCH: _open_torch,
        TORCH_INDEX: functools.partial(_open_sharded, open_shard=_open_torch),
    }
    for name, read in readers.items():
        if (folder / name).exists():
            check_regular(folder / name)
            return read(folder / name)
    raise InputError(f"{folder}: no weights: neither {WHOLE}, {INDEX} nor {TORCH} is there")


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        handle = safe_open(file, framework="numpy")
        return {
            name: Tensor(tuple(handle.get_slice(name).get_shape()), functools.partial(_read, handle, name, file))
            for name in handle.keys()  # noqa: SIM118, the handle is no mapping
        }
    except SafetensorError as error:
        raise InputError(f"{file}: damaged or cut short: {error}; copy it again") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error}") from error


def _read(handle: Any, name: str, file: Path) -> np.ndarray:
    kind = handle.get_slice(name).get_dtype()
    if kind not in SAFETENSORS_FLOATS:
        raise InputError(f"{file}: {name} holds {kind}; it must hold one of {', '.join(SAFETENSORS_FLOATS)}")
    return handle.get_tensor(name).astype(np.float32)


def _open_sharded(index: Path, open_shard: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
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


def _open_torch(file: Path) -> dict[str, Tensor]:
    """Through torch's weights-only unpickler, which makes tensors and nothing else."""
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{file}: reading torch's format needs torch; install it, or convert the file where torch is: "
            "from_pretrained(folder).save_pretrained(folder) of transformers writes model.safetensors"
        ) from None
    _check_records(file)
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
    return {
        str(name): Tensor(tuple(value.shape), functools.partial(_read_torch, value, str(name), file))
        for name, value in loaded.items()
    }


def _check_records(file: Path) -> None:
    """What torch's unpickler takes on trust.

    Raises:
        InputError: a record of a zip in torch's format is compressed, which torch never does, or a pickle is damaged,
            large or has long names, in which torch looks for words in quadratic time.
    """
    unsafe = f"{file}: not a weights file that can be read safely"
    try:
        with file.open("rb") as opened:
            if opened.read(4) != b"PK\3\4":  # as torch tells the format before 1.6
                opened.seek(0)
                return _check_pickles(unsafe, opened, OLD_PICKLES)
            with zipfile.ZipFile(opened) as archive:
                for record in archive.infolist():
                    if record.compress_type != zipfile.ZIP_STORED:
                        raise InputError(f"{unsafe}: {record.filename} is compressed")
                    if record.filename.endswith("data.pkl"):
                        _check_pickles(unsafe, archive.open(record), 1)
    except InputError:
        raise
    except Exception as error:  # zipfile and pickletools raise many kinds
        raise InputError(f"{unsafe}: {error}") from error


def _check_pickles(unsafe: str, file: IO[bytes], count: int) -> None:
    """
    Raises:
        InputError: the pickles that follow each other in a file are large or have long names.
    """
    for _ in range(count):
        for _, value, place in pickletools.genops(file):
            if (place or 0) > MAX_PICKLE:
                raise InputError(f"{unsafe}: its names and shapes take over {MAX_PICKLE} bytes")
            if isinstance(value, str | bytes) and len(value) > MAX_NAME:
                raise InputError(f"{unsafe}: a name of over {MAX_NAME} characters")


def _read_torch(value: Any, name: str, file: Path) -> np.ndarray:
    """A torch tensor; one that only claims to be large (a view of few numbers, or none at all) is refused."""
    whole = value.is_floating_point() and not value.is_meta and not value.is_sparse and not value.is_quantized
    if not whole or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"{file}: {name} is no plain array of floating-point numbers")
    return value.detach().float().numpy()


def _open_npy(file: Path) -> np.ndarray:
    check_regular(file)
    try:
        with np.errstate(over="raise"):  # a shape beyond 2^63
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.ndarray) and array.dtype.name in FLOATS:
            return array.reshape(-1)
        reason = "its numbers are no floats"
    except Exception as error:  # NumPy's parser of headers raises many kinds
        reason = str(error)
    raise InputError(f"{file}: missing, damaged or no plain array: {reason}")


def open_npy_parts(files: list[Path], shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Flat float arrays in several .npy files, one after the other, that hold arrays of these shapes in order.

    Raises:
        InputError: a file is missing or no plain array, or they hold more or fewer numbers.
    """
    parts = [_open_npy(file) for file in files]
    sizes = [math.prod(shape) for shape in shapes]
    found = sum(part.size for part in parts)
    if found != sum(sizes):
        folder = files[0].parent
        raise InputError(f"{folder}: params_*.npy hold {found} numbers, and their shapes ask for {sum(sizes)}")
    pieces = np.split(np.concatenate(parts).astype(np.float32), np.cumsum(sizes)[:-1])
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
