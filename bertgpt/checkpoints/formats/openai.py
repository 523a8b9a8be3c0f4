"""OpenAI's release of GPT-1 (openai/finetune-transformer-lm, folder model/), seen as a Hugging Face folder.

`params_0.npy`, `params_1.npy`, ... hold all numbers in one row; `params_shapes.json` lists the shapes in the order in
which train.py makes its variables: positions, tokens, then twelve arrays a block.
"""

from pathlib import Path
from typing import Any

from bertgpt.checkpoints.formats.tensor_files import Tensor, open_npy_parts
from bertgpt.errors import InputError
from bertgpt.json_files import read_json

SHAPES = "params_shapes.json"
HEAD_WIDTH = 64  # 12 heads of 768 (train.py, n_head); the files do not say
MAX_SIZE = 2**62
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


def open_release(folder: Path) -> dict[str, Tensor]:
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
