"""Which class of transformers a tokenizer's folder names, and the clean-up that goes with it."""

from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.errors import InputError
from bertgpt.json_files import read_json_object
from bertgpt.tokenizers.checks import is_file
from bertgpt.tokenizers.kinds import SETTINGS

CONFIG = "tokenizer_config.json"

# The classes, less "Tokenizer" or "TokenizerFast", that clean text up as BERT's does; and GPT-1's.
BERTS = ("Bert", "ConvBert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MobileBert", "RetriBert", "SqueezeBert")
DPRS = ("DPRContextEncoder", "DPRQuestionEncoder", "DPRReader")
CLASSES = dict.fromkeys(BERTS + DPRS, "bert") | {"OpenAIGPT": "gpt"}
# The model types whose tokenizers have these classes, where a folder names no class.
TYPES = ("bert", "convbert", "distilbert", "dpr", "electra", "ernie", "layoutlm", "lxmert", "megatron-bert")
MORE_TYPES = ("mobilebert", "nezha", "nomic_bert", "qdqbert", "retribert", "squeezebert", "visual_bert")
MODEL_TYPES = dict.fromkeys(TYPES + MORE_TYPES, "bert") | {"openai-gpt": "gpt"}
# Classes in Python or around SentencePiece, for which transformers does not encode by tokenizer.json.
PYTHON = (
    "BertGeneration",
    "BertJapanese",
    "BertTokenizerLegacy",
    "Bertweet",
    "BioGpt",
    "Flaubert",
    "Phobert",
    "RoCBert",
)
MORE_PYTHON = (
    "Bartpho",
    "BlenderbotSmall",
    "Cpm",
    "CpmAnt",
    "CTRL",
    "FSMT",
    "GPTNeoXJapanese",
    "GPTSw3",
    "Tapas",
    "XLM",
)


class Reader(NamedTuple):
    """What reads a folder's tokenizer.

    Attributes:
        family: "bert", "gpt", "other", or None where nothing tells.
        told: the file and the value that tell it, for errors.
        reads_json: whether it encodes by tokenizer.json.
    """

    family: str | None
    told: str
    reads_json: bool


def find_reader(folder: Path, config: dict[str, Any]) -> Reader:
    """The class that tokenizer_config.json or else config.json names, or the one of config.json's model type.

    Args:
        folder: of the tokenizer.
        config: its tokenizer_config.json; empty without it.
    """
    model = read_json_object(folder / "config.json") if is_file(folder / "config.json") else {}
    for file, values in ((CONFIG, config), ("config.json", model)):
        named = values.get("tokenizer_class")
        if named is not None:
            name = str(named).removesuffix("Fast").removesuffix("Tokenizer")
            return Reader(
                CLASSES.get(name, "other"),
                f"{folder / file}: tokenizer_class {named!r}",
                name not in PYTHON + MORE_PYTHON,
            )
    kind = model.get("model_type")
    family = None if kind is None else MODEL_TYPES.get(str(kind), "other")
    return Reader(family, f"{folder / 'config.json'}: model_type {kind!r}", True)


def check_reader(reader: Reader, file: Path) -> None:
    """
    Raises:
        InputError: the class would make another tokenizer of the file than this library does.
    """
    if file.name == "tokenizer.json":
        if not reader.reads_json:
            raise InputError(f"{reader.told} encodes by code of its own and not by tokenizer.json; it is not supported")
    elif reader.family not in (None, "bert" if file.name == "vocab.txt" else "gpt"):
        raise InputError(
            f"{reader.told} is not supported with {file.name}; classes with BERT's clean-up are with vocab.txt, "
            "OpenAIGPTTokenizer is with vocab.json, and others are where they are saved as tokenizer.json"
        )


def read_settings(file: Path, config: dict[str, Any]) -> dict[str, bool | None]:
    """What tokenizer_config.json says of BERT's clean-up, in the words of the normalizer.

    Raises:
        InputError: a setting is neither true nor false.
    """
    for key in SETTINGS:
        if not isinstance(config.get(key), bool | None):
            raise InputError(f"{file}: {key} is {config[key]!r}; it must be true or false")
    lowercase, characters = (config.get(key) is not False for key in ("do_lower_case", "tokenize_chinese_chars"))
    return {
        "lowercase": lowercase,
        "handle_chinese_chars": characters,
        "strip_accents": config.get("strip_accents"),
    }
