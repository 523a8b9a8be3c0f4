"""Draw curves.png from a run's metrics.jsonl, and print its final results."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument: a run folder."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")


def run(options: argparse.Namespace) -> None:
    """Print the report."""
    from ..reports import report, say

    for line in report(options.run):
        say(line)
