"""Adapt a pretrained model to a task: another head, and additional tokens."""

import dataclasses
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from tokenizers import Tokenizer

from bertgpt.checkpoints.hf_mapping import FAMILIES, family_of, headless
from bertgpt.checkpoints.parameters import initial_values
from bertgpt.config import ModelConfig
from bertgpt.errors import InputError
from bertgpt.model.blocks import Model
from bertgpt.model.inputs import example_ids
from bertgpt.tokenizers import tokenizer_from_str, vocabulary_size

CLASSIFIERS = ("classifier/", "score/")  # heads with one row per class


def add_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """Return a copy of the tokenizer with these special tokens added, in order, after the existing tokens.

    Raises:
        InputError: the tokenizer's ids are not consecutive, so an id would be assigned twice.
    """
    tokenizer = tokenizer_from_str(tokenizer.to_str())
    size = len(tokenizer.get_vocab())
    added = tokenizer.add_special_tokens([token for token in tokens if tokenizer.token_to_id(token) is None])
    if len(set(tokenizer.get_vocab().values())) < size + added:  # tokenizers takes the count as the next id
        raise InputError("the tokenizer's ids have holes, so no token can be added; renumber its tokens from 0 up")
    return tokenizer


def adapt(
    model: Model, params: Any, architecture: str, config: ModelConfig, tokenizer: Tokenizer, *, key: Array
) -> tuple[Model, Any]:
    """Return the same encoder with another head, and one row of the token embeddings per token.

    Parameters with a matching path and shape are kept. New rows and heads are randomly initialized.

    Args:
        model: a model of one of this library's architectures.
        params: its parameters.
        architecture: a class of the same family, such as "BertForSequenceClassification".
        config: the configuration of the new model; `vocab_size` is raised to the tokenizer's size if that is larger.
        tokenizer: the tokenizer of the new model.
        key: the random key for the initialization.

    Returns:
        (model, params) of the new architecture. A warning names what was randomly initialized.

    Raises:
        InputError: the architecture belongs to another family.
    """
    old, name = type(model).__name__, family_of(architecture)
    if name is None or name != family_of(old) or headless(FAMILIES[name], architecture):
        raise InputError(f"a {old} cannot become a {architecture}; choose a class with a head of the same family")
    family, config = FAMILIES[name], config_for(config, tokenizer)
    home = importlib.import_module(f"bertgpt.model.{family.architecture}")
    new = getattr(home, architecture)(config, model.dtype, model.remat, attention=model.attention)
    shapes = flatten_dict(jax.eval_shape(new.init, key, example_ids(architecture))["params"], sep="/")
    had = flatten_dict({family.prefix: params} if headless(family, old) else params, sep="/")
    if (old, *_classes(model.config)) != (architecture, *_classes(config)):
        had = {path: value for path, value in had.items() if not path.startswith(CLASSIFIERS)}
    kept = {path: had[path] for path, leaf in shapes.items() if path in had and had[path].shape == leaf.shape}
    drawn = initial_values(new, sorted(shapes.keys() - kept.keys()), key)
    heads = {path.removeprefix(f"{family.prefix}/").split("/")[0] for path in drawn if path not in had}
    for path in drawn.keys() & had.keys():  # the vocabulary's rows, or a head of another size
        value, rows = drawn[path], len(had[path])
        if path.endswith("token/embedding"):
            drawn[path] = jnp.concatenate([jnp.asarray(had[path]), value[rows:]])
            warnings.warn(f"{len(value) - rows} new tokens: randomly initialized, to be trained", stacklevel=2)
        else:
            heads.add(path.split("/")[0])
    if heads:
        names = ", ".join(sorted(heads))
        warnings.warn(f"the {old} has no matching {names}: randomly initialized, to be trained", stacklevel=2)
    return new, unflatten_dict({path: {**kept, **drawn}[path] for path in shapes}, sep="/")


def _classes(config: ModelConfig) -> tuple[Any, ...]:
    """What the rows of a classifier mean: their labels, which are numbers if they have no names, and the problem."""
    return config.labels or tuple(map(str, range(config.num_labels))), config.problem


def config_for(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """Return the configuration with a vocabulary that is at least as large as the tokenizer's."""
    return dataclasses.replace(config, vocab_size=max(config.vocab_size, vocabulary_size(tokenizer)))
