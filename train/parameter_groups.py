"""Which parameters are frozen, and how deep in the model each one is, by the path of its array."""

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bertgpt.errors import InputError

EMBEDDINGS = "embeddings"
FIRST_BLOCKS = re.compile(r"encoder:(\d{1,4})")
BLOCK = re.compile(r"block_(\d+)")


def patterns(freeze: str | Sequence[str] | None) -> tuple[str, ...]:
    """The value of `train.freeze` as patterns."""
    return (freeze,) if isinstance(freeze, str) else tuple(freeze or ())


def frozen(params: Any, given: Sequence[str]) -> Any:
    """A tree like `params`: True for the parameters that one of the patterns names.

    Args:
        params: arrays, or their shapes.
        given: `embeddings` (tables and their LayerNorm), `encoder:N` (the first N blocks), or a pattern of a path such
            as bert/stack/block_0/*.

    Raises:
        InputError: a pattern names no parameter, or all parameters are frozen.
    """
    paths = [keys(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in given:
        if not any(is_named(path, pattern) for path in paths):
            places = sorted({"/".join(path[:-1]) for path in paths})
            raise InputError(
                f"train.freeze: {pattern} names no parameter of this model; give embeddings, encoder:N (N blocks) or a "
                f"pattern of a path, such as {places[0]}/*"
            )
        found = FIRST_BLOCKS.fullmatch(pattern)
        blocks = max(map(block_of, paths)) + 1
        if found and int(found[1]) > blocks:
            raise InputError(f"train.freeze: {pattern} names {found[1]} blocks, but the model has {blocks}")
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: any(is_named(keys(path), pattern) for pattern in given), params
    )
    if all(jax.tree.leaves(mask)):
        raise InputError(f"train.freeze: {', '.join(given)} leaves no parameter to train")
    return mask


def is_named(path: tuple[str, ...], pattern: str) -> bool:
    """Whether a pattern of `frozen` names the array at a path."""
    if pattern == EMBEDDINGS:
        return is_embedding(path)
    found = FIRST_BLOCKS.fullmatch(pattern)
    if found:
        return 0 <= block_of(path) < int(found[1])
    return fnmatch.fnmatchcase("/".join(path), pattern)


def without_gradient(apply: Callable[..., Any], given: Sequence[str]) -> Callable[..., Any]:
    """Like `model.apply`, but no gradient reaches the frozen parameters, so it is not computed."""

    def run(variables: Any, *arguments: Any, **options: Any) -> Any:
        params = variables["params"]
        stopped = jax.tree.map(
            lambda is_frozen, x: jax.lax.stop_gradient(x) if is_frozen else x, frozen(params, given), params
        )
        return apply({**variables, "params": stopped}, *arguments, **options)

    return run


def depth(path: tuple[str, ...], blocks: int) -> int:
    """How deep an array is: 0 for embeddings, 1 to `blocks` for blocks, `blocks` + 1 for pooler and heads."""
    return 0 if is_embedding(path) else block_of(path) + 1 or blocks + 1


def is_embedding(path: tuple[str, ...]) -> bool:
    """Whether an array is a table of embeddings, or belongs to their LayerNorm."""
    return EMBEDDINGS in path or path[-1] == "embedding"


def block_of(path: tuple[str, ...]) -> int:
    """The number of the block of an array, from 0; -1 outside blocks."""
    found = [int(match[1]) for name in path if (match := BLOCK.fullmatch(name))]
    return found[0] if found else -1


def keys(path: Any) -> tuple[str, ...]:
    """The names on a path of `tree_map_with_path`."""
    return tuple(entry.key for entry in path)
