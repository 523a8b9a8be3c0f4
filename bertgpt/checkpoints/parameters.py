"""A model's parameters by path, and the tensors of Hugging Face's that hold them."""

from collections.abc import Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax import Array

from bertgpt.checkpoints import hf_mapping
from bertgpt.checkpoints.hf_mapping import Entry, Family
from bertgpt.model.blocks import Model
from bertgpt.model.inputs import example_ids

Params = Any


def initial_values(model: Model, paths: Sequence[str], key: Array) -> dict[str, Array]:
    """The initial values of some parameters, by path; compiled, so that the others are never made."""

    def some(key: Array) -> dict[str, Array]:
        flat = flatten(model.init(key, example_ids(type(model).__name__))["params"])
        return {path: flat[path] for path in paths}

    return jax.jit(some)(key)


# Their name of every tensor of a model -> its entry, and the shapes of the parameters that it holds.
Wanted = dict[str, tuple[Entry, dict[str, tuple[int, ...]]]]


def wanted_tensors(family: Family, name: str, model: Any) -> Wanted:
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_ids(name))["params"]
    flat = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    return {
        entry.hf_name: (entry, {path: flat[path] for path in parameter_paths(entry, family, name)})
        for entry in hf_mapping.entries(family, name, model.config.num_layers)
    }


def parameter_paths(entry: Entry, family: Family, name: str) -> list[str]:
    """An entry's parameters in this model's tree; a bare encoder has no prefix."""
    prefix = f"{family.prefix}/" if hf_mapping.headless(family, name) else ""
    return [path.removeprefix(prefix) for path in entry.paths]


def tensor_shape(entry: Entry, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    first = next(iter(shapes.values()))
    joined = (*first[:-1], sum(shape[-1] for shape in shapes.values()))
    return joined[::-1] if entry.transpose else joined


def flatten(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")
