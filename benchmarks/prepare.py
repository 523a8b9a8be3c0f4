"""Corpus preparation against the tokenizer's own batch call on as many cores, in turn.

python -m benchmarks.prepare [--workers 2] [--copies 8] [--rounds 3]
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.corpus import demo
from bertgpt.data.corpus import split_sentences
from bertgpt.data.store import prepare


def main() -> None:
    """Prints both speeds and their ratio, round by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--copies", type=int, default=8, help="of the demo corpus, to outweigh the start of processes")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.workers)
    source, tokenizer = demo()
    documents = list(source.documents("train"))
    folder = Path(tempfile.mkdtemp())
    text = folder / "text.jsonl"
    with text.open("w", encoding="utf-8") as file:
        for copy in range(options.copies):
            file.writelines(json.dumps({"text": f"{copy} " + "\n".join(parts)}) + "\n" for parts in documents)
    sentences = [part for document in documents for part in split_sentences(document)] * options.copies
    size = sum(len(sentence.encode()) for sentence in sentences)
    corpus = dataclasses.replace(source, train=str(text), text_key="text")
    ratios = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        tokenizer.encode_batch(sentences, add_special_tokens=False)
        batch = size / (time.perf_counter() - start) / 1e6
        start = time.perf_counter()
        prepare(folder / "store", corpus, tokenizer, {}, options.workers)
        ours = size / (time.perf_counter() - start) / 1e6
        ratios.append(ours / batch)
        print(f"prepare {ours:.2f} MB/s, encode_batch {batch:.2f} MB/s, ratio {ratios[-1]:.2f}")
    print(f"{options.workers} workers: median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
