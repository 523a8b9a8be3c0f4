"""The arguments of a model: checks of their shapes, and example ids for initialization."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from bertgpt.config import ModelConfig
from bertgpt.errors import InputError, check_array


def check_inputs(config: ModelConfig, axes: str, input_ids: Any, inputs_embeds: Any = None, **others: Any) -> None:
    """Check the shapes of a model's arguments, while it is traced.

    Args:
        config: the model's configuration.
        axes: the axes of `input_ids`, "BT" or "BCT".
        input_ids: an integer array; or None, if `inputs_embeds` is given.
        inputs_embeds: a float array with one more axis, D; or None.
        others: arguments of the same shape as `input_ids`, or None. `position_ids` may be one row for all, and
            `attention_mask` may say to which keys each query may attend (`masks.key_mask`).

    Raises:
        InputError: an argument has another shape or dtype, or a row is longer than `max_positions`. With
            `position_ids` any length is allowed, since a row may contain many short examples.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("give either input_ids or inputs_embeds, and not both")
    if inputs_embeds is None:
        sizes = check_array("input_ids", input_ids, axes)
    else:
        sizes = check_array("inputs_embeds", inputs_embeds, axes + "D", {"D": config.hidden_size}, integer=False)
        if inputs_embeds.dtype.kind in "biu":
            raise InputError(f"inputs_embeds must be float, not {inputs_embeds.dtype}; give ids as input_ids")
    row = dict.fromkeys(axes, 1) | {"T": sizes["T"]}
    for name, array in others.items():
        for_all = name == "position_ids" and np.shape(array)[:-1] == (1,) * (len(axes) - 1)
        if name == "attention_mask" and np.ndim(array) > len(axes):
            _check_query_mask(array, f"{axes}S", sizes | {"S": sizes["T"]})
        elif array is not None:
            check_array(name, array, axes, row if for_all else sizes, integer=name != "attention_mask")
    given = "input_ids" if inputs_embeds is None else "inputs_embeds"
    shape = f"{given} [{' '.join(sizes)}] = [{' '.join(map(str, sizes.values()))}]"
    if sizes["T"] < 1:
        raise InputError(f"{shape} has no tokens; give at least one per row")
    if others.get("position_ids") is None and sizes["T"] > config.max_positions:
        raise InputError(
            f"{shape} is longer than the model's max_positions {config.max_positions}; shorten it, or, if a row "
            f"contains several examples, give position_ids below {config.max_positions}"
        )


def _check_query_mask(mask: Any, axes: str, sizes: dict[str, Any]) -> None:
    """Check an `attention_mask` with an axis for queries: [B T S], [B 1 T S], or with choices [B C T S].

    Raises:
        InputError: it has another shape, or it has floats, which transformers adds to the scores.
    """
    if np.ndim(mask) == len(axes) + 1:
        axes, sizes = axes[:-2] + "1" + axes[-2:], sizes | {"1": 1}
    check_array("attention_mask", mask, axes, sizes, integer=False)
    if mask.dtype.kind not in "biu":
        raise InputError(
            f"attention_mask is {mask.dtype} and has an axis for queries and one for keys; give bool or integers, "
            "nonzero where a query may attend to a key"
        )


def check_cache(
    config: ModelConfig, rows: int, length: int, cache: Sequence[Any], attention_mask: Any, pack_ids: Any
) -> None:
    """Check that a cache and the masks of its slots fit new tokens [B T].

    Args:
        config: the model's configuration.
        rows: B.
        length: T.
        cache: one `Cache` per layer.
        attention_mask: [B S], one value per slot; or for each query [B T S] or [B 1 T S]; or None.
        pack_ids: [B S] or None.

    Raises:
        InputError: the cache has other layers, rows or heads, fewer slots than tokens, or a mask has another shape.
    """
    sizes = (len(cache), *cache[0].key.shape[:2])  # layers, rows times heads, slots
    if sizes[:2] != (config.num_layers, rows * config.num_heads) or sizes[2] < length:
        raise InputError(
            f"the cache has {sizes[0]} layers of {sizes[1]} heads x {sizes[2]} slots; tokens [{rows} {length}] need "
            f"{config.num_layers} of {rows * config.num_heads} x {length} or more"
        )
    slots = {"B": rows, "T": length, "S": sizes[2]}
    if np.ndim(attention_mask) > 2:
        _check_query_mask(attention_mask, "BTS", slots)
    elif attention_mask is not None:
        check_array("attention_mask", attention_mask, "BS", slots, integer=False)
    if pack_ids is not None:
        check_array("pack_ids", pack_ids, "BS", slots)


def flatten_choices(config: ModelConfig, **inputs: Any) -> dict[str, Any]:
    """Merge the axes B and C of each [B C ...], one row per choice; None stays None. Checks as of `check_inputs`."""
    check_inputs(config, "BCT", **inputs)
    return {name: None if x is None else x.reshape(-1, *x.shape[2:]) for name, x in inputs.items()}


def shape_of_tokens(input_ids: Any, inputs_embeds: Any) -> tuple[int, ...]:
    """Return the shape [B T] or [B C T] of the ids, or that of the embeddings without D."""
    return np.shape(input_ids) if inputs_embeds is None else np.shape(inputs_embeds)[:-1]


def takes_choices(architecture: str) -> bool:
    """Whether the inputs of an architecture are [B C T]."""
    return architecture in ("BertForMultipleChoice", "OpenAIGPTDoubleHeadsModel")


def example_ids(architecture: str) -> Array:
    """Return ids of the smallest shape that a model can be initialized with."""
    return jnp.zeros((1, 1, 1) if takes_choices(architecture) else (1, 1), jnp.int32)
