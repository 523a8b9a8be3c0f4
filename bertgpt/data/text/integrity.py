"""Checks that a token store is intact: the types in its meta.json, and the sizes, bounds and hashes of its arrays."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertgpt.errors import InputError

ARRAYS = ("tokens.bin", "sentences.bin", "documents.bin", "counts.bin")  # of each split
WORDS = "words.bin"  # of each split of segmented text
SIZES = ("tokens", "sentences", "documents", "text_bytes")  # of each split in meta.json
TYPES: dict[str, type] = {
    "identity": dict,
    "tokenizer": str,
    "wanted": dict,
    "files": list,
    "dtype": str,
    "vocab_size": int,
    "splits": dict,
}
FILE_KEYS = {"path", "size", "modified", "hash"}  # of each entry of "files"
MOST_IDS = 1 << 32
SPLIT = re.compile(r"(train|eval)(?:\.[\w-]+)?")
BLOCK = 1 << 20  # bounds checked at a time


def check_meta(meta: Any) -> str | None:
    """What is wrong with a parsed meta.json, in one phrase; None if nothing is."""
    if not isinstance(meta, dict):
        return "not a JSON object"
    for key, kind in TYPES.items():
        if type(meta.get(key)) is not kind:
            return f"{key} is missing or not of type {kind.__name__}"
    if not all(isinstance(entry, dict) and entry.keys() >= FILE_KEYS for entry in meta["files"]):
        return "an entry of files lacks path, size, modified or hash"
    if meta["dtype"] not in ("uint16", "uint32") or not 0 < meta["vocab_size"] <= MOST_IDS:
        return f"dtype {meta['dtype']} or vocab_size {meta['vocab_size']} is invalid"
    splits = list(meta["splits"])
    kinds = [match[1] for split in splits if (match := SPLIT.fullmatch(split))]
    if len(kinds) < len(splits) or not {"train", "eval"} <= set(kinds):
        return "splits are not named train and eval"
    for split, sizes in meta["splits"].items():
        if not isinstance(sizes, dict) or any(type(sizes.get(key)) is not int or sizes[key] < 1 for key in SIZES):
            return f"{split} lacks the count of its {', '.join(SIZES)}"
    arrays = (*ARRAYS, WORDS) if meta["identity"].get("segmenter") else ARRAYS
    hashes, names = meta.get("hashes"), {f"{split}/{name}" for split in splits for name in arrays}
    if hashes is not None and not (isinstance(hashes, dict) and hashes.keys() == names):
        return "hashes do not list its arrays"
    return None


def hash_arrays(folder: Path, splits: Sequence[str]) -> dict[str, str]:
    """BLAKE2b of each array file, by its name in the folder, such as train/tokens.bin."""
    names = [f"{split}/{name}" for split in splits for name in (*ARRAYS, WORDS) if (folder / split / name).exists()]
    return {name: hash_file(folder / name) for name in names}


def hash_file(path: Path) -> str:
    """BLAKE2b of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def first_changed(folder: Path, hashes: dict[str, str]) -> str | None:
    """The first file that is missing or has another hash; None if no file changed."""
    for name, expected in hashes.items():
        if not (folder / name).is_file() or hash_file(folder / name) != expected:
            return name
    return None


def map_array(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """The numbers of a file [count], memory-mapped.

    Raises:
        InputError: the file is missing or has another size.
    """
    check_size(path, count * dtype.itemsize)
    return np.memmap(path, dtype, "r", shape=(count,))


def map_ends(path: Path, dtype: np.dtype, count: int, last: int) -> np.ndarray:
    """The ends of pieces [count + 1], with a 0 before them, memory-mapped.

    Raises:
        InputError: as `map_array`, or the ends do not increase from 0 to `last`.
    """
    ends = map_array(path, dtype, count + 1)
    blocks = (ends[start : start + BLOCK + 1] for start in range(0, count, BLOCK))
    if ends[0] != 0 or ends[-1] != last or not all((block[1:] > block[:-1]).all() for block in blocks):
        raise InputError(f"{path}: damaged (bounds must rise from 0 to {last}); delete its store to prepare it again")
    return ends


def check_size(path: Path, size: int) -> None:
    """Checks that a store's file has `size` bytes, the size that meta.json gives.

    Raises:
        InputError: the file has another size, or is missing.
    """
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        fault = "missing" if found is None else f"damaged ({found} bytes, expected {size})"
        raise InputError(f"{path}: {fault}; delete its store to prepare it again")
