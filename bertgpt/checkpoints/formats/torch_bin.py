"""torch's pytorch_model.bin, whole or sharded, read by its weights-only unpickler."""

import functools
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

import ml_dtypes  # noqa: F401, makes bfloat16 known to NumPy
import numpy as np

from bertgpt.checkpoints.formats.tensors import Tensor
from bertgpt.errors import InputError

TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAX_PICKLE = 1 << 22  # bytes of the names and shapes in torch's format; a byte of them can take 64 in memory
MAX_NAME = 1000  # characters of a name in it
OLD_PICKLES = 5  # that a file before torch 1.6 begins with: a number, a version, the machine, the names, the arrays


def open_torch(file: Path) -> dict[str, Tensor]:
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
