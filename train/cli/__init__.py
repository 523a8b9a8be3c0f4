"""One module per command, with `add_arguments` and `run`."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def add_model(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the arguments of a command that uses a model: a folder or name, and the revision of a name."""
    parser.add_argument("run", metavar="RUN", help=f"{help}, or the name of a model on the Hugging Face hub")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a model on the hub (default: main)")


def whole_number(text: str) -> int:
    """The type of an argument: a whole number that 32 bits hold."""
    from bertgpt.errors import excerpt, quoted

    try:
        found = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number") from None
    if abs(found) >= 2**31:
        raise argparse.ArgumentTypeError(f"{excerpt(text)} is too large; the maximum is {2**31 - 1:,}")
    return found


def parse_list(name: str, text: str | None, known: Iterable[str]) -> list[str]:
    """The names in "A,B", in the order of the known ones and in any case; None: all of them.

    Raises:
        InputError: a name is unknown.
    """
    from bertgpt.errors import InputError, quoted

    spelled = {one.lower(): one for one in known}
    if text is None:
        return list(spelled.values())
    wanted = [part.strip().lower() for part in text.split(",")]
    for part in wanted:
        if part not in spelled:
            raise InputError(f"{name}: unknown name {quoted(part)}; choose from {', '.join(spelled.values())}")
    return [one for lower, one in spelled.items() if lower in wanted]


def parse_rates(text: str | None, default: Sequence[float]) -> list[float]:
    """The learning rates in "5e-5,2e-5", without repetitions; None: the default.

    Raises:
        InputError: one is not a number above 0.
    """
    from bertgpt.errors import InputError, quoted

    if text is None:
        return list(default)
    try:
        found = list(dict.fromkeys(map(float, text.split(","))))
    except ValueError:
        found = []
    if not found or not all(0 < rate < 1 for rate in found):
        raise InputError(f"--learning-rates is {quoted(text)}; give numbers between 0 and 1, such as 5e-5,2e-5")
    return found


def check_seeds(seeds: int) -> None:
    """
    Raises:
        InputError: the number of seeds is below 1.
    """
    from bertgpt.errors import InputError

    if seeds < 1:
        raise InputError("--seeds must be at least 1")


def add_grid(parser: argparse.ArgumentParser, seeds: int, rates: str, out: str) -> None:
    """Add the arguments of fine-tuning runs over learning rates and seeds, with their defaults; `rates` is a help."""
    parser.add_argument("model", metavar="MODEL", help="a run or model folder, or the name of a model on the hub")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="dotted keys, such as train.dtype=bfloat16")
    parser.add_argument(
        "--seeds", type=whole_number, default=seeds, metavar="N", help=f"runs of each rate (default {seeds})"
    )
    parser.add_argument("--learning-rates", metavar="A,B", help=rates)
    parser.add_argument("--out", metavar="FOLDER", default=out, help=f"output folder (default: {out})")


def local_folder(name: str, text: str) -> Path:
    """A folder given as an argument, with ~ replaced.

    Raises:
        InputError: it is an address, or no file can have this name.
    """
    from bertgpt.errors import check_local

    from ..config import expand_home

    check_local(name, text)
    return Path(expand_home(text, name))


def score_cells(task: dict[str, Any], metric: str) -> tuple[str, str, str]:
    """The best run, the mean and deviation over seeds, and the learning rate of a summary, as texts."""
    mean, deviation = task["mean"][metric], task["deviation"][metric]
    spread = "" if deviation is None else f" ± {deviation:.1f}"
    return f"{task['best'][metric]:.1f}", f"{mean:.1f}{spread}", f"{task['best']['learning_rate']:g}"
