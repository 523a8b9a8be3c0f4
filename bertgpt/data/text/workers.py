"""Processes that split documents into sentences and tokenize them, in order and with bounded queues."""

import concurrent.futures
import itertools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from bertgpt.data.text import segmenter
from bertgpt.data.text.documents import split_sentences
from bertgpt.errors import InputError
from bertgpt.tokenizers import continuation_table, tokenizer_from_str, vocabulary_size

TASK_BYTES = 1 << 18  # characters of text that a worker gets at a time; in ASCII these are bytes
BATCH = 1024  # sentences encoded at a time


def id_dtype(vocab_size: int) -> np.dtype:
    """The dtype of token ids: uint16 for up to 65,536 ids, else uint32."""
    return np.dtype("uint16" if vocab_size <= 1 << 16 else "uint32")


class Tokenized(NamedTuple):
    """The result of a worker for a few documents."""

    tokens: bytes
    continues: np.ndarray | None  # bool, which tokens continue a word; None: not segmented
    sentence_lengths: np.ndarray  # in tokens
    document_lengths: np.ndarray  # in sentences
    text_bytes: int


class Worker:
    """Splits and tokenizes documents; one per process."""

    def __init__(self, tokenizer: str, language: str, sentence_per_line: bool, segmented: bool, dtype: str) -> None:
        self.tokenizer = tokenizer_from_str(tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
        self.language, self.sentence_per_line, self.dtype = language, sentence_per_line, np.dtype(dtype)
        self.segmented = segmented
        self.continues = np.array(continuation_table(self.tokenizer))

    def __call__(self, documents: list[list[str]]) -> Tokenized:
        split = [split_sentences(text, self.language, self.sentence_per_line) for text in documents]
        sentences = list(itertools.chain.from_iterable(split))
        words: list[np.ndarray] | None = [] if self.segmented else None
        encoded = list(self._encode(sentences, words))
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ends = np.cumsum([0, *map(len, split)])
        documents_of = np.repeat(np.arange(len(split)), np.diff(ends))
        kept = np.bincount(documents_of[lengths > 0], minlength=len(split))  # a sentence may have no tokens
        ids = np.fromiter(itertools.chain.from_iterable(encoded), self.dtype, int(lengths.sum()))
        continues = None
        if words is not None:  # a word of another script may be one piece after another to the segmenter
            continues = np.concatenate([np.zeros(0, bool), *words]) | self.continues[ids]
        text_bytes = sum(len(s.encode()) for s in sentences)
        return Tokenized(ids.tobytes(), continues, lengths[lengths > 0], kept[kept > 0], text_bytes)

    def _encode(self, sentences: Sequence[str], words: list[np.ndarray] | None) -> Iterator[list[int]]:
        """The ids of each sentence. Few are encoded at a time, since the library's result is much larger than ids.

        Appends to `words`, if given, which tokens of each sentence continue a word.
        """
        encode = self.tokenizer.encode_batch_fast if words is None else self.tokenizer.encode_batch  # with offsets
        for start in range(0, len(sentences), BATCH):
            batch = sentences[start : start + BATCH]
            for text, item in zip(batch, encode(batch, add_special_tokens=False), strict=True):
                if words is not None:
                    words.append(segmenter.continuations(text, [begin for begin, _ in item.offsets]))
                yield item.ids


# State of a worker process, not of the process that imports bertgpt: the pool's initializer sets it once in each worker
# process, because an initializer cannot pass a value to the tasks in another way. Only `_work`, which runs there, reads
# it. It stays unset in the parent process, which uses a local Worker if there is no pool.
_worker: Worker


def use_one_core() -> None:
    """Limits the tokenizer to one core in this process; call it before the first batch is tokenized."""
    os.environ["RAYON_NUM_THREADS"] = "1"


def end_with_parent() -> None:
    """Ends this process as soon as its parent has ended, for whatever reason.

    Otherwise a worker that waits for work would wait forever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def killed_worker(workers: int) -> InputError:
    """The error for a killed worker process."""
    return InputError(
        f"a worker process was killed, most likely by the kernel because memory ran out; lower data.workers ({workers} "
        "now) and prepare again"
    )


def _start_worker(*arguments: Any) -> None:
    global _worker
    end_with_parent()
    use_one_core()
    _worker = Worker(*arguments)


def _work(documents: list[list[str]]) -> Tokenized:
    return _worker(documents)


class Workers:
    """Maps documents to tokens in order, with a bounded number of pieces in progress."""

    def __init__(
        self, tokenizer: Tokenizer, language: str, sentence_per_line: bool, segmented: bool, workers: int
    ) -> None:
        self.vocab_size = vocabulary_size(tokenizer)
        self.dtype, self.segmented = id_dtype(self.vocab_size), segmented
        self.arguments = (tokenizer.to_str(), language, sentence_per_line, segmented, self.dtype.str)
        self.workers = workers

    def __enter__(self) -> "Workers":
        self.pool = None
        if self.workers > 1:
            context = multiprocessing.get_context("spawn")  # a fork would copy the locks of JAX's threads
            self.pool = concurrent.futures.ProcessPoolExecutor(self.workers, context, _start_worker, self.arguments)
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def map(self, pieces: Iterable[list[list[str]]]) -> Iterator[Tokenized]:
        """Tokenizes the pieces; results are in the order of the pieces.

        Raises:
            InputError: a worker was killed.
        """
        if self.pool is None:
            yield from map(Worker(*self.arguments), pieces)
            return
        try:
            yield from self._map(self.pool, pieces)
        except BrokenProcessPool as error:
            raise killed_worker(self.workers) from error

    def _map(
        self, pool: concurrent.futures.ProcessPoolExecutor, pieces: Iterable[list[list[str]]]
    ) -> Iterator[Tokenized]:
        running: deque[concurrent.futures.Future[Tokenized]] = deque()
        for piece in pieces:
            running.append(pool.submit(_work, piece))
            if len(running) > 3 * self.workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def pieces(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """Groups documents into pieces of about TASK_BYTES characters."""
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
