"""What a model folder contains, without reading its weights."""

import importlib
from pathlib import Path
from typing import NamedTuple

from bertgpt.checkpoints import hf_mapping
from bertgpt.checkpoints.detect import detect
from bertgpt.checkpoints.load import model_config, open_folder
from bertgpt.checkpoints.parameters import tensor_shape, wanted_tensors
from bertgpt.config import ModelConfig
from bertgpt.model.blocks import Model


class Entry(NamedTuple):
    """A tensor of a folder, under Hugging Face's name, and the parameters of this library that it contains.

    `paths` is empty if the folder's class does not use the tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    paths: tuple[str, ...]


class Contents(NamedTuple):
    """A model and its tensors.

    Attributes:
        format: of the folder, such as "Hugging Face".
        architecture: the class that the folder's configuration names.
        config: of the model.
        entries: the tensors in the folder, in the order of the model; then those that the class does not use.
        heads: the parts besides the encoder that are complete (`hf_mapping.PARTS`), also those of other classes.
        missing: names of tensors that the class needs and the folder lacks.
    """

    format: str
    architecture: str
    config: ModelConfig
    entries: tuple[Entry, ...]
    heads: set[str]
    missing: tuple[str, ...] = ()


def read_contents(folder: str | Path) -> Contents:
    """Return the contents of a model folder.

    Raises:
        InputError: as `load_pretrained`.
    """
    source = open_folder(Path(folder))
    config = model_config(source)
    expected = contents_of(source.architecture, config)
    paths = {entry.name: entry.paths for entry in expected.entries}
    missing = tuple(name for name in paths if name not in source.tensors)
    found = [*(name for name in paths if name in source.tensors), *sorted(source.tensors.keys() - paths.keys())]
    tensors = [source.tensors[name] for name in found]
    entries = tuple(
        Entry(name, tensor.shape, tensor.dtype, paths.get(name, ()))
        for name, tensor in zip(found, tensors, strict=True)
    )
    heads = hf_mapping.heads_among(source.family, source.tensors.keys())
    return Contents(detect(Path(folder)).name, source.architecture, config, entries, heads, missing)


def contents_of(architecture: str, config: ModelConfig) -> Contents:
    """Return the contents of the folder that a model of a class would be exported to."""
    family = hf_mapping.FAMILIES[str(hf_mapping.family_of(architecture))]
    home = importlib.import_module(f"bertgpt.model.{family.architecture}")
    model: Model = getattr(home, architecture)(config)
    entries = tuple(
        Entry(name, tensor_shape(entry, shapes), "float32", tuple(shapes))
        for name, (entry, shapes) in wanted_tensors(family, architecture, model).items()
    )
    return Contents("", architecture, config, entries, hf_mapping.heads(architecture))
