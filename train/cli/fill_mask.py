"""Fill every [MASK] of a text with a run's BERT: the five likeliest pieces with their probabilities."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run folder and a text."""
    parser.add_argument("run", metavar="RUN", help="the run or model folder of a BERT")
    parser.add_argument("text", metavar="TEXT", help='such as "the capital of france is [MASK] ."')


def run(options: argparse.Namespace) -> None:
    """Prints the pieces for each mask."""
    from bertgpt.inference.fill_mask import fill_mask

    from ..folders.run_folder import load_run, require_architecture
    from ..reports import say

    model, params, tokenizer, _ = require_architecture(load_run(options.run), "bert", "fill-mask", "generate")
    say(options.text)
    for best in fill_mask(model, params, tokenizer, options.text):
        say("  [MASK]: " + "  ".join(f"{piece} {probability:.3f}" for piece, probability in best))
