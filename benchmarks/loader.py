"""Non-padding tokens per second of MLM + NSP batches on one core, for each length, with and without packing.

python -m benchmarks.loader [--length 128 512] [--batch 64] [--batches 100] [--whole-word] [--out runs/benchmarks]

With --pairs, the store is synthetic and large: the time until the first batch and the memory of each process instead.

python -m benchmarks.loader --pairs 20e6 [--processes 2] [--kinds mlm_nsp mlm_nsp+packed mlm mlm+packed] [--length 128]
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import large_store, side_by_side
from benchmarks.corpus import demo_split
from benchmarks.side_by_side import Range, range_of, show
from bertgpt.data.pretraining.masking import MaskRule
from bertgpt.data.pretraining.sentence_pairs import BertPairs, pack_pairs
from bertgpt.errors import InputError

RUNS = 6  # the first is not counted
KINDS = ("mlm_nsp", "mlm_nsp+packed", "mlm", "mlm+packed")


def measure(source: Any, batches: int, batch: int) -> tuple[list[float], float]:
    """Return the real tokens per second of each run, and the share of real tokens in a batch."""
    order = np.random.default_rng(0).integers(0, len(source), (batches, batch))
    speeds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        masks = [source.batch(rows)["attention_mask"] for rows in order]
        seconds = time.perf_counter() - start
        tokens = sum(int(mask.sum()) for mask in masks)
        speeds.append(tokens / seconds)
    return speeds[1:], tokens / sum(mask.size for mask in masks)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, nargs="+")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--whole-word", action="store_true")
    parser.add_argument("--out", type=Path, default=side_by_side.OUT)
    parser.add_argument("--pairs", type=float)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:1])
    options = parser.parse_args(arguments)
    options.length = options.length or ([128] if options.pairs else [128, 512])
    if min(options.batch, options.batches, options.processes) < 1 or min(options.length) < 8:
        raise InputError("--batch, --batches and --processes must be at least 1, and --length at least 8")
    if options.pairs is not None and not 1000 <= options.pairs <= 1e9:
        raise InputError("--pairs must be from 1000 to 1e9")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Print medians and ranges, and write them to files."""
    options = parse(arguments)
    if options.pairs:
        for length in options.length:
            large_store.report(options.out, int(options.pairs), options.kinds, length, options.batch, options.processes)
        return
    split, tokenizer = demo_split()
    title = f"MLM + NSP batches of {options.batch} on one core of {side_by_side.processor()}"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    bars: dict[str, Range] = {}
    for length in options.length:
        pairs = BertPairs(split, tokenizer, length, 0, MaskRule(whole_word=options.whole_word))
        for name, source in {"": pairs, ", packed": pack_pairs(pairs)}.items():
            speeds, share = measure(source, options.batches, options.batch)
            bars[f"{length}{name}"] = range_of(speeds)
            print(f"length {length}{name}: {show(range_of(speeds))} real tokens/s; {share:.0%} of the tokens are real")
    name = "loader_whole_word" if options.whole_word else "loader"
    side_by_side.write(
        options.out, name, {"options": vars(options), "speeds": bars}, bars, title, "real tokens per second"
    )


if __name__ == "__main__":
    sys.exit(side_by_side.leave(main))
