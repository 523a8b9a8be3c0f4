"""The arguments of a model: checks of their shapes, and example ids for initialization."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from bertgpt.config import ModelConfig
from bertgpt.errors import InputError, check_array


def check_inputs(config: ModelConfig, axes: str, input_ids: Any, **others: Any) -> None:
    """Check the shapes of a model's arguments, while it is traced.

    Args:
        config: the model's configuration.
        axes: the axes of `input_ids`, "BT" or "BCT".
        input_ids: an integer array.
        others: arguments of the same shape, or None; `position_ids` may be one row for all.

    Raises:
        InputError: an argument has another shape or dtype, or a row is longer than `max_positions`. With
            `position_ids` any length is allowed, since a row may contain many short examples.
    """
    sizes = check_array("input_ids", input_ids, axes)
    row = dict.fromkeys(axes, 1) | {"T": sizes["T"]}
    for name, array in others.items():
        for_all = name == "position_ids" and np.shape(array)[:-1] == (1,) * (len(axes) - 1)
        if array is not None:
            check_array(name, array, axes, row if for_all else sizes, integer=name != "attention_mask")
    shape = f"input_ids [{' '.join(axes)}] = [{' '.join(map(str, input_ids.shape))}]"
    if sizes["T"] < 1:
        raise InputError(f"{shape} has no tokens; give at least one per row")
    if others.get("position_ids") is None and sizes["T"] > config.max_positions:
        raise InputError(
            f"{shape} is longer than the model's max_positions {config.max_positions}; shorten it, or, if a row "
            f"contains several examples, give position_ids below {config.max_positions}"
        )


def check_cache(config: ModelConfig, input_ids: Any, cache: Sequence[Any], **masks: Any) -> None:
    """Check that a cache and the masks of its slots fit the ids [B T].

    Args:
        config: the model's configuration.
        input_ids: the new tokens.
        cache: one `Cache` per layer.
        masks: arrays [B S], one value per slot, or None.

    Raises:
        InputError: the cache has other layers, rows or heads, fewer slots than tokens, or a mask has another shape.
    """
    rows, length = input_ids.shape
    sizes = (len(cache), *cache[0].key.shape[:2])  # layers, rows times heads, slots
    if sizes[:2] != (config.num_layers, rows * config.num_heads) or sizes[2] < length:
        raise InputError(
            f"the cache has {sizes[0]} layers of {sizes[1]} heads x {sizes[2]} slots; input_ids [{rows} {length}] need "
            f"{config.num_layers} of {rows * config.num_heads} x {length} or more"
        )
    for name, array in masks.items():
        if array is not None:
            check_array(name, array, "BS", {"B": rows, "S": sizes[2]}, integer=name != "attention_mask")


def flatten_choices(config: ModelConfig, input_ids: Any, **others: Any) -> list[Any]:
    """Reshape each [B C T] to [B*C T], one row per choice; None stays None. Checks and errors as in `check_inputs`."""
    check_inputs(config, "BCT", input_ids, **others)
    return [None if x is None else x.reshape(-1, x.shape[-1]) for x in (input_ids, *others.values())]


def takes_choices(architecture: str) -> bool:
    """Whether the inputs of an architecture are [B C T]."""
    return architecture in ("BertForMultipleChoice", "OpenAIGPTDoubleHeadsModel")


def example_ids(architecture: str) -> Array:
    """Return ids of the smallest shape that a model can be initialized with."""
    return jnp.zeros((1, 1, 1) if takes_choices(architecture) else (1, 1), jnp.int32)
