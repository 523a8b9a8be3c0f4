"""Reading torch's pytorch_model.bin, whole or sharded, with torch's weights-only unpickler."""

import functools
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from bertgpt.checkpoints.formats.tensors import Tensor
from bertgpt.errors import InputError

TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAX_PICKLE = 1 << 22  # bytes of names and shapes in a pickle; one byte can take 64 in memory
MAX_NAME = 1000  # characters of a name in a pickle
OLD_PICKLES = 5  # at the start of a file before torch 1.6: magic number, version, system, names, storage keys


def open_torch(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name. The weights-only unpickler creates tensors and plain containers only.

    Raises:
        InputError: torch is not installed, or the file cannot be read safely or contains something else.
    """
    torch = import_torch(file)
    _check_records(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises several types, such as UnpicklingError and RuntimeError
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)  # before torch 1.6: no mmap
        except Exception:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{file}: not a weight file that can be read safely: {reason}") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{file}: contains something other than named tensors; save a state_dict instead")
    return {
        str(name): Tensor(tuple(value.shape), functools.partial(_read_torch, value, str(name), file), str(value.dtype))
        for name, value in loaded.items()
    }


def import_torch(file: Any) -> Any:
    """Return the module torch; `file`, which needs it, is named in the error.

    Raises:
        InputError: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{file}: reading torch's format needs torch; install it, or convert the file on a machine with torch: "
            "from_pretrained(folder).save_pretrained(folder) of transformers writes model.safetensors"
        ) from None
    return torch


def _check_records(file: Path) -> None:
    """Check what torch's unpickler does not.

    Raises:
        InputError: a record of the zip file is compressed, which torch never does; or a pickle is damaged, is large or
            has long names, which torch searches in quadratic time.
    """
    unsafe = f"{file}: not a weight file that can be read safely"
    try:
        with file.open("rb") as opened:
            if opened.read(4) != b"PK\3\4":  # how torch recognizes the format before 1.6
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
    except Exception as error:  # zipfile and pickletools raise many types
        raise InputError(f"{unsafe}: {error}") from error


def _check_pickles(unsafe: str, file: IO[bytes], count: int) -> None:
    """Check `count` consecutive pickles in a file.

    Raises:
        InputError: a pickle is large or has long names.
    """
    for _ in range(count):
        for _, value, place in pickletools.genops(file):
            if (place or 0) > MAX_PICKLE:
                raise InputError(f"{unsafe}: its names and shapes take over {MAX_PICKLE} bytes")
            if isinstance(value, str | bytes) and len(value) > MAX_NAME:
                raise InputError(f"{unsafe}: a name of over {MAX_NAME} characters")


def _read_torch(value: Any, name: str, file: Path) -> np.ndarray:
    """Return a torch tensor as float32.

    Raises:
        InputError: it is not floating-point, or its storage has fewer numbers than its shape (such as an expanded view
            or a meta tensor).
    """
    whole = value.is_floating_point() and not value.is_meta and not value.is_sparse and not value.is_quantized
    if not whole or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"{file}: {name} is not a plain array of floating-point numbers; save it as one")
    return value.detach().float().numpy()
