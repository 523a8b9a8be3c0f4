"""Embed texts with a BERT or GPT-1: print one JSON object per line, with `text` and `embedding` (6 decimals)."""

import argparse

from . import add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a run or model folder, texts, and the pooling."""
    add_model(parser, "a run folder or model folder")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="texts (default: the lines of standard input)")
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls"),
        default="mean",
        help="mean of all tokens (default), or [CLS]",
    )


def run(options: argparse.Namespace) -> None:
    """Print the objects."""
    import json
    import sys

    from bertgpt.errors import InputError
    from bertgpt.inference.embed import embed

    from ..folders.run_folder import load_run
    from ..reports import check_text

    try:
        texts = options.texts or [line.rstrip("\n") for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: {error}") from error
    if not texts:
        raise InputError("there are no texts; give some as arguments or on standard input")
    for text in texts:
        check_text(text)
    model, params, tokenizer, _ = load_run(options.run, revision=options.revision)
    for text, vector in zip(texts, embed(model, params, tokenizer, texts, options.pooling), strict=True):
        print(json.dumps({"text": text, "embedding": [round(float(x), 6) for x in vector]}, ensure_ascii=False))
