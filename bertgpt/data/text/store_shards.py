"""Parts of a token store, each made independently from some of the files, and their merge into a store.

A part is a folder with `part.json` and the splits of a store for its files only. Parts that are merged in the order of
their files give the same bytes as one preparation from all files.
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bertgpt.data.text import bits
from bertgpt.data.text.files import stamp
from bertgpt.data.text.integrity import WORDS, check_size, first_changed, hash_arrays
from bertgpt.data.text.store import BOUND, Part, tokenizer_hash, write_part
from bertgpt.data.text.text_source import Files, TextSource
from bertgpt.data.text.workers import id_dtype
from bertgpt.errors import InputError
from bertgpt.json_files import read_json_object
from bertgpt.tokenizers import vocabulary_size

BLOCK = 1 << 17  # numbers copied at a time
KINDS: dict[str, type] = {"files": list, "splits": dict, "hashes": dict, "tokenizer": str}  # the fields of a Part
BOUNDS = {"sentences": "tokens", "documents": "sentences"}  # a file of bounds: their unit


def deal(sizes: Sequence[int], parts: int) -> list[range]:
    """Splits the files, in order, into at most `parts` ranges of about equal bytes, none of them empty.

    A file belongs to the range that contains its middle byte.
    """
    middles = np.cumsum(sizes, dtype=float) - np.asarray(sizes) / 2
    owners = np.minimum(middles * parts / max(1, sum(sizes)), parts - 1).astype(int)
    starts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(sizes)]
    return [range(start, end) for start, end in itertools.pairwise(starts)]


def stamps(files: Files) -> list[tuple[str, int, int | str | None]]:
    """(path, size, time or tag) of each file, as in the `files` of a part."""
    return [(str(path), *stamp(path)) for path in files.train + files.eval]


def make_part(folder: Path, source: TextSource, files: Files, tokenizer: Tokenizer, expected: Sequence[tuple]) -> Part:
    """Tokenizes files in this process, in constant memory, and moves the complete part to the folder.

    Args:
        folder: created, or replaced.
        source: how the files are read.
        files: some of the source's files, in order.
        tokenizer: the store's tokenizer.
        expected: the stamps of the files when the preparation of the store began.

    Raises:
        InputError: a file cannot be read, or has changed since then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        part = write_part(new, source, files, tokenizer)
        for old, now in zip(expected, stamps(files), strict=True):
            if old != now:
                raise InputError(f"{old[0]}: changed while the store was prepared; prepare the store again")
        (new / "part.json").write_text(json.dumps(part._asdict()), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return part


def read_part(folder: Path) -> Part | None:
    """The part that part.json describes; None if the file is missing, damaged, or of another version."""
    path = folder / "part.json"
    try:
        values = read_json_object(path) if path.is_file() else {}
    except InputError:
        return None
    known = values.keys() == KINDS.keys() and all(isinstance(values[name], kind) for name, kind in KINDS.items())
    return Part(**values) if known else None


def merge(folder: Path, parts: Sequence[Path], tokenizer: Tokenizer) -> Part:
    """Writes the splits of all parts, one after the other, to a folder, in constant memory.

    Raises:
        InputError: a part is missing, was made with another tokenizer, or has a file that is missing or changed.
    """
    found = [_need_part(path, tokenizer_hash(tokenizer)) for path in parts]
    splits = {}
    for split in found[0].splits:
        pieces = [(path / split, part.splits[split]) for path, part in zip(parts, found, strict=True)]
        splits[split] = _merge_split(folder / split, pieces, vocabulary_size(tokenizer))
    files = [entry for part in found for entry in part.files]
    return Part(files, splits, hash_arrays(folder, list(splits)), tokenizer_hash(tokenizer))


def _need_part(folder: Path, tokenizer: str) -> Part:
    part = read_part(folder)
    if part is None or part.tokenizer != tokenizer:
        raise InputError(f"{folder}: no part of a store with this tokenizer; prepare the store again")
    changed = first_changed(folder, part.hashes)
    if changed:
        raise InputError(f"{folder / changed}: damaged; delete {folder} and prepare the store again")
    return part


def _merge_split(folder: Path, pieces: list[tuple[Path, dict[str, int]]], vocab_size: int) -> dict[str, int]:
    folder.mkdir(parents=True)
    dtype = id_dtype(vocab_size).newbyteorder("<")
    with open(folder / "tokens.bin", "wb") as target:
        for path, size in pieces:
            for block in _blocks(path / "tokens.bin", dtype, size["tokens"]):
                target.write(block.tobytes())
    for name, unit in BOUNDS.items():
        start = 0
        with open(folder / f"{name}.bin", "wb") as target:
            target.write(np.zeros(1, BOUND).tobytes())
            for path, size in pieces:
                for block in _blocks(path / f"{name}.bin", BOUND, size[name], skip=1):
                    target.write((start + block).tobytes())
                start += size[unit]
    if (pieces[0][0] / WORDS).exists():
        with bits.Bits(folder / WORDS) as words:
            for path, size in pieces:
                check_size(path / WORDS, bits.size(size["tokens"]))
                for values in bits.read(path / WORDS, size["tokens"]):
                    words.write(values)
    counts = np.zeros(vocab_size, BOUND)
    for path, _ in pieces:
        counts += np.concatenate([*_blocks(path / "counts.bin", BOUND, vocab_size)])
    (folder / "counts.bin").write_bytes(counts.tobytes())
    return {key: sum(size[key] for _, size in pieces) for key in pieces[0][1]}


def _blocks(path: Path, dtype: np.dtype, count: int, skip: int = 0) -> Iterator[np.ndarray]:
    """The `count` numbers of a file after the first `skip`, in blocks."""
    check_size(path, (skip + count) * dtype.itemsize)
    for first in range(skip, skip + count, BLOCK):
        yield np.fromfile(path, dtype, BLOCK, offset=first * dtype.itemsize)
