"""Detect the format of a model folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.checkpoints.formats import google_bert, huggingface, openai
from bertgpt.checkpoints.formats.tensors import Tensor
from bertgpt.errors import InputError


class Format(NamedTuple):
    """A format of model folders. To add one, write its module and list it in `FORMATS`.

    Attributes:
        name: the name shown to the user.
        config: the file that contains the configuration, for errors.
        is_in: whether a folder has this format.
        read_config: returns the folder's configuration, with the keys of Hugging Face's config.json.
        open_tensors: returns the folder's tensors under Hugging Face's names, without reading their values.
    """

    name: str
    config: str
    is_in: Callable[[Path], bool]
    read_config: Callable[[Path], dict[str, Any]]
    open_tensors: Callable[[Path], dict[str, Tensor]]


HUGGING_FACE = Format(
    "Hugging Face", huggingface.CONFIG, huggingface.is_in, huggingface.read_config, huggingface.open_tensors
)
OPENAI = Format("OpenAI's GPT-1", openai.SHAPES, openai.is_in, openai.read_config, openai.open_tensors)
GOOGLE = Format(
    "Google's BERT", google_bert.CONFIG, google_bert.is_in, google_bert.read_config, google_bert.open_tensors
)
FORMATS = (OPENAI, GOOGLE, HUGGING_FACE)


def detect(folder: Path) -> Format:
    """Return the format of a folder.

    If no format matches, return Hugging Face's; its reader then raises an error that names the missing file.

    Raises:
        InputError: the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return next((found for found in FORMATS if found.is_in(folder)), HUGGING_FACE)


def is_model_folder(folder: Path) -> bool:
    """Whether a folder has one of the formats."""
    return any(found.is_in(folder) for found in FORMATS)
