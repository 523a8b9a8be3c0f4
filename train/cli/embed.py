"""Turn texts into vectors with a BERT or GPT-1: a JSON object a line, with `text` and `embedding` (6 decimals)."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run or model folder, texts, and how to pool."""
    parser.add_argument("run", metavar="RUN", help="a run folder or model folder")
    parser.add_argument(
        "texts", metavar="TEXT", nargs="*", help="texts; a line of standard input each where none is given"
    )
    parser.add_argument(
        "--pooling", choices=("mean", "cls"), default="mean", help="over all tokens (default), or at [CLS]"
    )


def run(options: argparse.Namespace) -> None:
    """Prints the objects."""
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
        raise InputError("there are no texts; give some, or lines of standard input")
    for text in texts:
        check_text(text)
    model, params, tokenizer, _ = load_run(options.run)
    for text, vector in zip(texts, embed(model, params, tokenizer, texts, options.pooling), strict=True):
        print(json.dumps({"text": text, "embedding": [round(float(x), 6) for x in vector]}, ensure_ascii=False))
