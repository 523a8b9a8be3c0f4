"""How long a user waits for the first output: for the help, and for the error of a mistyped key.

python -m benchmarks.start [--runs 10]
"""

import argparse
import subprocess
import sys
import time

from benchmarks.side_by_side import leave, processor, range_of, show
from bertgpt.errors import InputError

COMMANDS = {  # command -> expected exit code
    "python -m train --help": 0,
    "python -m train pretrain configs/bert_demo.yaml train.stepz=1": 2,
}


def seconds(command: str, expected: int) -> float:
    """Run a command in a new process, and return its duration in seconds."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command.split()[1:]], capture_output=True, text=True)
    if done.returncode != expected:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr.strip()}")
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> None:
    """Run the commands in turn, and print the median and range of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args(arguments)
    if options.runs < 1:
        raise InputError(f"--runs is {options.runs}; it must be at least 1")
    turns = [[seconds(*item) for item in COMMANDS.items()] for _ in range(options.runs)]
    print(f"{options.runs} runs each, on {processor()}, Python {sys.version.split()[0]}")
    for command, times in zip(COMMANDS, zip(*turns, strict=True), strict=True):
        print(f"{command}: {show(range_of(times), 2)} s")


if __name__ == "__main__":
    sys.exit(leave(main))
