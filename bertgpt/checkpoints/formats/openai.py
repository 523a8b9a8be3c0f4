"""OpenAI's release of GPT-1 (openai/finetune-transformer-lm, folder model/), seen as a Hugging Face folder.

`params_0.npy`, `params_1.npy`, ... hold all numbers in one row; `params_shapes.json` lists the shapes in the order in
which train.py makes its variables: positions, tokens, then twelve arrays a block.
"""

import functools
import math
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401, makes bfloat16 known to NumPy
import numpy as np

from bertgpt.checkpoints.formats.tensors import Tensor
from bertgpt.errors import InputError, check_regular
from bertgpt.json_files import read_json

SHAPES = "params_shapes.json"
HEAD_WIDTH = 64  # 12 heads of 768 (train.py, n_head); the files do not say
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
    """Whether the folder holds the release; a config.json would make it Hugging Face's."""
    return (folder / SHAPES).exists() and not (folder / "config.json").exists()


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json that Hugging Face would have.

    Raises:
        InputError: the shapes are not GPT-1's.
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
    """The tensors under Hugging Face's names.

    Raises:
        InputError: the shapes are not GPT-1's, or the files do not hold as many numbers.
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
        raise InputError(f"{file}: not the shapes of a GPT-1: positions, tokens, and {len(BLOCK)} a block")
    return shapes


def _squeezed(shape: Any, file: Path) -> tuple[int, ...]:
    """[1, in, out] of a Conv1D is [in, out]."""
    known = isinstance(shape, list) and len(shape) <= 3
    if not known or not all(type(size) is int and 0 < size <= MAX_SIZE for size in shape):
        raise InputError(f"{file}: {shape!r} is no shape")
    return tuple(shape[1:] if len(shape) == 3 and shape[0] == 1 else shape)


def _parts(folder: Path) -> list[Path]:
    """params_0.npy, params_1.npy, ... as far as they go."""
    parts: list[Path] = []
    while (file := folder / f"params_{len(parts)}.npy").exists():
        parts.append(file)
    if not parts:
        raise InputError(f"{folder / 'params_0.npy'}: no such file")
    return parts


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
