"""Export of a model to StableHLO: one program for any batch size and length, which JAX runs without this library."""

from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from bertgpt.checkpoints.atomic_folder import atomic_folder
from bertgpt.model.blocks import Model
from bertgpt.model.inputs import takes_choices
from bertgpt.tokenizers import save_tokenizer

PROGRAM, WEIGHTS = "model.stablehlo", "weights.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(folder: str | Path, model: Model, params: Any, tokenizer: Tokenizer | None = None) -> None:
    """Write model.stablehlo, weights.safetensors, tokenizer.json, and a README.md that shows how to call the program.

    The program takes (weights, inputs). weights are the arrays of the file by name. inputs are `input_ids`,
    `attention_mask` and, for BERT, `token_type_ids`, all int32 [batch length], or [batch choices length] for multiple
    choice. It returns the fields of the output that are not None by name, in the model's dtype; logits are float32. It
    runs on CPU, CUDA and TPU.

    Args:
        folder: a new folder appears complete or not at all; in an existing folder each file is replaced atomically, but
            an existing README.md is kept.
        model: a model of this library.
        params: its parameters.
        tokenizer: written too if given.
    """
    exported = export_program(model, params)
    weights = {path: np.ascontiguousarray(leaf, np.float32) for path, leaf in flatten_dict(params, sep="/").items()}
    with atomic_folder(Path(folder)) as new:
        (new / PROGRAM).write_bytes(exported.serialize())
        save_file(weights, new / WEIGHTS)
        (new / "README.md").write_text(_readme(model), encoding="utf-8")
        if tokenizer is not None:
            save_tokenizer(tokenizer, new)


def export_program(model: Any, params: Any) -> jax.export.Exported:
    """Return the program, with symbolic batch, (choices) and length; the length is at most the model's positions."""

    def run(weights: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        output = model.apply({"params": unflatten_dict(weights, sep="/")}, **inputs)
        return {name: value for name, value in vars(output).items() if value is not None}

    sizes = "batch, choices, length" if takes_choices(type(model).__name__) else "batch, length"
    shape = jax.export.symbolic_shape(sizes, constraints=[f"length <= {model.config.max_positions}"])
    inputs = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in _input_names(model)}
    weights = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in flatten_dict(params, sep="/").items()
    }
    return jax.export.export(jax.jit(run), platforms=PLATFORMS)(weights, inputs)


def _input_names(model: Any) -> list[str]:
    return ["input_ids", "attention_mask"] + ([] if model.config.causal else ["token_type_ids"])


def _readme(model: Any) -> str:
    shape = "(1, 2, 8)" if takes_choices(type(model).__name__) else "(1, 8)"
    inputs = ", ".join(f'"{name}": np.ones({shape}, np.int32)' for name in _input_names(model))
    return f"""# {type(model).__name__} as StableHLO

This program needs jax and safetensors. It takes any batch size and up to {model.config.max_positions} tokens per row.
`attention_mask` is 1 for real tokens.

```python
from pathlib import Path

import jax.export
import numpy as np
from safetensors.numpy import load_file

program = jax.export.deserialize(Path("{PROGRAM}").read_bytes())
weights = load_file("{WEIGHTS}")
output = program.call(weights, {{{inputs}}})
print({{name: value.shape for name, value in output.items()}})
```
"""
