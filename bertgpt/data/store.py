"""The token store: a corpus as memory-mapped token ids with sentence and document bounds.

A store is a folder with `meta.json`, the `tokenizer.json` that made it, and one folder a split (`train`, `eval`), each
with flat little-endian files: `tokens.bin` (uint16, or uint32 for vocabularies over 65,536), `sentences.bin` (int64:
where each sentence ends, in tokens), `documents.bin` (int64: where each document ends, in sentences) and `counts.bin`
(int64: how often each id occurs).
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from bertgpt.data import corpus
from bertgpt.data.files import File, find_files, open_raw, stamp
from bertgpt.errors import InputError
from bertgpt.tokenizers import save_tokenizer, vocabulary_size

FORMAT = 1  # raised whenever the files or the splitting rule change
SPLITS = ("train", "eval")
TASK_BYTES = 1 << 18  # text that a worker gets at a time
HASH_BLOCK = 1 << 20
META_KEYS = {"identity", "tokenizer", "wanted", "files", "dtype", "vocab_size", "splits"}
BOUND = np.dtype("<i8")  # where a sentence or a document ends


class Files(NamedTuple):
    """Input files. Without a TextSource's `eval`, those of `train` hold the evaluation's documents too."""

    train: list[File]
    eval: list[File]


class Part(NamedTuple):
    """What was tokenized: plain values, ready for JSON.

    Attributes:
        files: path, size, modified and hash of each input file.
        splits: tokens, sentences, documents and text_bytes of each split.
    """

    files: list[dict[str, Any]]
    splits: dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Where the text comes from and how it is read; all of it is part of a store's identity.

    `eval` None: `eval_fraction` of the documents of `train`, chosen by the hash of their text.
    """

    train: str | Sequence[str]
    eval: str | Sequence[str] | None = None
    eval_fraction: float = 0.01
    text_key: str = "text"
    language: str = "en"
    sentence_per_line: bool = False

    def files(self) -> Files:
        """The input files in order."""
        return Files(find_files(self.train), find_files(self.eval) if self.eval else [])

    def documents(self, split: str, files: Files | None = None) -> Iterator[list[str]]:
        """The documents of one split, of all files or some, each as its paragraphs, in the order of the files."""
        files = files or self.files()
        paths = files.eval if split == "eval" and self.eval else files.train
        documents = corpus.read_documents(paths, self.text_key, self.sentence_per_line)
        if self.eval:
            return documents
        return (text for text in documents if _held_out(text, self.eval_fraction) == (split == "eval"))


class Split(NamedTuple):
    """One split of a store, memory-mapped. A bound is where a piece ends; the first one begins at 0.

    Attributes:
        tokens: [N] uint16 or uint32.
        sentences: [S + 1] int64 in tokens, from 0.
        documents: [D + 1] int64 in sentences, from 0.
        counts: [V] int64, how often each id occurs.
        text_bytes: UTF-8 bytes of the text that the tokens came from, white space between sentences aside.
    """

    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    counts: np.ndarray
    text_bytes: int


def changes(folder: Path, source: TextSource, tokenizer: dict[str, Any]) -> str | None:
    """Why the store in the folder cannot serve: one phrase, or None where it can.

    Args:
        folder: the store.
        source: the text.
        tokenizer: plain values that say which tokenizer is wanted, as given to `prepare`; or {"sha256": its hash}.
    """
    if not (folder / "meta.json").exists():
        return "there is none yet"
    meta = _read_meta(folder)
    for key, value in identity(source).items():
        if meta["identity"].get(key) != value:
            return f"{key} changed"
    if tokenizer not in (meta["wanted"], {"sha256": meta["tokenizer"]}):
        return "tokenizer changed"
    return _changed_file(meta["files"], source.files())


def digest(folder: Path) -> str:
    """A hash of what a store was made from, file contents included: equal stores give equal batches."""
    meta = _read_meta(folder)
    contents = [entry["hash"] for entry in meta["files"]]
    parts = [meta["identity"], meta["tokenizer"], contents, meta["splits"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer's JSON form."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def prepare(
    folder: Path,
    source: TextSource,
    tokenizer: Tokenizer,
    wanted: dict[str, Any],
    workers: int = 1,
    progress: Callable[[int], None] = lambda size: None,
) -> None:
    """Tokenizes the corpus in `workers` processes, in constant memory, and puts the store into the folder at the end.

    Order and content do not depend on the number of workers. A special token spelt in the text is read as text.

    Args:
        folder: made, or replaced as a whole once the new store is complete.
        source: the text.
        tokenizer: its vocabulary decides the width of an id.
        wanted: plain values that say which tokenizer this is; kept for `changes`.
        workers: processes; 1 works in this one.
        progress: called with the bytes of text of each finished piece.

    Raises:
        InputError: a file cannot be read, a split has no text, or the folder holds something else.
    """
    check_replaceable(folder)
    with temporary_folder(folder) as new:
        part = write_part(new, source, source.files(), tokenizer, workers, progress)
        finish(folder, new, source, tokenizer, wanted, part)


def check_replaceable(folder: Path) -> None:
    """
    Raises:
        InputError: the folder holds something else than a store.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "meta.json").is_file()):
        raise InputError(f"{folder}: not a token store, so it is not replaced; choose another folder as data.store")


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside another, gone at the end."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
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
    progress: Callable[[int], None] = lambda size: None,
) -> Part:
    """Tokenizes some of a corpus's files to a folder for each split, in constant memory; arguments as `prepare`.

    Raises:
        InputError: a file cannot be read.
    """
    described = [_describe(path) for path in files.train + files.eval]
    with _Workers(tokenizer, source.language, source.sentence_per_line, workers) as pool:
        splits = {
            split: _write_split(folder / split, source.documents(split, files), pool, progress) for split in SPLITS
        }
    return Part(described, splits)


def finish(
    folder: Path, new: Path, source: TextSource, tokenizer: Tokenizer, wanted: dict[str, Any], part: Part
) -> None:
    """Makes a folder with all of a corpus's splits a store, and moves it to where the store belongs.

    Raises:
        InputError: a split has no text.
    """
    for split in SPLITS:
        if not part.splits[split]["tokens"]:
            raise InputError(_empty(split, source))
    vocab_size = vocabulary_size(tokenizer)
    meta = {
        "identity": identity(source),
        "tokenizer": tokenizer_hash(tokenizer),
        "wanted": wanted,
        "files": part.files,
        "dtype": id_dtype(vocab_size).name,
        "vocab_size": vocab_size,
        "splits": part.splits,
    }
    save_tokenizer(tokenizer, new)
    (new / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    _replace(folder, new)


def id_dtype(vocab_size: int) -> np.dtype:
    """How wide an id is."""
    return np.dtype("uint16" if vocab_size <= 1 << 16 else "uint32")


def open_split(folder: Path, split: str) -> Split:
    """Maps one split of a store.

    Raises:
        InputError: the store is missing, or a file has not the size that meta.json says.
    """
    meta = _read_meta(folder)
    counts, dtype = meta["splits"][split], np.dtype(meta["dtype"]).newbyteorder("<")
    return Split(
        tokens=_map(folder / split / "tokens.bin", dtype, counts["tokens"]),
        sentences=_map(folder / split / "sentences.bin", BOUND, counts["sentences"] + 1),
        documents=_map(folder / split / "documents.bin", BOUND, counts["documents"] + 1),
        counts=_map(folder / split / "counts.bin", BOUND, meta["vocab_size"]),
        text_bytes=counts["text_bytes"],
    )


class _Tokenized(NamedTuple):
    """What a worker sends back for a few documents."""

    tokens: bytes
    sentence_lengths: np.ndarray  # in tokens
    document_lengths: np.ndarray  # in sentences
    text_bytes: int


class _Worker:
    """Splits and tokenizes documents; one a process."""

    def __init__(self, tokenizer: str, language: str, sentence_per_line: bool, dtype: str) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
        self.language, self.sentence_per_line, self.dtype = language, sentence_per_line, np.dtype(dtype)

    def __call__(self, documents: list[list[str]]) -> _Tokenized:
        split = [corpus.split_sentences(text, self.language, self.sentence_per_line) for text in documents]
        sentences = list(itertools.chain.from_iterable(split))
        encoded = [item.ids for item in self.tokenizer.encode_batch_fast(sentences, add_special_tokens=False)]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ends = np.cumsum([0, *map(len, split)])
        documents_of = np.repeat(np.arange(len(split)), np.diff(ends))
        kept = np.bincount(documents_of[lengths > 0], minlength=len(split))  # a sentence may clean up to nothing
        ids = np.fromiter(itertools.chain.from_iterable(encoded), self.dtype, int(lengths.sum()))
        return _Tokenized(ids.tobytes(), lengths[lengths > 0], kept[kept > 0], sum(len(s.encode()) for s in sentences))


_worker: _Worker


def use_one_core() -> None:
    """Lets the tokenizer run on one core of this process; called before its first batch."""
    os.environ["RAYON_NUM_THREADS"] = "1"


def _start_worker(*arguments: Any) -> None:
    global _worker
    use_one_core()
    _worker = _Worker(*arguments)


def _work(documents: list[list[str]]) -> _Tokenized:
    return _worker(documents)


class _Workers:
    """Maps documents to tokens in order, with a bounded number of pieces under way."""

    def __init__(self, tokenizer: Tokenizer, language: str, sentence_per_line: bool, workers: int) -> None:
        self.vocab_size = vocabulary_size(tokenizer)
        self.dtype = id_dtype(self.vocab_size)
        self.arguments = (tokenizer.to_str(), language, sentence_per_line, self.dtype.str)
        self.workers = workers

    def __enter__(self) -> "_Workers":
        self.pool = None
        if self.workers > 1:
            context = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads' locks
            self.pool = concurrent.futures.ProcessPoolExecutor(self.workers, context, _start_worker, self.arguments)
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def map(self, pieces: Iterable[list[list[str]]]) -> Iterator[_Tokenized]:
        """Tokenizes the pieces; results come in the pieces' order."""
        if self.pool is None:
            yield from map(_Worker(*self.arguments), pieces)
            return
        running: deque[concurrent.futures.Future[_Tokenized]] = deque()
        for piece in pieces:
            running.append(self.pool.submit(_work, piece))
            if len(running) > 3 * self.workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _pieces(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """Groups documents to about TASK_BYTES of text."""
    piece: list[list[str]] = []
    size = 0
    for document in documents:
        piece.append(document)
        size += sum(map(len, document))
        if size >= TASK_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _write_split(
    folder: Path, documents: Iterable[list[str]], pool: _Workers, progress: Callable[[int], None]
) -> dict[str, int]:
    folder.mkdir(parents=True)
    tokens = sentences = documents_seen = text_bytes = 0
    counts = np.zeros(pool.vocab_size, BOUND)
    with (
        open(folder / "tokens.bin", "wb") as token_file,
        open(folder / "sentences.bin", "wb") as sentence_file,
        open(folder / "documents.bin", "wb") as document_file,
    ):
        _write_ends(sentence_file, 0, np.zeros(1, np.int64))
        _write_ends(document_file, 0, np.zeros(1, np.int64))
        for piece in pool.map(_pieces(documents)):
            token_file.write(piece.tokens)
            tokens = _write_ends(sentence_file, tokens, piece.sentence_lengths)
            sentences = _write_ends(document_file, sentences, piece.document_lengths)
            documents_seen += len(piece.document_lengths)
            counts += np.bincount(np.frombuffer(piece.tokens, pool.dtype), minlength=len(counts))
            text_bytes += piece.text_bytes
            progress(piece.text_bytes)
    (folder / "counts.bin").write_bytes(counts.tobytes())
    return {"tokens": tokens, "sentences": sentences, "documents": documents_seen, "text_bytes": text_bytes}


def _write_ends(file: IO[bytes], start: int, lengths: np.ndarray) -> int:
    """Appends where pieces of these lengths end when the first begins at `start`; returns the last end."""
    ends = start + np.cumsum(lengths, dtype=BOUND)
    file.write(ends.tobytes())
    return int(ends[-1]) if len(ends) else start


def _replace(folder: Path, new: Path) -> None:
    """Moves a complete store into place; the old one goes only then."""
    old = new.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def identity(source: TextSource) -> dict[str, Any]:
    """What decides a store's content besides tokenizer and files; plain JSON values."""
    return json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(source)}))


def _held_out(document: list[str], fraction: float) -> bool:
    digest = hashlib.blake2b("\n".join(document).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def _empty(split: str, source: TextSource) -> str:
    if split == "train" or source.eval:
        key = "data.eval" if split == "eval" else "data.train"
        return f"{key}: {source.eval if split == 'eval' else source.train} holds no text"
    return (
        f"data.train: too few documents to hold {source.eval_fraction:.2%} out for evaluation; give data.eval, "
        "raise data.eval_fraction, or part the documents by blank lines"
    )


def _describe(path: File) -> dict[str, Any]:
    size, modified = stamp(path)
    return {"path": str(path), "size": size, "modified": modified, "hash": _hash_file(path)}


def _hash_file(path: File) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open_raw(path) as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _changed_file(known: list[dict[str, Any]], files: Files) -> str | None:
    """The first difference between the files that a store was made from and those of today.

    A file of the same size and time (an address: size and tag) is taken as the same without reading it.
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
        missing = META_KEYS - set(meta)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a token store ({error}); delete the folder to prepare it again") from error
    if missing:
        raise InputError(f"{path}: damaged (no {min(missing)}); delete the folder to prepare it again")
    return meta


def check_size(path: Path, size: int) -> None:
    """
    Raises:
        InputError: a file of a store has not the size in bytes that meta.json says, or is missing.
    """
    found = path.stat().st_size if path.exists() else -1
    if found != size:
        raise InputError(f"{path}: damaged ({found} bytes, expected {size}); delete its store to prepare it again")


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    check_size(path, count * dtype.itemsize)
    return np.memmap(path, dtype, "r", shape=(count,))
