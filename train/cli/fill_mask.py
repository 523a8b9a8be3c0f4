"""Predict each [MASK] of a text with a BERT: print the five most likely tokens with their probabilities."""

import argparse

from . import add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a run or model folder, and a text."""
    add_model(parser, "the run or model folder of a BERT")
    parser.add_argument("text", metavar="TEXT", help='such as "the capital of france is [MASK] ."')


def run(options: argparse.Namespace) -> None:
    """Print the tokens for each mask."""
    from bertgpt.inference.fill_mask import fill_mask

    from ..folders.run_folder import load_run, require_architecture
    from ..reports import check_text, say

    check_text(options.text)
    found = load_run(options.run, revision=options.revision)
    model, params, tokenizer, _ = require_architecture(found, "bert", "fill-mask", "generate")
    say(options.text)
    for best in fill_mask(model, params, tokenizer, options.text):
        say("  [MASK]: " + "  ".join(f"{piece} {probability:.3f}" for piece, probability in best))
