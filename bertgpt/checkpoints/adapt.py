"""A pretrained model made ready for a task: another head, and further tokens."""

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
from bertgpt.tokenizers import vocabulary_size

CLASSIFIERS = ("classifier/", "score/")  # heads whose rows have the names of classes


def add_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """A copy of the tokenizer that has these special tokens too, in order, after its own.

    Raises:
        InputError: an id would be given twice.
    """
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    size = len(tokenizer.get_vocab())
    added = tokenizer.add_special_tokens([token for token in tokens if tokenizer.token_to_id(token) is None])
    if len(set(tokenizer.get_vocab().values())) < size + added:  # the library counts pieces, and not ids
        raise InputError("the tokenizer's ids have holes, so that no token can be added; number its pieces anew")
    return tokenizer


def adapt(
    model: Model, params: Any, architecture: str, config: ModelConfig, tokenizer: Tokenizer, *, key: Array
) -> tuple[Model, Any]:
    """The same encoder under another head, with a row of the token embeddings for every token.

    What fits is kept; a new row or head is drawn as at the beginning of pretraining.

    Args:
        model: any of this library's architectures.
        params: its parameters.
        architecture: a class of the same family, such as "BertForSequenceClassification".
        config: the new model's; its `vocab_size` is raised to the tokenizer's where that is larger.
        tokenizer: the new model's.
        key: for what is drawn.

    Returns:
        (model, params) of the new architecture; a warning names what is new and will be trained.

    Raises:
        InputError: the architecture is of another family.
    """
    old, name = type(model).__name__, family_of(architecture)
    if name is None or name != family_of(old) or headless(FAMILIES[name], architecture):
        raise InputError(f"a {old} cannot become a {architecture}")
    family, config = FAMILIES[name], config_for(config, tokenizer)
    home = importlib.import_module(f"bertgpt.model.{family.architecture}")
    new = getattr(home, architecture)(config, model.dtype)
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
            warnings.warn(f"{len(value) - rows} tokens are new: made anew, to be trained", stacklevel=2)
        else:
            heads.add(path.split("/")[0])
    if heads:
        warnings.warn(f"the {old} has no such {', '.join(sorted(heads))}: made anew, to be trained", stacklevel=2)
    return new, unflatten_dict({path: {**kept, **drawn}[path] for path in shapes}, sep="/")


def _classes(config: ModelConfig) -> tuple[Any, ...]:
    """What a classifier's rows mean."""
    return config.labels, config.problem


def config_for(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The same, its vocabulary as large as the tokenizer's at least."""
    return dataclasses.replace(config, vocab_size=max(config.vocab_size, vocabulary_size(tokenizer)))
