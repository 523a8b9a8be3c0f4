"""Writes tokenizers as Hugging Face files."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bertgpt.tokenizers.kinds import BERT_SPECIAL, GPT_SPECIAL, SETTINGS, is_gpts


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes `tokenizer.json` into the folder."""
    (Path(folder) / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def export_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes Hugging Face's files: tokenizer.json, tokenizer_config.json, and vocab.txt or vocab.json + merges.txt.

    Hugging Face's BertTokenizer and OpenAIGPTTokenizer add their own clean-up to vocab.txt or vocab.json. So a
    tokenizer with another clean-up has neither; tokenizer.json describes it. Added tokens and their properties are also
    in tokenizer_config.json.

    Args:
        tokenizer: any tokenizer.
        folder: an existing folder.
        max_length: the model's number of positions.
    """
    save_tokenizer(tokenizer, folder)
    description = json.loads(tokenizer.to_str())
    model, normalizer = description["model"], description["normalizer"] or {}
    added = {token["id"]: {key: token[key] for key in token if key != "id"} for token in description["added_tokens"]}
    settings: dict[str, Any] = {"model_max_length": max_length, "added_tokens_decoder": added}
    if _is_berts(description):
        settings |= {"tokenizer_class": "BertTokenizer"}
        settings |= {hf_key: normalizer[key] for hf_key, key in SETTINGS.items()}
        settings |= _roles(BERT_SPECIAL)
        (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in _lines(model["vocab"])), encoding="utf-8")
    elif _is_gpts(description):
        settings |= {"tokenizer_class": "OpenAIGPTTokenizer"} | _roles(GPT_SPECIAL)
        merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
        _write_json(folder / "vocab.json", model["vocab"])
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    else:  # transformers adds the token of a role, so only tokens that are special already have one
        special = {token["content"] for token in added.values()}
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings |= _roles(token for token in (*GPT_SPECIAL, *BERT_SPECIAL) if token in special)
    _write_json(folder / "tokenizer_config.json", settings)


def _roles(tokens: Iterable[str]) -> dict[str, str]:
    return {f"{token[1:-1].lower()}_token": token for token in tokens}


def _lines(vocabulary: dict[str, int]) -> list[str]:
    """The lines of vocab.txt: one piece per id, and placeholders for unused ids."""
    pieces = {index: piece for piece, index in vocabulary.items()}
    return [pieces.get(index, f"[unused_id_{index}]") for index in range(max(pieces) + 1)]


def _is_berts(description: dict[str, Any]) -> bool:
    """Whether Hugging Face's BertTokenizer is the same, given the vocabulary, SETTINGS and the added tokens."""
    model, normalizer = description["model"], description["normalizer"] or {}
    wanted = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    return (
        model | wanted | {"max_input_chars_per_word": 100} == model
        and normalizer | {"type": "BertNormalizer", "clean_text": True} == normalizer
        and description["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and _adds(description, BERT_SPECIAL, max(model["vocab"].values()) + 1)
        and all(piece == piece.rstrip() and "\n" not in piece for piece in model["vocab"])  # else not a line
    )


def _is_gpts(description: dict[str, Any]) -> bool:
    """Whether Hugging Face's OpenAIGPTTokenizer is the same, given the vocabulary, merges and the added tokens.

    For a tokenizer with OpenAI's clean-up: the same but for the clean-up, which no class of Hugging Face has.
    """
    return is_gpts(description) and _adds(description, GPT_SPECIAL, len(description["model"]["vocab"]))


def _adds(description: dict[str, Any], special: Sequence[str], size: int) -> bool:
    """Whether the added tokens are those of the class, marked as special, and others after the vocabulary.

    Args:
        description: the JSON of the tokenizer.
        special: the tokens that the class always adds, as special tokens.
        size: the number of ids in the vocabulary's file.
    """
    vocabulary, added = description["model"]["vocab"], description["added_tokens"]
    further = [token["id"] for token in added if token["content"] not in vocabulary]
    properties = {token["content"]: token["special"] for token in added}
    return all(token in vocabulary and properties.get(token) for token in special) and (
        sorted(further) == [*range(size, size + len(further))]
    )


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
