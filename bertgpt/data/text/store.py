"""The token store: a corpus as memory-mapped token ids with sentence and document bounds.

A store is a folder with `meta.json`, the `tokenizer.json` used to make it, and one folder per split: `train` and
`eval`, or `train.NAME` and `eval.NAME` for each source of a mixture and each of several held-out sets. Each split has
flat little-endian files: `tokens.bin` (uint16, or uint32 for vocabularies over 65,536), `sentences.bin` (int64: 0, then
the end of each sentence in tokens), `documents.bin` (int64: 0, then the end of each document in sentences) and
`counts.bin` (int64: how often each id occurs). Text whose words a segmenter found also has `words.bin` (one bit a
token, the lowest bit first: whether the token continues a word).
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from bertgpt.data.text import bits, segmenter
from bertgpt.data.text.files import File, open_raw, stamp
from bertgpt.data.text.integrity import WORDS, check_meta, first_changed, hash_arrays, map_array, map_ends
from bertgpt.data.text.text_source import Files, TextSource
from bertgpt.data.text.workers import Workers, id_dtype, pieces
from bertgpt.errors import InputError, check_local
from bertgpt.tokenizers import cleanup_identity, installed_cleanup, save_tokenizer, vocabulary_size

FORMAT = 1  # incremented whenever the files or the splitting rule change
HASH_BLOCK = 1 << 20
BOUND = np.dtype("<i8")  # where a sentence or a document ends


class Part(NamedTuple):
    """What was tokenized, as plain JSON values.

    Attributes:
        files: path, size, modified and hash of each input file.
        splits: tokens, sentences, documents and text_bytes of each split.
        hashes: the hash of each array, by its name, such as train/tokens.bin.
        tokenizer: the hash of the tokenizer.
    """

    files: list[dict[str, Any]]
    splits: dict[str, dict[str, int]]
    hashes: dict[str, str]
    tokenizer: str


class Split(NamedTuple):
    """One split of a store, memory-mapped. A bound is the end of a piece; the first piece begins at 0.

    Attributes:
        tokens: [N] uint16 or uint32.
        sentences: [S + 1] int64 in tokens, from 0.
        documents: [D + 1] int64 in sentences, from 0.
        counts: [V] int64, how often each id occurs.
        text_bytes: UTF-8 bytes of the text that the tokens came from, without white space between sentences.
        words: [ceil(N / 8)] uint8, one bit a token: whether it continues a word; None if the text was not segmented.
    """

    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    counts: np.ndarray
    text_bytes: int
    words: np.ndarray | None = None

    def continues(self, index: np.ndarray) -> np.ndarray | None:
        """Whether the tokens at some places continue a word, bool; None if the text was not segmented."""
        if self.words is None:
            return None
        return (self.words[index >> 3] >> (index & 7).astype(np.uint8) & 1).astype(bool)


def stale_reason(folder: Path, source: TextSource, tokenizer: dict[str, Any]) -> str | None:
    """Why the store in the folder cannot be used, in one phrase; None if it can.

    Args:
        folder: the store.
        source: the text.
        tokenizer: plain values that identify the wanted tokenizer, as given to `prepare`; or {"sha256": its hash}.
    """
    if not (folder / "meta.json").exists():
        return "not found"
    meta = _read_meta(folder)
    found, expected = meta["identity"], identity(source)
    if source.segmented and not found.get("segmenter"):
        return "words not found yet"
    if found.get("segmenter") and expected.get("segmenter") is None:
        expected["segmenter"] = found["segmenter"]  # training needs no segmenter, and may ignore the words
    for key in expected | found:
        if found.get(key) != expected.get(key):
            return f"{key} changed"
    made = meta.get("cleanup")
    if made is not None and made != installed_cleanup():
        return f"clean-up changed from {_described(made)} to {_described(installed_cleanup())}"
    if tokenizer not in (meta["wanted"], {"sha256": meta["tokenizer"]}):
        return "tokenizer changed"
    return _changed_file(meta["files"], source.files())


def _described(cleanup: Any) -> str:
    return ", ".join(map(str, cleanup.values())) if isinstance(cleanup, dict) else "none"


def digest(folder: Path, words: bool = True) -> str:
    """A hash of what a store was made from, file contents included. Stores with equal hashes give equal batches.

    Without `words`, the segmenter is left out: for batches that do not depend on the bounds of words.
    """
    meta = _read_meta(folder)
    contents = [entry["hash"] for entry in meta["files"]]
    identity = {name: value for name, value in meta["identity"].items() if words or name != "segmenter"}
    parts = [identity, meta["tokenizer"], contents, meta["splits"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer's JSON form, and of what else decides its words."""
    cleanup = cleanup_identity(tokenizer)
    text = tokenizer.to_str() + (json.dumps(cleanup) if cleanup else "")
    return hashlib.sha256(text.encode()).hexdigest()


def prepare(
    folder: Path,
    source: TextSource,
    tokenizer: Tokenizer,
    wanted: dict[str, Any],
    workers: int = 1,
    progress: Callable[[str, float], object] = lambda split, size: None,
) -> None:
    """Tokenizes the corpus in `workers` processes, in constant memory, and moves the complete store to the folder.

    Order and content do not depend on the number of workers. A special token spelled out in the text is read as text.

    Args:
        folder: created, or replaced once the new store is complete.
        source: the text.
        tokenizer: its vocabulary size decides the width of an id.
        wanted: plain values that identify the tokenizer; stored for `stale_reason`.
        workers: number of processes; 1 means this process.
        progress: called with a split, and the number of bytes that were read of its files since the last call.

    Raises:
        InputError: a file cannot be read, a split has no text, or the folder is not empty and not a store.
    """
    check_replaceable(folder)
    with temporary_folder(folder) as new:
        part = write_part(new, source, source.files(), tokenizer, workers, progress)
        finish(folder, new, source, tokenizer, wanted, part)


def check_replaceable(folder: Path) -> None:
    """Checks that a store may be written to the folder.

    Raises:
        InputError: the folder is not empty and not a store.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "meta.json").is_file()):
        raise InputError(f"{folder}: not a token store, so it is not replaced; choose another folder as data.store")


def remove_leftovers(folder: Path) -> None:
    """Removes temporary folders that killed preparations of the store left next to it.

    Call it only while no preparation of the store can run. If a preparation was killed while it replaced the store, the
    old store is put back.
    """
    name = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{16}}\.(tmp|old)")  # not those of a store called NAME.v2
    stale = [path for path in folder.parent.iterdir() if name.fullmatch(path.name)]
    for path in stale:
        if path.suffix == ".old" and (path / "meta.json").is_file() and not folder.exists():
            path.rename(folder)
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """An empty folder next to another, with a unique name; removed at the end."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_part(
    folder: Path,
    source: TextSource,
    files: Files,
    tokenizer: Tokenizer,
    workers: int = 1,
    progress: Callable[[str, float], object] = lambda split, size: None,
) -> Part:
    """Tokenizes some files of a corpus to one folder per split, in constant memory; arguments as in `prepare`.

    Raises:
        InputError: a file cannot be read.
    """
    described = [_describe(path) for path in files.train + files.eval]
    with Workers(tokenizer, source.language, source.sentence_per_line, source.segmented, workers) as pool:
        splits = {
            split: _write_split(
                folder / split, source.documents(split, files, functools.partial(progress, split)), pool
            )
            for split in source.splits()
        }
    return Part(described, splits, hash_arrays(folder, list(splits)), tokenizer_hash(tokenizer))


def finish(
    folder: Path, new: Path, source: TextSource, tokenizer: Tokenizer, wanted: dict[str, Any], part: Part
) -> None:
    """Adds the tokenizer and meta.json to a folder with all splits of a corpus, and moves it to the store's place.

    Raises:
        InputError: a split has no text.
    """
    empty = [split for split, sizes in part.splits.items() if not sizes["tokens"]]
    if empty:
        raise InputError(_empty(empty, source))
    if source.segmented:
        segmenter.cut("")  # the store records the segmenter, so it must be installed
    vocab_size = vocabulary_size(tokenizer)
    meta = {
        "identity": identity(source),
        "tokenizer": tokenizer_hash(tokenizer),
        "wanted": wanted,
        "cleanup": cleanup_identity(tokenizer),
        "files": part.files,
        "dtype": id_dtype(vocab_size).name,
        "vocab_size": vocab_size,
        "splits": part.splits,
        "hashes": part.hashes,
    }
    save_tokenizer(tokenizer, new)
    (new / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    _replace(folder, new)


def make_store(folder: str | Path, source: TextSource, tokenizer: Tokenizer, workers: int = 1) -> dict[str, Split]:
    """Opens the store in a folder. If it is missing, or its text or tokenizer changed, it is made first.

    A run with `data.store` at the folder and `tokenizer.path` at the tokenizer uses the same store.

    Args:
        folder: of the store; its parent folders are created.
        source: the text. Its fields are the keys `data.train`, `data.eval`, ... of a run.
        tokenizer: a WordPiece for BERT, a BPE for GPT-1.
        workers: number of processes that tokenize; 1 means this process. A script that gives more needs the guard
            `if __name__ == "__main__":`.

    Returns:
        The splits by name: "train" and "eval". If the source has several texts or held-out sets with names, their
        splits are "train.NAME" and "eval.NAME".

    Raises:
        InputError: a file cannot be read, a split has no text, the folder is an address, or it is not empty and not a
            store.
    """
    check_local("the store", folder)
    folder, wanted = Path(folder), {"sha256": tokenizer_hash(tokenizer)}
    if stale_reason(folder, source, wanted) is not None:
        prepare(folder, source, tokenizer, wanted, workers)
    return open_store(folder)


def open_store(folder: str | Path) -> dict[str, Split]:
    """Memory-maps the splits of a store, by name. Its tokenizer is `load_tokenizer(folder)`.

    Raises:
        InputError: the folder is not a store, or it is damaged.
    """
    return {name: open_split(Path(folder), name) for name in split_names(Path(folder))}


def split_names(folder: Path) -> list[str]:
    """The names of the splits of a store, those of training first.

    Raises:
        InputError: as `open_split`.
    """
    return list(_read_meta(folder)["splits"])


def open_split(folder: Path, split: str) -> Split:
    """Memory-maps one split of a store.

    Raises:
        InputError: the store is missing, a file's size differs from that in meta.json, or its numbers are damaged.
    """
    meta = _read_meta(folder)
    sizes, dtype = meta["splits"][split], np.dtype(meta["dtype"]).newbyteorder("<")
    counts = map_array(folder / split / "counts.bin", BOUND, meta["vocab_size"])
    if counts.min(initial=0) < 0 or counts.sum() != sizes["tokens"]:
        raise InputError(f"{folder / split / 'counts.bin'}: damaged; delete its store to prepare it again")
    return Split(
        tokens=map_array(folder / split / "tokens.bin", dtype, sizes["tokens"]),
        sentences=map_ends(folder / split / "sentences.bin", BOUND, sizes["sentences"], sizes["tokens"]),
        documents=map_ends(folder / split / "documents.bin", BOUND, sizes["documents"], sizes["sentences"]),
        counts=counts,
        text_bytes=sizes["text_bytes"],
        words=map_array(folder / split / WORDS, np.dtype(np.uint8), bits.size(sizes["tokens"]))
        if meta["identity"].get("segmenter")
        else None,
    )


def fault(folder: Path) -> str | None:
    """What is wrong with the arrays of a store, in one phrase; None if they are as written. Reads all of them.

    Raises:
        InputError: the store is missing, or its meta.json is damaged.
    """
    hashes = _read_meta(folder).get("hashes")
    if hashes is None:
        return "it was made without hashes of its arrays"
    changed = first_changed(folder, hashes)
    return f"{changed} is missing or changed" if changed else None


def hashes(folder: Path) -> dict[str, str]:
    """The hash of each array of a store, by its name, such as train/tokens.bin; empty if it was made without.

    Raises:
        InputError: there is no store, or its meta.json is damaged.
    """
    return _read_meta(folder).get("hashes") or {}


def array_files(folder: Path) -> list[Path]:
    """Every file that `fault` reads, including meta.json."""
    return [folder / "meta.json", *(folder / name for name in hashes(folder))]


def made_with(folder: Path) -> str:
    """The hash, as in `tokenizer_hash`, of the tokenizer used to make the store."""
    return _read_meta(folder)["tokenizer"]


def _write_split(folder: Path, documents: Iterable[list[str]], pool: Workers) -> dict[str, int]:
    folder.mkdir(parents=True)
    tokens = sentences = documents_seen = text_bytes = 0
    counts = np.zeros(pool.vocab_size, BOUND)
    with (
        open(folder / "tokens.bin", "wb") as token_file,
        open(folder / "sentences.bin", "wb") as sentence_file,
        open(folder / "documents.bin", "wb") as document_file,
        bits.Bits(folder / WORDS if pool.segmented else None) as words,
    ):
        _write_ends(sentence_file, 0, np.zeros(1, np.int64))
        _write_ends(document_file, 0, np.zeros(1, np.int64))
        for piece in pool.map(pieces(documents)):
            token_file.write(piece.tokens)
            if piece.continues is not None:
                words.write(piece.continues)
            tokens = _write_ends(sentence_file, tokens, piece.sentence_lengths)
            sentences = _write_ends(document_file, sentences, piece.document_lengths)
            documents_seen += len(piece.document_lengths)
            counts += np.bincount(np.frombuffer(piece.tokens, pool.dtype), minlength=len(counts))
            text_bytes += piece.text_bytes
    (folder / "counts.bin").write_bytes(counts.tobytes())
    return {"tokens": tokens, "sentences": sentences, "documents": documents_seen, "text_bytes": text_bytes}


def _write_ends(file: IO[bytes], start: int, lengths: np.ndarray) -> int:
    """Appends the ends of pieces with these lengths, if the first begins at `start`; returns the last end."""
    ends = start + np.cumsum(lengths, dtype=BOUND)
    file.write(ends.tobytes())
    return int(ends[-1]) if len(ends) else start


def _replace(folder: Path, new: Path) -> None:
    """Moves a complete store into place, and then removes the old one."""
    old = new.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def identity(source: TextSource) -> dict[str, Any]:
    """What decides a store's content besides tokenizer and files; plain JSON values.

    A `document` of "paragraph" and the segmenter of text that has none are left out, as in stores that were made when
    there was no other.
    """
    values = {"format": FORMAT, **dataclasses.asdict(source)}
    if source.document == "paragraph":
        del values["document"]
    if isinstance(source.train, Mapping):
        values["train"] = {"sources": list(source.train)}
    if values.pop("segmented"):
        values["segmenter"] = segmenter.identity()
    return json.loads(json.dumps(values))


def _empty(empty: Sequence[str], source: TextSource) -> str:
    """The error for splits without text."""
    kind, _, name = empty[0].partition(".")
    if name and (kind == "train" or source.eval):
        parts = source.sources() if kind == "train" else source.held_out_sets()
        return f"data.{kind}: {parts[name]} contains no text"
    if name:
        return (
            f"data.train: {source.sources()[name]} has too few documents to hold {source.eval_fraction:.2%} out for "
            "evaluation; give data.eval, or raise data.eval_fraction"
        )
    if "train" in empty and (source.eval or "eval" in empty):
        return f"data.train: {source.train} contains no text"
    if source.eval:
        return f"data.eval: {source.eval} contains no text"
    share = f"{source.eval_fraction:.2%}"
    if "train" in empty:
        return f"data.eval_fraction: holding {share} out leaves no document to train on; lower it, or give data.eval"
    advice = {
        "paragraph": "separate the documents with blank lines",
        "file": "set data.document=paragraph, since with data.document=file each file is one document",
        "line": "give more text",
    }
    return (
        f"data.train: too few documents to hold {share} out for evaluation; give data.eval, raise data.eval_fraction, "
        f"or {advice[source.document]}"
    )


def _describe(path: File) -> dict[str, Any]:
    size, modified = stamp(path)
    return {"path": str(path), "size": size, "modified": modified, "hash": _hash_file(path)}


def _hash_file(path: File) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open_raw(path) as file:
            while block := file.read(HASH_BLOCK):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    return digest.hexdigest()


def _changed_file(known: list[dict[str, Any]], files: Files) -> str | None:
    """The first difference between the files that a store was made from and the same files now; None if there is none.

    A file counts as unchanged, and is not read, if its size and time are the same (for an address: size and tag).

    Raises:
        InputError: a file cannot be read.
    """
    paths = files.train + files.eval
    if [entry["path"] for entry in known] != [str(path) for path in paths]:
        return "the list of input files changed"
    for entry, path in zip(known, paths, strict=True):
        size, modified = stamp(path)
        same = (entry["size"], entry["modified"]) == (size, modified) and modified is not None
        if not same and (entry["size"] != size or entry["hash"] != _hash_file(path)):
            return f"{path} changed"
    return None


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a token store ({error}); delete the folder to prepare it again") from error
    wrong = check_meta(meta)
    if wrong:
        raise InputError(f"{path}: damaged ({wrong}); delete the folder to prepare it again")
    return meta
