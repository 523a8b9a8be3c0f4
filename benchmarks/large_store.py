"""A synthetic store of many sentence pairs: memory and time until the first batch, in several processes of a host."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from bertgpt.data.pretraining.packing import Packed
from bertgpt.data.pretraining.sentence_pairs import BertPairs, pack_pairs
from bertgpt.data.pretraining.sentence_runs import SentenceRuns, pack_runs
from bertgpt.data.text.store import Split
from bertgpt.tokenizers import BERT_SPECIAL
from train import loader
from train.folders.plans import PlanFolder

VOCABULARY = 30_522
SENTENCE_TOKENS = 22  # on average, about that of English Wikipedia
DOCUMENT_SENTENCES = 16
SENTENCES_A_PAIR = 3.77  # at 128 tokens
BLOCK = 1 << 22
BATCHES = 200


def make_store(folder: Path, pairs: int) -> None:
    """Write the arrays of a split that has about `pairs` pairs of 128 tokens, if they are missing.

    Lengths are geometric, and tokens random, in repeated blocks.
    """
    done = folder / f"{pairs}.done"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    sentences = int(pairs * SENTENCES_A_PAIR)
    lengths = np.minimum(rng.geometric(1 / SENTENCE_TOKENS, sentences), 200)
    _write_ends(folder / "sentences.bin", lengths)
    sizes = rng.geometric(1 / DOCUMENT_SENTENCES, sentences // DOCUMENT_SENTENCES)
    ends = np.minimum(np.cumsum(sizes), sentences)
    _write_ends(folder / "documents.bin", np.diff(np.unique([0, *ends, sentences])))
    block = rng.integers(len(BERT_SPECIAL), VOCABULARY, BLOCK).astype(np.uint16)
    with (folder / "tokens.bin").open("wb") as file:
        for start in range(0, int(lengths.sum()), BLOCK):
            file.write(block[: int(lengths.sum()) - start].data)
    done.touch()


def _write_ends(path: Path, lengths: np.ndarray) -> None:
    np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).tofile(path)


def open_store(folder: Path) -> Split:
    """Memory-map the split."""
    tokens = np.memmap(folder / "tokens.bin", np.uint16, "r")
    sentences, documents = (np.memmap(folder / f"{name}.bin", np.int64, "r") for name in ("sentences", "documents"))
    return Split(tokens, sentences, documents, np.ones(VOCABULARY, np.int64), 6 * len(tokens))


def make_tokenizer() -> Tokenizer:
    """Return a WordPiece tokenizer with BERT's special tokens and the words w0, w1, ..."""
    words = [*BERT_SPECIAL, *(f"w{number}" for number in range(VOCABULARY - len(BERT_SPECIAL)))]
    return Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))


def make_source(kind: str, split: Split, length: int, folder: PlanFolder) -> Any:
    """Return the examples of an objective (mlm_nsp or mlm), packed or not; their plans are kept in the folder."""
    objective, _, packed = kind.partition("+")
    if objective == "mlm_nsp":
        pairs = BertPairs(split, make_tokenizer(), length, 0, keep=folder)
        return pack_pairs(pairs) if packed else pairs
    runs = SentenceRuns(split, make_tokenizer(), length, 0, keep=folder)
    return pack_runs(runs) if packed else runs


def _plans(folder: Path, kind: str, length: int) -> Path:
    return folder / "plans" / f"{kind}-{length}"


class PrivateMemory:
    """The peak of a process's private memory, in bytes: pages that belong to no file. Linux only."""

    def __init__(self) -> None:
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            found = next(line.split()[1] for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, int(found) * 1024)
            time.sleep(0.02)


def measure(folder: Path, kind: str, length: int, batch: int) -> dict[str, float]:
    """Return the seconds until the first batch, the speed of further batches, and the memory of this process."""
    memory, began = PrivateMemory(), time.perf_counter()
    source = make_source(kind, open_store(folder), length, PlanFolder(_plans(folder, kind, length)))
    batches = loader.batches(source, batch, 0)
    next(batches)
    first = time.perf_counter() - began
    for _ in range(loader.PREFETCH):
        next(batches)
    began, tokens = time.perf_counter(), 0
    for _ in range(BATCHES):
        tokens += int(next(batches)["attention_mask"].sum())
    speed = tokens / (time.perf_counter() - began)
    examples = len(source.examples.lengths(0)) if isinstance(source, Packed) else len(source)
    return {"examples": examples, "first_batch": first, "tokens_per_second": speed, "private_bytes": memory.peak}


def report(folder: Path, pairs: int, kinds: list[str], length: int, batch: int, processes: int) -> None:
    """Print a table: for each kind, without a plan on disk and with one, the slowest or largest of the processes."""
    store = folder / f"store_{pairs}"
    make_store(store, pairs)
    print("| examples | plan on disk | first batch | real tokens/s per process | private memory per process |")
    print("|---|---|---|---|---|")
    for kind in kinds:
        shutil.rmtree(_plans(store, kind, length), ignore_errors=True)
        for plan in ("none", "found"):
            command = [sys.executable, "-m", "benchmarks.large_store", str(store), kind, str(length), str(batch)]
            environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
            running = [
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(processes)
            ]
            found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
            first, memory = (max(each[name] for each in found) for name in ("first_batch", "private_bytes"))
            speed = min(each["tokens_per_second"] for each in found)
            print(
                f"| {found[0]['examples']:,} of {kind}, T = {length} | {plan} | {first:.3g} s | {speed:,.0f} | "
                f"{memory / 2**20:,.0f} MiB |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind")
    parser.add_argument("length", type=int)
    parser.add_argument("batch", type=int)
    options = parser.parse_args()
    print(json.dumps(measure(options.folder, options.kind, options.length, options.batch)))
