"""OpenAI's release of GPT-1 (openai/finetune-transformer-lm, folder model/), seen as a Hugging Face folder.

`params_0.npy`, `params_1.npy`, ... hold all numbers in one row; `params_shapes.json` lists the shapes in the order in
which train.py makes its variables: positions, tokens, then twelve arrays a block.
"""

from pathlib import Path
from typing import Any

from bertgpt.errors import InputError
from bertgpt.tensor_files import Tensor, open_npy_parts, read_json

SHAPES = "params_shapes.json"
HEAD_WIDTH = 64  # 12 heads of 768 (train.py, n_head); the files do not say
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


def open_release(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A configuration and the tensors under Hugging Face's names.

    Raises:
        InputError: the shapes are not GPT-1's, or the files do not hold as many numbers.
    """
    file = folder / SHAPES
    shapes = [_squeezed(shape, file) for shape in _shape_list(file)]
    layers, rest = divmod(len(shapes) - 2, len(BLOCK))
    if layers < 1 or rest or len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][1]:
        raise InputError(f"{file}: not the shapes of a GPT-1: positions, tokens, and {len(BLOCK)} a block")
    (positions, width), (vocabulary, _) = shapes[:2]
    names = ["transformer.positions_embed.weight", "transformer.tokens_embed.weight"]
    names += [f"transformer.h.{layer}.{name}" for layer in range(layers) for name in BLOCK]
    config = {
        "model_type": "openai-gpt",
        "architectures": ["OpenAIGPTLMHeadModel"],
        "vocab_size": vocabulary,
        "n_positions": positions,
        "n_embd": width,
        "n_layer": layers,
        "n_head": max(1, width // HEAD_WIDTH),
    }
    return config, dict(zip(names, open_npy_parts(_parts(folder), shapes), strict=True))


def _shape_list(file: Path) -> list[Any]:
    shapes = read_json(file)
    if not isinstance(shapes, list):
        raise InputError(f"{file}: not a list of shapes")
    return shapes


def _squeezed(shape: Any, file: Path) -> tuple[int, ...]:
    """[1, in, out] of a Conv1D is [in, out]."""
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise InputError(f"{file}: {shape!r} is no shape")
    return tuple(shape[1:] if len(shape) == 3 and shape[0] == 1 else shape)


def _parts(folder: Path) -> list[Path]:
    """params_0.npy, params_1.npy, ... as far as they go."""
    parts = []
    while (file := folder / f"params_{len(parts)}.npy").exists():
        parts.append(file)
    if not parts:
        raise InputError(f"{folder / 'params_0.npy'}: no such file")
    return parts
