"""How long an asynchronous checkpoint blocks the training loop, and how long until it is complete on disk.

python -m benchmarks.checkpoint [--model bert_base] [--batch 16] [--length 128] [--saves 3]

The loop waits in `Checkpoints.save` while the state is copied, and at the next save while the files are hashed. In
between, training steps run during the write. The time until `Checkpoints.wait` returns includes all three.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks import side_by_side
from benchmarks.side_by_side import range_of, show
from benchmarks.train_step import OurStep, make_batches, sizes
from bertgpt import presets
from bertgpt.errors import InputError
from train.folders.checkpoints import Checkpoints
from train.sections import ParallelSection
from train.state import TrainState


class Save(NamedTuple):
    """The times of one checkpoint, in seconds.

    Attributes:
        copied: the time in `save`.
        hashed: the time in `wait`, after all files were written.
        whole: the time from the call of `save` until `wait` returned, without the rest of the step that ran when the
            write ended.
        steps: the time of each step that ran during the write.
    """

    copied: float
    hashed: float
    whole: float
    steps: list[float]

    @property
    def stall(self) -> float:
        """The time that the loop waited."""
        return self.copied + self.hashed


def seconds(call: Callable[[], object]) -> float:
    """Return the duration of a call in seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def written(checkpoints: Checkpoints) -> float:
    """Wait until all files are on disk, and return the time; raise the error of a failed write."""
    checkpoints.manager.wait()
    return time.perf_counter()


def save(checkpoints: Checkpoints, number: int, state: TrainState, step: Callable[[], None]) -> Save:
    """Save one checkpoint, and run steps until it is written."""
    began = time.perf_counter()
    copied = seconds(lambda: checkpoints.save(number, state, {}, None))
    with ThreadPoolExecutor(1) as pool:
        end = pool.submit(written, checkpoints)
        steps = [seconds(step)]
        while not end.done():
            steps.append(seconds(step))
    hashed = seconds(checkpoints.wait)
    return Save(copied, hashed, end.result() - began + hashed, steps)


def main(arguments: list[str] | None = None) -> None:
    """Print the share of a save for which the loop waits; the first save is not counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert_base", choices=presets.ALL)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--length", type=int)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--out", type=Path, default=side_by_side.OUT)
    options = parser.parse_args(arguments)
    config = presets.get(options.model)
    batch, length = sizes(config, options.batch, options.length)
    if options.saves < 1:
        raise InputError(f"--saves is {options.saves}; it must be at least 1")
    batches = make_batches(config, "random", batch, length, False)[0]
    loop = OurStep(config, "float32", "none", batches, ParallelSection())

    def step() -> None:
        loop.step(0)
        loop.wait()

    step()
    alone = range_of(seconds(step) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder), keep=1) as checkpoints:
        saves = []
        for number in range(options.saves + 1):
            saves.append(save(checkpoints, number, loop.strategy.to_checkpoint(loop.state), step))
        size = sum(file.stat().st_size for file in (Path(folder) / str(options.saves)).rglob("*") if file.is_file())
    del saves[0]
    about = side_by_side.jax_about(loop.strategy.devices)
    print(f"{options.model}, {batch} x {length}, a checkpoint of {size / 1e6:,.0f} MB, on {about['device']}")
    bars = {name: range_of(getattr(one, name) for one in saves) for name in ("copied", "hashed", "stall", "whole")}
    for name, value in bars.items():
        print(f"{name}: {show(value, 3)} s")
    share = range_of(100 * one.stall / one.whole for one in saves)
    print(f"stall / whole: {show(share, 1)} %")
    bars |= {"a step alone": alone, "a step during a write": range_of(each for one in saves for each in one.steps)}
    print(f"a step: {show(alone, 3)} s alone, {show(bars['a step during a write'], 3)} s during a write")
    report = {"options": vars(options), "about": about, "bytes": size, "seconds": bars, "stall_percent": share}
    title = f"A checkpoint of {options.model}\n{about['device']}"
    side_by_side.write(options.out, f"checkpoint_{options.model}", report, bars, title, "seconds")


if __name__ == "__main__":
    sys.exit(side_by_side.leave(main))
