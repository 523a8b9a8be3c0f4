"""Model folders in Hugging Face's layout, read and written."""

import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from tokenizers import Tokenizer

from bertgpt.checkpoints import hf_config
from bertgpt.checkpoints import hf_mapping as names
from bertgpt.checkpoints.formats import openai as openai_release
from bertgpt.checkpoints.formats.tensor_files import SHARD_BYTES, WEIGHTS, Tensor, open_tensors, write_tensors
from bertgpt.checkpoints.hf_mapping import Entry, Family
from bertgpt.config import ModelConfig
from bertgpt.errors import InputError, check_local, one_line
from bertgpt.json_files import read_json_object
from bertgpt.tokenizers import TOKENIZER_FILES, export_tokenizer

Params = Any
CARD = "README.md"
LISTED = 5  # names of tensors in one message
LAST = "config.json"  # the file that makes a folder a model's is put in its place last


def load_pretrained(
    folder: str | Path, architecture: str | None = None, num_labels: int | None = None, *, key: Array | None = None
) -> tuple[nn.Module, Params]:
    """A model and its parameters from a Hugging Face folder, or from OpenAI's release of GPT-1.

    Nothing is downloaded. A bfloat16 or float16 file is read to float32; `model.clone(dtype=jnp.bfloat16)` computes
    in bfloat16. Tensors that the class does not use are listed in one warning.

    For outputs equal to Hugging Face's on a TPU, or on a GPU of the Ampere generation or later, set
    `jax.config.update("jax_default_matmul_precision", "highest")` (or `JAX_DEFAULT_MATMUL_PRECISION=highest` in the
    environment): by default JAX computes float32 products there in bfloat16 or TF32.

    Args:
        folder: with config.json and model.safetensors (or its shards, or pytorch_model.bin where torch is installed);
            or with params_shapes.json and params_*.npy.
        architecture: a class of this library, such as "BertForSequenceClassification"; the folder's where None. A head
            that the folder lacks is made anew when asked for here.
        num_labels: of the classifier; the folder's where None. Another number than the folder's makes a new head.
        key: for the initial values of a head that is made anew; `jax.random.key(0)` where None.

    Returns:
        (model, params): `model.apply({"params": params}, input_ids, ...)`.

    Raises:
        InputError: the folder is no such model, is damaged, or asks for what this library does not compute; the
            message names the file with the key or tensor.
    """
    source = _open(Path(folder), architecture)
    home = importlib.import_module(f"bertgpt.model.{source.family.architecture}")
    model = getattr(home, source.architecture)(_model_config(source, num_labels))
    wanted = _wanted(source.family, source.architecture, model)
    remade = _missing_heads(source, wanted, architecture is not None, num_labels is not None)
    unused = sorted(source.tensors.keys() - wanted.keys())
    if unused:
        warnings.warn(one_line(f"{folder}: {source.architecture} does not use {_listed(unused)}"), stacklevel=2)
    flat: dict[str, Any] = {}
    for theirs, (entry, shapes) in wanted.items():
        if theirs not in remade:
            flat |= _to_ours(entry, source.tensors[theirs].read(), shapes)
    if remade:
        warnings.warn(f"{folder} lacks {_listed(remade)}: made anew, to be trained", stacklevel=2)
        paths = [path for theirs in remade for path in wanted[theirs][1]]
        flat |= initial_values(model, paths, jax.random.key(0) if key is None else key)
    return model, jax.tree.map(jnp.asarray, unflatten_dict(flat, sep="/"))


def initial_values(model: nn.Module, paths: Sequence[str], key: Array) -> dict[str, Array]:
    """The initial values of some parameters, by path; compiled, so that the others are never made."""

    def some(key: Array) -> dict[str, Array]:
        flat = _flatten(model.init(key, example_ids(type(model).__name__))["params"])
        return {path: flat[path] for path in paths}

    return jax.jit(some)(key)


def save_pretrained(
    folder: str | Path,
    model: nn.Module,
    params: Params,
    tokenizer: Tokenizer | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that Hugging Face's `AutoModel...from_pretrained` reads, and `load_pretrained`.

    A new folder appears whole or not at all. Where there is one, each file of it is replaced whole, weights of another
    layout are removed, and an old tokenizer's files where a tokenizer is given. A README.md that is there stays.

    Args:
        folder: made where it is missing.
        model: one of this library's architectures.
        params: its parameters; written as float32.
        tokenizer: written too, as Hugging Face's tokenizer files.
        shard_bytes: the largest weights file.

    Raises:
        InputError: Hugging Face's code cannot express the model, or `params` are not its parameters.
    """
    folder, name = Path(folder), type(model).__name__
    family_name = names.family_of(name)
    if family_name is None:
        raise InputError(f"{name} cannot be exported; only the architectures of this library can")
    family = names.FAMILIES[family_name]
    tensors = to_theirs(family, name, model, params)
    pads = [tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>")] if tokenizer else []
    pad = next((index for index in pads if index is not None), None)
    model_config: ModelConfig = model.config  # type: ignore[attr-defined]
    config = hf_config.to_hf(model_config, name, pad)
    superseded = [*WEIGHTS, *(TOKENIZER_FILES if tokenizer else ())]
    with replacing(folder, superseded) as new:
        write_tensors(new, tensors, shard_bytes)
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (new / CARD).write_text(_card(name, model_config, tensors), encoding="utf-8")
        if tokenizer is not None:
            export_tokenizer(tokenizer, new, model_config.max_positions)


class _Source(NamedTuple):
    """A folder opened: what to read it as, its configuration, and its tensors under the table's names."""

    folder: Path
    family: Family
    architecture: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]


# Their name of every tensor of a model -> its entry, and the shapes of the parameters that it holds.
_Wanted = dict[str, tuple[Entry, dict[str, tuple[int, ...]]]]


def family_of_folder(folder: str | Path) -> str:
    """ "bert" or "gpt": what kind of model a folder holds.

    Raises:
        InputError: it holds neither.
    """
    return names.FAMILIES[_read_config(Path(folder))["model_type"]].architecture


def _open(folder: Path, architecture: str | None) -> _Source:
    config = _read_config(folder, architecture)
    family = names.FAMILIES[config["model_type"]]
    name = architecture or _named_architecture(config) or next(iter(family.architectures))
    if name not in family.architectures:
        choices = ", ".join(family.architectures)
        raise InputError(f"{folder}: architecture {name!r} is unknown; choose one of {choices}")
    tensors = openai_release.open_release(folder) if _is_release(folder) else open_tensors(folder)
    return _Source(folder, family, name, config, _canonical(family, name, tensors, folder))


def _is_release(folder: Path) -> bool:
    return (folder / openai_release.SHAPES).exists() and not (folder / "config.json").exists()


def _read_config(folder: Path, architecture: str | None = None) -> dict[str, Any]:
    """config.json, or what OpenAI's shapes say, with a known model_type."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; nothing is downloaded, so give one that lies here")
    if _is_release(folder):
        return openai_release.read_config(folder)
    config = read_json_object(folder / "config.json")
    kind = config.get("model_type") or names.family_of(architecture or _named_architecture(config) or "")
    if not isinstance(kind, str) or kind not in names.FAMILIES:
        choices = " or ".join(names.FAMILIES)
        raise InputError(f"{folder / 'config.json'}: model_type {kind!r} is not supported; it must be {choices}")
    return config | {"model_type": kind}


def _canonical(family: Family, architecture: str, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors under the table's names, without buffers; a tied one once."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        canonical = names.canonical(family, name)
        if canonical in found:
            raise InputError(f"{folder}: {name} is there under two spellings; remove one")
        if canonical is not None:
            found[canonical] = tensor
    for second, first in family.tied.items():
        if second in found:
            tensor = found.pop(second)
            differ = names.has_vocabulary_head(architecture) and first in found and not _equal(tensor, found[first])
            if differ:
                raise InputError(f"{folder}: {second} and {first} differ; untied weights are not supported")
            found.setdefault(first, tensor)
    return found


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and np.array_equal(a.read(), b.read())


def _named_architecture(config: dict[str, Any]) -> str | None:
    listed = config.get("architectures")
    return listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else None


def _model_config(source: _Source, num_labels: int | None) -> ModelConfig:
    file = source.folder / "config.json"
    model = hf_config.from_hf(source.config, source.architecture, file)
    per_layer = len(names.backbone(source.family, 1)) - len(names.backbone(source.family, 0))
    if model.num_layers * per_layer > len(source.tensors):  # before anything is traced
        raise InputError(f"{file}: asks for {model.num_layers} layers, more than the folder has tensors for")
    if num_labels is None or num_labels == model.num_labels:
        return model
    return dataclasses.replace(model, num_labels=num_labels, labels=())


def _wanted(family: Family, name: str, model: Any) -> _Wanted:
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_ids(name))["params"]
    flat = {path: leaf.shape for path, leaf in _flatten(shapes).items()}
    return {
        entry.theirs: (entry, {path: flat[path] for path in _paths(entry, family, name)})
        for entry in names.entries(family, name, model.config.num_layers)
    }


def takes_choices(architecture: str) -> bool:
    """Whether its inputs are [B C T]."""
    return architecture in ("BertForMultipleChoice", "OpenAIGPTDoubleHeadsModel")


def example_ids(architecture: str) -> Array:
    """Ids that a model can be initialised with."""
    return jnp.zeros((1, 1, 1) if takes_choices(architecture) else (1, 1), jnp.int32)


def _paths(entry: Entry, family: Family, name: str) -> list[str]:
    """An entry's parameters in this model's tree; a bare encoder has no prefix."""
    prefix = f"{family.prefix}/" if names.bare(family, name) else ""
    return [path.removeprefix(prefix) for path in entry.ours]


def _listed(tensors: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(tensors) - LISTED} more" if len(tensors) > LISTED else ""
    return ", ".join(name[:100] for name in tensors[:LISTED]) + more


def _missing_heads(source: _Source, wanted: _Wanted, asked: bool, relabelled: bool) -> list[str]:
    """The tensors of heads that are to be made anew.

    Args:
        asked: the architecture was named by the caller.
        relabelled: the number of labels was.

    Raises:
        InputError: other tensors are missing, or a shape does not fit.
    """
    remade: list[str] = []
    missing: list[str] = []
    layers = sum("attention_norm/scale" in path for _, shapes in wanted.values() for path in shapes)
    backbone = names.backbone(source.family, layers)
    for theirs, (entry, shapes) in wanted.items():
        shape, classifier = _their_shape(entry, shapes), theirs.startswith(("classifier.", "score."))
        if theirs not in source.tensors:
            new = theirs not in backbone and (asked or (classifier and relabelled))
            (remade if new else missing).append(theirs)
        elif source.tensors[theirs].shape != shape:
            if not (classifier and relabelled):
                found, name = source.tensors[theirs].shape, source.architecture
                raise InputError(f"{source.folder}: {theirs} has shape {found}, and a {name} needs {shape}")
            remade.append(theirs)
    if missing:
        hint = "" if backbone & set(missing) else "; name an architecture to have a head made anew"
        raise InputError(f"{source.folder}: a {source.architecture} lacks {_listed(missing)}{hint}")
    return remade


def _their_shape(entry: Entry, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    first = next(iter(shapes.values()))
    joined = (*first[:-1], sum(shape[-1] for shape in shapes.values()))
    return joined[::-1] if entry.transpose else joined


def _to_ours(entry: Entry, array: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """One tensor of theirs as the parameters that it holds."""
    array = array.T if entry.transpose else array
    ends = np.cumsum([shape[-1] for shape in shapes.values()])
    return dict(zip(shapes, np.split(array, ends[:-1], axis=-1), strict=True))


def to_theirs(family: Family, name: str, model: Any, params: Params) -> dict[str, np.ndarray]:
    """A model's parameters as their tensors."""
    wanted = _wanted(family, name, model)
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in _flatten(params).items()}
    shapes = {path: shape for _, paths in wanted.values() for path, shape in paths.items()}
    for path in sorted(shapes.keys() ^ flat.keys()):
        raise InputError(f"params {'lack' if path in shapes else 'have'} {path}, unlike a {name}")
    for path, shape in shapes.items():
        if flat[path].shape != shape:
            raise InputError(f"params: {path} has shape {flat[path].shape}, and the model's config asks for {shape}")
    prefix = f"{family.prefix}." if names.bare(family, name) else ""
    tensors = {}
    for theirs, (entry, paths) in wanted.items():
        array = np.concatenate([flat[path] for path in paths], axis=-1)
        tensors[theirs.removeprefix(prefix)] = array.T if entry.transpose else array
    return tensors


def _flatten(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


@contextlib.contextmanager
def replacing(folder: Path, superseded: Iterable[str] = ()) -> Iterator[Path]:
    """An empty folder, whose files take their places in `folder` when all are written: weights before config.json.

    Args:
        folder: made where it is missing; all of it appears at once then.
        superseded: globs of files that go where they were not written anew.

    Raises:
        InputError: `folder` is a file or an address.
    """
    check_local("the folder to write to", folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # On the file system that the files will be on: a folder that is there may be a link or a mount.
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder if folder.is_dir() else folder.parent))
    try:
        yield new
        _apply_umask(new)
        if not folder.exists():
            new.replace(folder)
            return
        if (folder / CARD).exists():  # somebody may have written on it
            (new / CARD).unlink(missing_ok=True)
        written = sorted(file.name for file in new.iterdir())
        for name in written:
            if name != LAST:
                os.replace(new / name, folder / name)
        for file in {file for pattern in superseded for file in folder.glob(pattern)}:
            if file.name not in written:
                file.unlink()
        if LAST in written:
            os.replace(new / LAST, folder / LAST)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    """Modes as any new file's: mkdtemp and safetensors make theirs for the owner alone."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.iterdir():
        file.chmod(mode)
    folder.chmod(mode | mode >> 2 & 0o111)


def _card(name: str, config: ModelConfig, tensors: dict[str, np.ndarray]) -> str:
    """A short model card."""
    count = sum(array.size for array in tensors.values())
    auto = "AutoModel" if name in ("BertModel", "OpenAIGPTModel") else name
    return f"""---
library_name: transformers
tags: [bertgpt, {"bert" if config.architecture == "bert" else "openai-gpt"}]
---

# {name}

{count:,} parameters in float32: {config.num_layers} layers of width {config.hidden_size} with {config.num_heads} heads,
{config.max_positions} positions, a vocabulary of {config.vocab_size:,}.
Trained and written by bertgpt.

```python
from transformers import {auto}

model = {auto}.from_pretrained("this folder")
```

In JAX: `model, params = bertgpt.load_pretrained("this folder")`.

What text it learnt from, what it is for and how well it does are for whoever shares it to add here.
"""
