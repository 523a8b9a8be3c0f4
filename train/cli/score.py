"""Score texts: print the log-probability and perplexity of each as a JSON object per line, or of a whole file."""

import argparse
from typing import Any

from . import add_model, whole_number
from .texts import add_texts, read_texts, watched


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a run or model folder, texts or a file, and what is printed."""
    add_model(parser, "the run or model folder of a GPT-1, or of a BERT with an MLM head")
    add_texts(parser, "paragraph")
    parser.add_argument("--tokens", action="store_true", help="also the log-probability of each token")
    parser.add_argument("--out", metavar="FILE", help="with --file: write one JSON object per text to this file")
    parser.add_argument(
        "--stride",
        type=whole_number,
        metavar="N",
        help="of GPT-1 on long texts: tokens that each further window scores",
    )
    parser.add_argument("--batch-size", type=whole_number, default=32, metavar="N", help="rows per batch (default 32)")


def run(options: argparse.Namespace) -> None:
    """Print the scores of the texts; of a file, one object with the perplexity of all its texts."""
    import contextlib
    import json
    from pathlib import Path

    from bertgpt.errors import InputError
    from bertgpt.inference.score import score_each

    from ..atomic_files import whole_file
    from ..folders.run_folder import load_run

    if options.file is None and options.out is not None:
        raise InputError("--out needs --file")
    if options.file is not None and options.tokens and options.out is None:
        raise InputError("--tokens with --file needs --out, the file to write them to")
    model, params, tokenizer, _ = load_run(options.run, revision=options.revision)
    scores = score_each(
        model, params, tokenizer, read_texts(options), stride=options.stride, batch_size=options.batch_size
    )
    total = {"texts": 0, "tokens": 0, "log_prob": 0.0}
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(whole_file(Path(options.out))) if options.out else None
        for found in watched(scores, "scoring", options, prints=options.file is None):
            for name, value in (("texts", 1), ("tokens", found.count), ("log_prob", found.log_prob)):
                total[name] += value
            line = json.dumps(_describe(found, tokenizer, options.tokens), ensure_ascii=False)
            if out is not None:
                out.write(line.encode() + b"\n")
            elif options.file is None:
                print(line, flush=True)
    if options.file is not None:
        print(json.dumps(_with_perplexity({"file": options.file, **total}), ensure_ascii=False))


def _describe(score: Any, tokenizer: Any, with_tokens: bool) -> dict[str, Any]:
    """The score of a text as JSON values; null for a token without a log-probability."""
    found = _with_perplexity({"tokens": score.count, "log_prob": score.log_prob})
    if with_tokens:
        values = [None if value != value else round(value, 6) for value in score.log_probs.tolist()]
        pieces = [tokenizer.id_to_token(index) for index in score.ids.tolist()]
        found["token_log_probs"] = [list(pair) for pair in zip(pieces, values, strict=True)]
    return found


def _with_perplexity(found: dict[str, Any]) -> dict[str, Any]:
    """The sums of a text with its perplexity; null if it has no scored token, or if it is too large for JSON."""
    import math

    from bertgpt.inference.score import perplexity

    value = perplexity(found["log_prob"], found["tokens"])
    found["log_prob"] = round(found["log_prob"], 6)
    return found | {"perplexity": round(value, 6) if math.isfinite(value) else None}
