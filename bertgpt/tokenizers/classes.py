"""The class of transformers that a tokenizer's folder names, and the clean-up that belongs to it."""

from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.errors import InputError
from bertgpt.json_files import read_json_object
from bertgpt.tokenizers.checks import is_file
from bertgpt.tokenizers.kinds import DEFAULTS, SETTINGS

CONFIG = "tokenizer_config.json"

# Class names, without Tokenizer or TokenizerFast at their end, that clean text as BERT does; and GPT-1's.
BERTS = ("Bert", "ConvBert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MobileBert", "RetriBert", "SqueezeBert")
DPRS = ("DPRContextEncoder", "DPRQuestionEncoder", "DPRReader")
CLASSES = dict.fromkeys(BERTS + DPRS, "bert") | {"OpenAIGPT": "gpt"}
# The model types that have these classes, for a folder that names no class.
TYPES = (
    *("bert", "convbert", "distilbert", "dpr", "electra", "ernie", "layoutlm", "lxmert", "megatron-bert"),
    *("mobilebert", "nezha", "nomic_bert", "qdqbert", "retribert", "squeezebert", "visual_bert"),
)
MODEL_TYPES = dict.fromkeys(TYPES, "bert") | {"openai-gpt": "gpt"}
# Classes written in Python or based on SentencePiece: transformers does not encode with the folder's tokenizer.json.
WITHOUT_JSON = frozenset(
    (
        *("Bartpho", "BertGeneration", "BertJapanese", "BertTokenizerLegacy", "Bertweet", "BioGpt"),
        *("BlenderbotSmall", "Cpm", "CpmAnt", "CTRL", "Flaubert", "FSMT", "GPTNeoXJapanese", "GPTSw3", "Phobert"),
        *("ProphetNet", "RoCBert", "Tapas", "XLM"),
    )
)


class Reader(NamedTuple):
    """The class of transformers that reads a folder's tokenizer.

    Attributes:
        family: "bert", "gpt" or "other"; None if no file names the class.
        told: the file and the value that name the class, for errors.
        reads_json: whether the class encodes with tokenizer.json.
    """

    family: str | None
    told: str
    reads_json: bool


def find_reader(folder: Path, config: dict[str, Any]) -> Reader:
    """The class named by tokenizer_config.json, else by config.json, else the class of config.json's model type.

    Args:
        folder: of the tokenizer.
        config: its tokenizer_config.json; empty if it has none.

    Raises:
        InputError: config.json cannot be read.
    """
    model = read_json_object(folder / "config.json") if is_file(folder / "config.json") else {}
    for file, values in ((CONFIG, config), ("config.json", model)):
        named = values.get("tokenizer_class")
        if named is not None:
            name = str(named).removesuffix("Fast").removesuffix("Tokenizer")
            told = f"{folder / file}: tokenizer_class {named!r:.80}"
            return Reader(CLASSES.get(name, "other"), told, name not in WITHOUT_JSON)
    kind = model.get("model_type")
    family = None if kind is None else MODEL_TYPES.get(str(kind), "other")
    return Reader(family, f"{folder / 'config.json'}: model_type {kind!r:.80}", True)


def check_reader(reader: Reader, file: Path, family: str | None) -> None:
    """Checks that the folder's class encodes with the file as this library does.

    Args:
        reader: of the folder.
        file: the vocabulary.
        family: the family whose clean-up this library adds; None if the file describes its own clean-up.

    Raises:
        InputError: the class would make another tokenizer from the file.
    """
    if family is None and not reader.reads_json:
        raise InputError(
            f"{reader.told} is not supported: it does not encode with tokenizer.json, but with its own code"
        )
    if family is not None and reader.family not in (None, family):
        raise InputError(
            f"{reader.told} is not supported with {file.name}: vocab.txt is read for classes that clean text as "
            "BertTokenizer does, and vocab.json for OpenAIGPTTokenizer; for others, use their tokenizer.json"
        )


def read_settings(file: Path, config: dict[str, Any], bert: bool) -> dict[str, bool | None]:
    """The settings of BERT's clean-up in tokenizer_config.json, by the normalizer's names.

    Args:
        file: named in errors.
        config: its content.
        bert: whether the tokenizer is known to be BERT's; then missing settings have Hugging Face's defaults.

    Raises:
        InputError: a setting is neither true nor false.
    """
    for key in SETTINGS:
        if not isinstance(config.get(key), bool | None):
            raise InputError(f"{file}: {key} is {config[key]!r}; it must be true or false")
    told = {key: config[key] for key in SETTINGS if config.get(key) is not None}
    found = DEFAULTS | told if bert else told
    return {SETTINGS[key]: value for key, value in found.items()}
