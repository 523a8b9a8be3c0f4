"""Non-padding tokens a second of MLM + NSP batches, on one core.

python -m benchmarks.loader [--length 128] [--batch 64] [--batches 100] [--whole-word] [--pack]
"""

import argparse
import os
import time

import numpy as np

from benchmarks.corpus import demo_store
from bertgpt.data.bert import BertPairs, pack_pairs
from bertgpt.data.store import open_split


def main() -> None:
    """Prints the median of five runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--whole-word", action="store_true")
    parser.add_argument("--pack", action="store_true")
    options = parser.parse_args()
    folder, tokenizer = demo_store()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    pairs = BertPairs(open_split(folder, "train"), tokenizer, options.length, 0, options.whole_word)
    source = pack_pairs(pairs) if options.pack else pairs
    order = np.random.default_rng(0).integers(0, len(source), (options.batches, options.batch))
    speeds = []
    for _ in range(6):
        start = time.perf_counter()
        tokens = sum(int(source.batch(rows)["attention_mask"].sum()) for rows in order)
        speeds.append(tokens / (time.perf_counter() - start))
    low, middle, high = np.percentile(speeds[1:], [0, 50, 100])
    share = tokens / order.size / options.length
    print(f"length {options.length}, batch {options.batch}: {middle:,.0f} real tokens/s on one core")
    print(f"(from {low:,.0f} to {high:,.0f}; {share:.0%} of a batch is real)")


if __name__ == "__main__":
    main()
