"""Score a fine-tuned model on labelled rows: print a table, write evaluation.json and, for classes, confusion.png."""

import argparse
from pathlib import Path

from . import add_model, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a run or model folder, and rows."""
    add_model(parser, "a fine-tuned run folder, or a model folder with a task head")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="such as task.label=stars")
    parser.add_argument("--data", metavar="PATH", help="labelled rows (default: those that the run held out)")
    parser.add_argument("--step", type=whole_number, metavar="N", help="checkpoint to use (default: the best)")
    parser.add_argument("--batch-size", type=whole_number, metavar="N", help="inputs per batch (default: the run's)")
    parser.add_argument("--out", metavar="FOLDER", help="output folder (default: RUN)")


def run(options: argparse.Namespace) -> None:
    """Print the table and, for entities, one with a row per type."""
    from bertgpt.errors import InputError, check_local, quoted
    from bertgpt.hub import is_name

    from ..config import expand_home
    from ..folders.run_folder import load_run
    from ..jobs.evaluating import evaluate, load_tuned
    from ..reports import show_table, show_types

    for given in options.overrides:
        if "=" not in given:
            raise InputError(f"{quoted(given)}: give rows with --data PATH, and settings as KEY=VALUE")
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError("--batch-size must be at least 1")
    out = options.run if options.out is None else expand_home(options.out, "--out")
    check_local("the output folder", out)
    if options.out is None and is_name(options.run):
        raise InputError(f"--out is missing; {options.run} is a model on the hub, so give a folder for its scores")
    found = load_run(options.run, options.step, options.revision)
    tuned = load_tuned(found, options.run, options.overrides)
    if options.data is not None:
        tuned.config.data.eval = expand_home(options.data, "--data")
    scores = evaluate(tuned, Path(out), options.batch_size)
    by_type = scores.pop("by_type", {})
    show_table(f"{tuned.kind}, step {tuned.run.step}", scores)
    if by_type:
        show_types(by_type)
