"""Draw the curves of a run and print its final results; of several runs, draw them over each other and compare them."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: run folders, and the picture to write."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, or its address; several are compared")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the .png file to write (default: RUN/curves.png; for several runs or an address, ./curves.png)",
    )


def run(options: argparse.Namespace) -> None:
    """Print the report, or the comparison."""
    from bertgpt.errors import InputError

    from ..addresses import is_storage
    from ..comparison import compare
    from ..config import expand_home
    from ..folders.run_storage import fetched_small
    from ..reports import report, say

    if options.out is not None and not options.out.endswith(".png"):
        raise InputError(f"--out is {options.out}; it must end in .png")
    picture = None if options.out is None else Path(expand_home(options.out, "--out"))
    folders = [fetched_small(run) if is_storage(run) else Path(run) for run in options.runs]
    here = Path("curves.png")
    if len(folders) > 1:
        compare(folders, picture or here)
        return
    if is_storage(options.runs[0]):
        picture = picture or here
    for line in report(folders[0], picture):
        say(line)
