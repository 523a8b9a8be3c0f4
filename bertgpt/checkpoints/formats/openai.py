"""OpenAI's release of GPT-1 (openai/finetune-transformer-lm, folder model/), presented as a Hugging Face folder.

`params_0.npy`, `params_1.npy`, ... contain all numbers as one flat sequence. `params_shapes.json` lists the shapes in
the order in which OpenAI's train.py creates its variables: positions, tokens, then twelve arrays per block.
"""

import functools
import math
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401, registers bfloat16 with NumPy
import numpy as np

from bertgpt.checkpoints.formats.tensors import Tensor
from bertgpt.errors import InputError, check_regular
from bertgpt.json_files import read_json

SHAPES = "params_shapes.json"
HEAD_WIDTH = 64  # 768 / 12 heads (train.py, n_head); the files do not contain it
MAX_SIZE = 2**62
FLOATS = ("float64", "float32", "float16", "bfloat16")
BLOCK = (
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_1.weight",
    "ln_1.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
)


def is_in(folder: Path) -> bool:
    """Whether the folder contains the release. With a config.json it is a Hugging Face folder."""
    return (folder / SHAPES).exists() and not (folder / "config.json").exists()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration, with the keys of Hugging Face's config.json.

    Raises:
        InputError: the shapes are not those of a GPT-1.
    """
    shapes = _read_shapes(folder)
    (positions, width), (vocabulary, _) = shapes[:2]
    return {
        "model_type": "openai-gpt",
        "architectures": ["OpenAIGPTLMHeadModel"],
        "vocab_size": vocabulary,
        "n_positions": positions,
        "n_embd": width,
        "n_layer": _layers(shapes),
        "n_head": max(1, width // HEAD_WIDTH),
    }


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors under Hugging Face's names.

    Raises:
        InputError: the shapes are not those of a GPT-1, or the files contain another count of numbers.
    """
    shapes = _read_shapes(folder)
    names = ["transformer.positions_embed.weight", "transformer.tokens_embed.weight"]
    names += [f"transformer.h.{layer}.{name}" for layer in range(_layers(shapes)) for name in BLOCK]
    return dict(zip(names, open_npy_parts(_parts(folder), shapes), strict=True))


def _layers(shapes: list[tuple[int, ...]]) -> int:
    return (len(shapes) - 2) // len(BLOCK)


def _read_shapes(folder: Path) -> list[tuple[int, ...]]:
    file = folder / SHAPES
    listed = read_json(file)
    shapes = [_squeezed(shape, file) for shape in listed] if isinstance(listed, list) else []
    whole = len(shapes) == 2 + len(BLOCK) * _layers(shapes) and _layers(shapes) > 0
    if not whole or len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][1]:
        raise InputError(
            f"{file}: not the shapes of a GPT-1 (positions, tokens, {len(BLOCK)} per block); copy OpenAI's file again"
        )
    return shapes


def _squeezed(shape: Any, file: Path) -> tuple[int, ...]:
    """Return a listed shape as a tuple, without the first axis of a Conv1D's [1, in, out]."""
    known = isinstance(shape, list) and len(shape) <= 3
    if not known or not all(type(size) is int and 0 < size <= MAX_SIZE for size in shape):
        raise InputError(f"{file}: {shape!r} is not a shape; copy OpenAI's file again")
    return tuple(shape[1:] if len(shape) == 3 and shape[0] == 1 else shape)


def _parts(folder: Path) -> list[Path]:
    """Return the paths of params_0.npy, params_1.npy, ... up to the first missing number."""
    parts: list[Path] = []
    while (file := folder / f"params_{len(parts)}.npy").exists():
        parts.append(file)
    if not parts:
        raise InputError(f"{folder / 'params_0.npy'}: no such file")
    return parts


def _open_npy(file: Path) -> np.ndarray:
    check_regular(file)
    try:
        with np.errstate(over="raise"):  # for a shape with over 2^63 elements
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.ndarray) and array.dtype.name in FLOATS:
            return array.reshape(-1)
        reason = "its numbers are not floating-point"
    except Exception as error:  # NumPy's header parser raises many types
        reason = str(error)
    raise InputError(f"{file}: missing, damaged or not a plain array: {reason}; copy it again")


def open_npy_parts(files: list[Path], shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Open arrays of these shapes, whose numbers are stored in order in several flat .npy files.

    Raises:
        InputError: a file is missing or not a plain array, or the files contain more or fewer numbers.
    """
    parts = [_open_npy(file) for file in files]
    sizes = [math.prod(shape) for shape in shapes]
    found = sum(part.size for part in parts)
    if found != sum(sizes):
        folder = files[0].parent
        raise InputError(
            f"{folder}: params_*.npy contain {found} numbers, and {SHAPES} lists {sum(sizes)}; copy all files again"
        )
    pieces = np.split(np.concatenate(parts).astype(np.float32), np.cumsum(sizes)[:-1])
    return [Tensor(shape, functools.partial(piece.reshape, shape)) for shape, piece in zip(shapes, pieces, strict=True)]
