"""Corpus preparation compared with the tokenizer's `encode_batch` on the same number of cores.

python -m benchmarks.prepare [--workers 2] [--copies 8] [--rounds 3]
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import side_by_side
from benchmarks.corpus import demo
from benchmarks.side_by_side import range_of, show
from bertgpt.data.text.documents import split_sentences
from bertgpt.data.text.store import prepare
from bertgpt.errors import InputError


def main(arguments: list[str] | None = None) -> None:
    """Print both speeds and their ratio, and write them to files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--copies", type=int, default=8, help="copies of the demo corpus, to amortize process start")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=side_by_side.OUT)
    options = parser.parse_args(arguments)
    if min(options.workers, options.copies, options.rounds) < 1:
        raise InputError("--workers, --copies and --rounds must be at least 1")
    os.environ["RAYON_NUM_THREADS"] = str(options.workers)
    source, tokenizer = demo()
    documents = list(source.documents("train"))
    sentences = [part for document in documents for part in split_sentences(document)] * options.copies
    size = sum(len(sentence.encode()) for sentence in sentences)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.jsonl"
        with text.open("w", encoding="utf-8") as file:
            for copy in range(options.copies):
                file.writelines(json.dumps({"text": f"{copy} " + "\n".join(parts)}) + "\n" for parts in documents)
        corpus = dataclasses.replace(source, train=str(text), text_key="text")
        for _ in range(options.rounds):
            start = time.perf_counter()
            tokenizer.encode_batch(sentences, add_special_tokens=False)
            theirs.append(size / (time.perf_counter() - start) / 1e6)
            start = time.perf_counter()
            prepare(Path(folder) / "store", corpus, tokenizer, {}, options.workers)
            ours.append(size / (time.perf_counter() - start) / 1e6)
    bars = {"prepare": range_of(ours), "encode_batch": range_of(theirs)}
    for name, speed in bars.items():
        print(f"{name}: {show(speed, 2)} MB/s")
    ratio = range_of(mine / other for mine, other in zip(ours, theirs, strict=True))
    print(f"prepare / encode_batch, {options.workers} workers: {show(ratio, 2)}")
    title = f"{options.workers} workers on {side_by_side.processor()}"
    report = {"options": vars(options), "speeds": bars, "ratio": ratio}
    side_by_side.write(options.out, "prepare", report, bars, title, "MB of text per second")


if __name__ == "__main__":
    sys.exit(side_by_side.leave(main))
