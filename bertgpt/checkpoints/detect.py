"""Which format a model folder has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.checkpoints.formats import huggingface, openai
from bertgpt.checkpoints.formats.tensors import Tensor
from bertgpt.errors import InputError


class Format(NamedTuple):
    """A format of model folders. To add one, write its module and list it in `FORMATS`.

    Attributes:
        name: shown to the user.
        is_in: whether a folder has it.
        read_config: the folder's configuration, in the keys of Hugging Face's config.json.
        open_tensors: the folder's tensors under Hugging Face's names, none of them read yet.
    """

    name: str
    is_in: Callable[[Path], bool]
    read_config: Callable[[Path], dict[str, Any]]
    open_tensors: Callable[[Path], dict[str, Tensor]]


HUGGING_FACE = Format("Hugging Face", huggingface.is_in, huggingface.read_config, huggingface.open_tensors)
OPENAI = Format("OpenAI's GPT-1", openai.is_in, openai.read_config, openai.open_tensors)
FORMATS = (OPENAI, HUGGING_FACE)


def detect(folder: Path) -> Format:
    """The format of a folder; Hugging Face's where it has none, whose reader names the file that is missing.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; nothing is downloaded, so give one that lies here")
    return next((found for found in FORMATS if found.is_in(folder)), HUGGING_FACE)
