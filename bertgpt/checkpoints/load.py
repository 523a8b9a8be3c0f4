"""Load model folders."""

import dataclasses
import functools
import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import Array

from bertgpt import hub
from bertgpt.checkpoints import hf_config, hf_mapping
from bertgpt.checkpoints.detect import detect
from bertgpt.checkpoints.formats import google_bert
from bertgpt.checkpoints.formats.huggingface import CONFIG, fetch_weights
from bertgpt.checkpoints.formats.tensors import Tensor
from bertgpt.checkpoints.hf_mapping import Entry, Family
from bertgpt.checkpoints.parameters import (
    Params,
    Wanted,
    initial_values,
    tensor_shape,
    to_hf_tensors,
    wanted_tensors,
)
from bertgpt.checkpoints.runs import is_run, read_run
from bertgpt.config import ModelConfig
from bertgpt.errors import InputError, one_line
from bertgpt.json_files import read_json_object
from bertgpt.model.blocks import Model
from bertgpt.tokenizers.loading import fetch_tokenizer_files

LISTED = 5  # tensor names per message


def load_pretrained(
    folder: str | Path,
    architecture: str | None = None,
    num_labels: int | None = None,
    *,
    revision: str | None = None,
    step: int | None = None,
    key: Array | None = None,
) -> tuple[Model, Params]:
    """Load a model and its parameters from the Hugging Face hub or folder, from a run of the trainer, or from Google's
    or OpenAI's files.

    bfloat16 and float16 weights are converted to float32; to compute in bfloat16, use
    `model.clone(dtype=jnp.bfloat16)`. Tensors that the class does not use are listed in one warning.

    On a TPU, or a GPU of the Ampere generation or later, JAX by default computes float32 products in bfloat16 or TF32.
    For outputs equal to Hugging Face's, set `jax.config.update("jax_default_matmul_precision", "highest")`, or
    `JAX_DEFAULT_MATMUL_PRECISION=highest` in the environment.

    Args:
        folder: a folder with config.json and model.safetensors, flax_model.msgpack or, if torch is installed,
            pytorch_model.bin (or their shards); or with bert_config.json and a TensorFlow checkpoint of
            google-research/bert; or with params_shapes.json and params_*.npy of GPT-1. Or a run folder, if the extra
            `train` is installed: its best checkpoint, or the newest if none was evaluated. If there is no such folder,
            the name of a model on the hub, such as "google-bert/bert-base-uncased": its configuration, tokenizer and
            one set of weights are downloaded to the cache of huggingface_hub.
        architecture: a class of this library, such as "BertForSequenceClassification"; None: the folder's. If it is
            given, a head that the folder lacks is randomly initialized.
        num_labels: the number of labels of the classifier; None: the folder's. A classifier of another size than the
            folder's is randomly initialized.
        revision: a branch, tag or commit of a model on the hub; None: main.
        step: load this checkpoint of a run.
        key: the random key for the initialization; None: `jax.random.key(0)`.

    Returns:
        (model, params), for `model.apply({"params": params}, input_ids, ...)`.

    Raises:
        InputError: the folder does not contain such a model, is damaged, or needs something that this library does not
            support. The message names the file and the key or tensor. Or the model cannot be downloaded, or num_labels
            is given for a class without a classifier.
    """
    source = _open(find_model(folder, revision, architecture).folder, architecture, step)
    home = importlib.import_module(f"bertgpt.model.{source.family.architecture}")
    if num_labels is not None and not source.architecture.endswith("Classification"):
        named = next(name for name in source.family.architectures if name.endswith("SequenceClassification"))
        raise InputError(f"num_labels is for a classifier, not for {source.architecture}; name one, such as {named}")
    model = getattr(home, source.architecture)(model_config(source, num_labels))
    wanted = wanted_tensors(source.family, source.architecture, model)
    remade = _missing_heads(source, wanted, architecture is not None, num_labels is not None)
    unused = sorted(source.tensors.keys() - wanted.keys())
    if unused:
        warnings.warn(one_line(f"{folder}: {source.architecture} does not use {_listed(unused)}"), stacklevel=2)
    flat: dict[str, Any] = {}
    for hf_name, (entry, shapes) in wanted.items():
        if hf_name not in remade:
            flat |= _to_parameters(entry, source.tensors[hf_name].read(), shapes)
    if remade:
        warnings.warn(f"{folder} lacks {_listed(remade)}: randomly initialized, to be trained", stacklevel=2)
        paths = [path for hf_name in remade for path in wanted[hf_name][1]]
        flat |= initial_values(model, paths, jax.random.key(0) if key is None else key)
    return model, jax.tree.map(jnp.asarray, unflatten_dict(flat, sep="/"))


def find_model(path: str | Path, revision: str | None = None, architecture: str | None = None) -> hub.Found:
    """Return the folder of a model, and its commit if it is named; fetch it from the hub if it is not in the cache.

    Args:
        path: a folder or a name.
        revision: a branch, tag or commit of a named model; None: main.
        architecture: the class to load, for a config.json that names none.

    Raises:
        InputError: there is neither such a folder nor such a BERT or GPT-1 on the hub; or it cannot be downloaded.
    """
    return hub.find(path, revision, functools.partial(_fetch_model, architecture=architecture))


def _fetch_model(snapshot: hub.Snapshot, architecture: str | None) -> None:
    """Fetch the configuration, the tokenizer and, last, the weights: without them, nothing can be loaded."""
    if CONFIG not in snapshot.files and google_bert.CONFIG in snapshot.files:
        fetch_tokenizer_files(snapshot)
        google_bert.fetch_checkpoint(snapshot)
        return
    _check_kind(read_json_object(snapshot.fetch(CONFIG)), f"{snapshot.name}/{CONFIG}", architecture)
    fetch_tokenizer_files(snapshot)
    fetch_weights(snapshot)


class Source(NamedTuple):
    """An opened folder: its family and architecture, its configuration, and its tensors under the table's names.

    `config` has the keys of Hugging Face's config.json; that of a run is a `ModelConfig`.
    """

    folder: Path
    family: Family
    architecture: str
    config: dict[str, Any] | ModelConfig
    tensors: dict[str, Tensor]


def _open(folder: Path, architecture: str | None, step: int | None) -> Source:
    """Open a run or model folder as a class.

    Raises:
        InputError: as `open_folder` and `read_run`; or a step of a model folder is wanted.
    """
    if is_run(folder):
        return _open_run(folder, architecture, step)
    if step is not None:
        raise InputError(f"{folder}: a model folder has no checkpoint {step}; give no step, or a run folder")
    return open_folder(folder, architecture)


def _open_run(folder: Path, architecture: str | None, step: int | None) -> Source:
    model, params = read_run(folder, step)
    name = type(model).__name__
    family = hf_mapping.FAMILIES[str(hf_mapping.family_of(name))]
    _check_architecture(folder, family, architecture or name)
    arrays = to_hf_tensors(family, name, model, params)
    tensors = {key: Tensor(array.shape, functools.partial(np.asarray, array)) for key, array in arrays.items()}
    return Source(folder, family, architecture or name, model.config, _normalize_names(family, name, tensors, folder))


def contents_of_folder(folder: str | Path) -> tuple[str, set[str]]:
    """Return the family of the model in a folder, "bert" or "gpt", and the parts besides its encoder that are complete,
    such as {"pooler", "mlm"} (`hf_mapping.PARTS`). The tensors decide, not the class that config.json names.

    Raises:
        InputError: the folder contains neither family, or its files are damaged.
    """
    family = hf_mapping.FAMILIES[_read_config(Path(folder))["model_type"]]
    source = open_folder(Path(folder), next(iter(family.architectures)))
    return family.architecture, hf_mapping.heads_among(family, source.tensors.keys())


def open_folder(folder: Path, architecture: str | None = None) -> Source:
    """Open a model folder as a class; None: as the class that its configuration names.

    Raises:
        InputError: it is not the folder of a supported model, or a file is damaged.
    """
    config = _read_config(folder, architecture)
    family = hf_mapping.FAMILIES[config["model_type"]]
    name = architecture or _named_architecture(config) or next(iter(family.architectures))
    _check_architecture(folder, family, name)
    tensors = detect(folder).open_tensors(folder)
    return Source(folder, family, name, config, _normalize_names(family, name, tensors, folder))


def _check_architecture(folder: Path, family: Family, name: str) -> None:
    if name not in family.architectures:
        choices = ", ".join(family.architectures)
        state = "is for another kind of model" if hf_mapping.family_of(name) else "is unknown"
        raise InputError(f"{folder}: architecture {name!r} {state}; choose one of {choices}, as a text")


def _read_config(folder: Path, architecture: str | None = None) -> dict[str, Any]:
    """Return the folder's configuration, with a known model_type."""
    found = detect(folder)
    config = found.read_config(folder)
    return config | {"model_type": _check_kind(config, folder / found.config, architecture)}


def _check_kind(config: dict[str, Any], file: Any, architecture: str | None = None) -> str:
    """Return the model_type of a configuration; without one, that of the architecture.

    Raises:
        InputError: it is not supported; the message names the file.
    """
    kind = config.get("model_type") or hf_mapping.family_of(architecture or _named_architecture(config) or "")
    if not isinstance(kind, str) or kind not in hf_mapping.FAMILIES:
        choices = " or ".join(hf_mapping.FAMILIES)
        raise InputError(f"{file}: model_type {kind!r} is not supported; it must be {choices}")
    return kind


def _normalize_names(family: Family, architecture: str, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return the tensors under the table's names, without buffers, and each tied tensor once."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        normalized = hf_mapping.normalize_hf_name(family, name)
        if normalized in found:
            raise InputError(f"{folder}: contains {name} under two spellings; remove one")
        if normalized is not None:
            found[normalized] = tensor
    for second, first in family.tied.items():
        if second in found:
            tensor = found.pop(second)
            differ = hf_mapping.has_lm_head(architecture) and first in found and not _equal(tensor, found[first])
            if differ:
                raise InputError(f"{folder}: {second} and {first} differ; untied weights are not supported")
            found.setdefault(first, tensor)
    return found


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and np.array_equal(a.read(), b.read())


def _named_architecture(config: dict[str, Any]) -> str | None:
    listed = config.get("architectures")
    return listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else None


def model_config(source: Source, num_labels: int | None = None) -> ModelConfig:
    """Return the configuration of an opened folder, with another number of labels if one is given.

    Raises:
        InputError: a setting is not supported, or the folder has fewer tensors than its layers need.
    """
    model = source.config if isinstance(source.config, ModelConfig) else _from_files(source, source.config)
    if num_labels is None or num_labels == model.num_labels:
        return model
    return dataclasses.replace(model, num_labels=num_labels, labels=())


def _from_files(source: Source, config: dict[str, Any]) -> ModelConfig:
    file = source.folder / detect(source.folder).config
    model = hf_config.from_hf(config, source.architecture, file)
    per_layer = len(hf_mapping.backbone(source.family, 1)) - len(hf_mapping.backbone(source.family, 0))
    if model.num_layers * per_layer > len(source.tensors):  # before anything is traced
        raise InputError(
            f"{file}: needs {model.num_layers} layers, more than the folder has tensors for; "
            f"use the {file.name} that belongs to the weights"
        )
    return model


def _listed(tensors: Sequence[str]) -> str:
    """Return the first few names, and the number of further ones."""
    more = f" and {len(tensors) - LISTED} more" if len(tensors) > LISTED else ""
    return ", ".join(name[:100] for name in tensors[:LISTED]) + more


def _missing_heads(source: Source, wanted: Wanted, asked: bool, relabelled: bool) -> list[str]:
    """Return the names of the tensors to initialize randomly.

    Args:
        source: the opened folder.
        wanted: the tensors that the model needs.
        asked: whether the caller gave the architecture.
        relabelled: whether the caller gave the number of labels.

    Raises:
        InputError: other tensors are missing, or a shape does not match.
    """
    remade: list[str] = []
    missing: list[str] = []
    layers = sum("attention_norm/scale" in path for _, shapes in wanted.values() for path in shapes)
    backbone = hf_mapping.backbone(source.family, layers)
    for hf_name, (entry, shapes) in wanted.items():
        shape, classifier = tensor_shape(entry, shapes), hf_name.startswith(("classifier.", "score."))
        if hf_name not in source.tensors:
            new = hf_name not in backbone and (asked or (classifier and relabelled))
            (remade if new else missing).append(hf_name)
        elif source.tensors[hf_name].shape != shape:
            if not (classifier and relabelled):
                found, name = source.tensors[hf_name].shape, source.architecture
                raise InputError(f"{source.folder}: {hf_name} has shape {found}, and a {name} needs {shape}")
            remade.append(hf_name)
    if missing:
        hint = "" if backbone & set(missing) else "; name the architecture to initialize its missing head randomly"
        raise InputError(f"{source.folder}: a {source.architecture} lacks {_listed(missing)}{hint}")
    return remade


def _to_parameters(entry: Entry, array: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the parameters that one of Hugging Face's tensors contains."""
    array = array.T if entry.transpose else array
    ends = np.cumsum([shape[-1] for shape in shapes.values()])
    return dict(zip(shapes, np.split(array, ends[:-1], axis=-1), strict=True))
