"""Draw the curves of a run and print its final results; of several runs, draw them over each other and compare them."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: run folders, and the picture to write."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run folder; several are compared")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the .png file to write (default: RUN/curves.png; for several runs, curves.png in the current folder)",
    )


def run(options: argparse.Namespace) -> None:
    """Print the report, or the comparison."""
    from bertgpt.errors import InputError

    from ..comparison import compare
    from ..config import expand_home
    from ..reports import report, say

    if options.out is not None and not options.out.endswith(".png"):
        raise InputError(f"--out is {options.out}; it must end in .png")
    picture = None if options.out is None else Path(expand_home(options.out, "--out"))
    if len(options.runs) > 1:
        compare(options.runs, picture or Path("curves.png"))
        return
    for line in report(options.runs[0], picture):
        say(line)
