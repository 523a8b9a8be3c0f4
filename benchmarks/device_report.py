"""Everything to measure on a GPU or TPU, in one Markdown file: tests, train steps with estimates, generation.

python -m benchmarks.device_report [--out runs/device_report.md] [--quick]

Each part is a command of its own, so that one that fails does not end the others. `make device-report EXTRA=cuda` (or
tpu) installs what this needs. The file is written anew after each part. Beside each measured train step stands the
compiler's account of the recipe with the same sizes, where the device is one that `plan --topology` knows; for GPUs it
is memory and collectives.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bertgpt.errors import InputError
from train import targets
from train.atomic_files import write_whole

STEPS = (  # model, rows, tokens per row, dtype, whether rows are packed: the rows of docs/performance.md
    ("bert_base", 64, 128, "bfloat16", False),
    ("bert_base", 16, 512, "bfloat16", False),
    ("bert_large", 64, 128, "bfloat16", False),
    ("bert_large", 16, 512, "bfloat16", False),
    ("gpt1", 16, 512, "bfloat16", False),
    ("bert_base", 16, 128, "bfloat16", False),
    ("bert_base", 16, 128, "float32", False),
    ("gpt1", 4, 512, "bfloat16", False),
    ("gpt1", 4, 512, "float32", False),
    ("bert_base", 4, 512, "bfloat16", True),
    ("bert_large", 8, 128, "bfloat16", False),
)
QUICK = (("bert_tiny", 16, 128, "bfloat16", False),)
ATTENTION_DROPOUT = ("0.1", "0")  # cuDNN's attention needs 0
TESTS = ("bert", "gpt", "layers", "masks", "losses", "decoding", "inference", "goldens", "optimizers", "precision")
PLATFORMS = {"gpu": "cuda", "tpu": "tpu", "cpu": "cpu"}  # of jax.default_backend(): as JAX_PLATFORMS wants it
Part = tuple[str, list[str], dict[str, str]]  # title, arguments of Python, environment


def parts(versions: str, quick: bool) -> Iterator[Part]:
    """The commands, in order.

    Args:
        versions: what `python -m train --version` printed.
        quick: with a small model, to try the report itself.
    """
    found = re.search(r"devices: (\d+) x (.*) \((\w+)\)", versions)
    if found is None:
        raise InputError(f"python -m train --version names no devices: {versions}")
    tests = [f"tests/test_{name}.py" for name in (TESTS[3:4] if quick else TESTS)]
    yield "Tests", ["-m", "pytest", "-n", "0", *tests], {"JAX_PLATFORMS": f"{PLATFORMS[found[3]]},cpu"}
    topology = None if quick else find_topology(found[2], int(found[1]))
    repeats = ["--repeats", "1"] if quick else []
    for (model, rows, length, dtype, packs), dropout in itertools.product(QUICK if quick else STEPS, ATTENTION_DROPOUT):
        title = f"{model}, {rows} x {length}{' packed' if packs else ''}, {dtype}, attention dropout {dropout}"
        options = ["--model", model, "--batch", str(rows), "--length", str(length), "--dtype", dtype, *repeats]
        options += ["--attention-dropout", dropout, *(["--data", "demo", "--pack"] if packs else [])]
        yield f"Train step: {title}", ["-m", "benchmarks.train_step", *options], {}
        if topology:
            values = {"train.batch_size": rows, "data.sequence_length": length, "train.dtype": dtype}
            values |= {"model.attention_dropout": dropout, "data.pack": packs}
            overrides = [f"{key}={str(value).lower()}" for key, value in values.items()]
            account = ["-m", "benchmarks.accelerators", *overrides, "--recipes", model, "--topologies", topology]
            yield f"The compiler's account: {title}", account, {}
    options = ["--new", "32"] if quick else ["--batch", "1", "8", "--dtype", "bfloat16", "float32"]
    yield "Generation", ["-m", "benchmarks.generate", *options, *repeats], {}


def find_topology(kind: str, count: int) -> str | None:
    """The name of a topology of `count` devices of a kind; None if `plan --topology` knows none."""
    name = next((name for name, target in targets.TARGETS.items() if target.kind == kind), None)
    if name is None or targets.TARGETS[name].platform == "cuda":
        return name and f"{name}:{count}"
    shapes = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4"} if name == "v5p" else {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4"}
    return f"{name}:{shapes[count]}" if count in shapes else None


def run(part: Part) -> str:
    """Run a command; return its section of the report."""
    title, arguments, environment = part
    began = time.monotonic()
    done = subprocess.run([sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True)
    command = " ".join([*(f"{name}={value}" for name, value in environment.items()), "python", *arguments])
    lines = [f"## {title}", f"`{command}` ({time.monotonic() - began:.0f} s)", done.stdout.strip()]
    if done.returncode:
        lines += [f"It failed with exit code {done.returncode}:", f"```\n{done.stderr.strip()[-3000:]}\n```"]
    return "\n\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run all parts and write the report; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/device_report.md"))
    parser.add_argument("--quick", action="store_true", help="one small model, to try the report itself")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    asked = [sys.executable, "-m", "train", "--version"]
    versions = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    report = f"# Measured on a device, {time.strftime('%Y-%m-%d')}\n\n```\n{versions}\n```\n"
    for part in parts(versions, options.quick):
        print(f"{part[0]} ...", flush=True)
        report += "\n" + run(part)
        write_whole(options.out, report)
    print(f"written: {options.out}")
    return int("It failed with exit code" in report)


if __name__ == "__main__":
    sys.exit(main())
