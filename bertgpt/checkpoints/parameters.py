"""A model's parameters by path, and Hugging Face's tensors that contain them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax import Array

from bertgpt.checkpoints import hf_mapping
from bertgpt.checkpoints.hf_mapping import Entry, Family
from bertgpt.errors import InputError
from bertgpt.model.blocks import Model
from bertgpt.model.inputs import example_ids

Params = Any


def initial_values(model: Model, paths: Sequence[str], key: Array) -> dict[str, Array]:
    """Return the initial values of the parameters at `paths`. Under jit, all other parameters are never computed."""

    def some(key: Array) -> dict[str, Array]:
        flat = flatten(model.init(key, example_ids(type(model).__name__))["params"])
        return {path: flat[path] for path in paths}

    return jax.jit(some)(key)


# Hugging Face's name of each tensor of a model -> its entry, and the shapes of the parameters that it contains.
Wanted = dict[str, tuple[Entry, dict[str, tuple[int, ...]]]]


def wanted_tensors(family: Family, name: str, model: Any) -> Wanted:
    """Return the tensors that a Hugging Face folder of this model contains."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_ids(name))["params"]
    flat = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    return {
        entry.hf_name: (entry, {path: flat[path] for path in parameter_paths(entry, family, name)})
        for entry in hf_mapping.entries(family, name, model.config.num_layers)
    }


def parameter_paths(entry: Entry, family: Family, name: str) -> list[str]:
    """Return the paths of an entry's parameters in a model's tree; in a bare encoder they have no prefix."""
    prefix = f"{family.prefix}/" if hf_mapping.headless(family, name) else ""
    return [path.removeprefix(prefix) for path in entry.paths]


def tensor_shape(entry: Entry, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of an entry's tensor in Hugging Face's file, from the shapes of its parameters."""
    first = next(iter(shapes.values()))
    joined = (*first[:-1], sum(shape[-1] for shape in shapes.values()))
    return joined[::-1] if entry.transpose else joined


def flatten(tree: Any) -> dict[str, Any]:
    """Return a nested tree as a flat dictionary with keys such as "block_0/attention/query/kernel"."""
    return flatten_dict(tree, sep="/")


def to_hf_tensors(family: Family, name: str, model: Any, params: Params) -> dict[str, np.ndarray]:
    """Return a model's parameters as Hugging Face's tensors.

    Raises:
        InputError: `params` are not the model's parameters.
    """
    wanted = wanted_tensors(family, name, model)
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(params).items()}
    shapes = {path: shape for _, paths in wanted.values() for path, shape in paths.items()}
    for path in sorted(shapes.keys() ^ flat.keys()):
        raise InputError(f"params {'lack' if path in shapes else 'have'} {path}, unlike a {name}; give its parameters")
    for path, shape in shapes.items():
        if flat[path].shape != shape:
            raise InputError(f"params: {path} has shape {flat[path].shape}, and the model needs {shape}")
    prefix = f"{family.prefix}." if hf_mapping.headless(family, name) else ""
    tensors = {}
    for hf_name, (entry, paths) in wanted.items():
        array = np.concatenate([flat[path] for path in paths], axis=-1)
        tensors[hf_name.removeprefix(prefix)] = array.T if entry.transpose else array
    return tensors
