"""One compiled forward pass of a model."""

import functools
from typing import Any

import flax.linen as nn
import jax


@functools.partial(jax.jit, static_argnames=("model", "field"))
def apply_field(model: nn.Module, params: Any, batch: dict[str, Any], field: str) -> Any:
    """Return one field of a model's output. Under jit, only what this field needs is computed."""
    return getattr(model.apply({"params": params}, **batch), field)
