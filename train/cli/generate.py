"""Continue a text with a GPT-1 from a run or model folder; print the text while it is generated."""

import argparse

from . import add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a run or model folder, a prompt, and decoding options."""
    add_model(parser, "the run folder or model folder of a GPT-1")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="tokens to add (default 64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default): always the most likely token")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens; 0: all")
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens of total probability P",
    )
    parser.add_argument("--cut-left", action="store_true", help="truncate a prompt that is too long at its beginning")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sampling")


def run(options: argparse.Namespace) -> None:
    """Print the prompt with its continuation."""
    import jax

    from bertgpt.errors import InputError
    from bertgpt.inference.decoding import stream

    from ..folders.run_folder import load_run, require_architecture
    from ..reports import check_text, say

    if options.max_new_tokens < 1:
        raise InputError("--max-new-tokens must be at least 1")
    check_text(options.prompt)
    if not 0 <= options.seed < 2**32:
        raise InputError("--seed must be at least 0 and under 4294967296")
    found = load_run(options.run, revision=options.revision)
    model, params, tokenizer, _ = require_architecture(found, "gpt", "generate", "fill-mask")
    ids = tokenizer.encode(options.prompt).ids
    new = stream(
        model,
        params,
        ids,
        options.max_new_tokens,
        options.temperature,
        jax.random.key(options.seed),
        top_k=options.top_k,
        top_p=options.top_p,
        cut_left=options.cut_left,
    )
    shown = tokenizer.decode(ids)
    say(shown, end="")
    for token in new:
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):  # else the last character is incomplete
            say(text.removeprefix(shown), end="")
            shown = text
    say("")
