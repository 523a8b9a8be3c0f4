"""Write a run's model as a Hugging Face folder, or as StableHLO."""

import argparse
from pathlib import Path

from bertgpt.errors import InputError, check_local

from . import add_model, whole_number

FORMATS = ("huggingface", "stablehlo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a run folder, an output folder, and the format."""
    add_model(parser, "a run folder, or a model folder to convert")
    parser.add_argument("folder", metavar="FOLDER", help="output folder; created or replaced")
    parser.add_argument("--step", type=whole_number, metavar="N", help="checkpoint to use (default: the best)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help=f"default: {FORMATS[0]}")


def run(options: argparse.Namespace) -> None:
    """Write the folder."""
    check_local("the output folder", options.folder)
    if (Path(options.folder) / "checkpoints").is_dir():
        raise InputError(f"{options.folder} is a run folder; give another folder, which is created or replaced")

    from bertgpt.checkpoints.save import save_pretrained
    from bertgpt.inference.stablehlo import export_stablehlo

    from ..folders.run_folder import load_run
    from ..reports import say

    model, params, tokenizer, step = load_run(options.run, options.step, options.revision)
    write = save_pretrained if options.format == "huggingface" else export_stablehlo
    write(options.folder, model, params, tokenizer)
    say(f"{type(model).__name__}{f' of step {step}' if step else ''} written to {options.folder}")
