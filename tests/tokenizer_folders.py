"""Small tokenizers' folders, for several tests."""

import json
from pathlib import Path

from bertgpt import tokenizers

PIECES = [*tokenizers.BERT_SPECIAL, "a", "b", "##b", "e1", "[", "]"]  # 11 tokens
LETTERS = {"<unk>": 0, "l": 1, "o": 2, "w</w>": 3, "lo": 4, "low</w>": 5}
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


def write_berts(folder: Path) -> Path:
    """vocab.txt of PIECES."""
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return folder


def write_gpts(folder: Path) -> Path:
    """vocab.json of LETTERS, and merges.txt."""
    (folder / "vocab.json").write_text(json.dumps(LETTERS))
    (folder / "merges.txt").write_text("#version: 0.2\nl o\nlo w</w>\n")
    return folder


def write(folder: Path, files: dict) -> Path:
    """JSON files by name."""
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def ids(folder: Path, text: str) -> list[int]:
    """What the folder's tokenizer gives, without [CLS] and [SEP]."""
    return tokenizers.load_tokenizer(folder).encode(text, add_special_tokens=False).ids


def token(content: str, **properties) -> dict:
    """A token as added_tokens_decoder and tokenizer.json have it."""
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False) | {"special": True}
    return {"content": content, **flags, **properties}
