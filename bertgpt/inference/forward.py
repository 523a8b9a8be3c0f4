"""One compiled pass of a model."""

import functools
from typing import Any

import flax.linen as nn
import jax


@functools.partial(jax.jit, static_argnames=("model", "field"))
def apply_field(model: nn.Module, params: Any, batch: dict[str, Any], field: str) -> Any:
    """Only what the field needs is computed."""
    return getattr(model.apply({"params": params}, **batch), field)
