"""One module per command, with `add_arguments` and `run`."""

import argparse


def add_model(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the arguments of a command that uses a model: a folder or name, and the revision of a name."""
    parser.add_argument("run", metavar="RUN", help=f"{help}, or the name of a model on the Hugging Face hub")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a model on the hub (default: main)")
