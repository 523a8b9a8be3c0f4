"""Continue a text with a GPT-1 from a run or model folder; print the text while it is generated."""

import argparse
from typing import Any

from . import add_model, whole_number

MOST_SAMPLES = 1_000_000  # texts that are generated at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a run or model folder, a prompt, and decoding options."""
    add_model(parser, "the run folder or model folder of a GPT-1")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument(
        "--max-new-tokens", type=whole_number, default=64, metavar="N", help="tokens to add (default 64)"
    )
    parser.add_argument(
        "--min-new-tokens", type=whole_number, default=0, metavar="N", help="no end token before N tokens were added"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default): always the most likely token")
    parser.add_argument(
        "--top-k", type=whole_number, default=0, metavar="K", help="sample from the K likeliest tokens; 0: all"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest tokens of total probability P"
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1: tokens of the text so far become less likely",
    )
    parser.add_argument(
        "--end-token", metavar="TOKEN", help="the token of the vocabulary after which the text ends; default: none"
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end after this text; may be repeated"
    )
    parser.add_argument(
        "--samples", type=whole_number, default=1, metavar="N", help="texts to sample (default 1); above 1 not streamed"
    )
    parser.add_argument(
        "--log-probs", action="store_true", help="print the log-probability of each token after the text"
    )
    parser.add_argument("--cut-left", action="store_true", help="truncate a prompt that is too long at its beginning")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sampling")


def run(options: argparse.Namespace) -> None:
    """Print the prompt with its continuation, or with several."""
    import jax

    from bertgpt.errors import InputError

    from ..folders.run_folder import load_run, require_architecture

    _check(options)
    found = load_run(options.run, revision=options.revision)
    model, params, tokenizer, _ = require_architecture(found, "gpt", "generate", "fill-mask")
    end = None if options.end_token is None else tokenizer.token_to_id(options.end_token)
    if options.end_token is not None and end is None:
        raise InputError(f"--end-token {options.end_token!r:.80} is not in the vocabulary; give one of its tokens")
    choice: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "key": jax.random.key(options.seed),
        "top_k": options.top_k,
        "top_p": options.top_p,
        "repetition_penalty": options.repetition_penalty,
        "min_new_tokens": options.min_new_tokens,
        "end_id": end,
        "stop_strings": options.stop,
        "tokenizer": tokenizer,
        "cut_left": options.cut_left,
    }
    if options.samples == 1 and not options.log_probs:
        _print_stream(model, params, tokenizer.encode(options.prompt).ids, choice)
    else:
        _print_samples(model, params, tokenizer.encode(options.prompt).ids, choice, options)


def _check(options: argparse.Namespace) -> None:
    from bertgpt.errors import InputError

    from ..reports import check_text

    if options.max_new_tokens < 1:
        raise InputError("--max-new-tokens must be at least 1")
    if not 1 <= options.samples <= MOST_SAMPLES:
        raise InputError(f"--samples must be at least 1 and at most {MOST_SAMPLES:,}")
    if options.samples > 1 and options.temperature == 0:
        raise InputError("--samples above 1 needs a --temperature above 0, since all samples would be the same")
    if options.min_new_tokens and options.end_token is None:
        raise InputError("--min-new-tokens needs --end-token, the token that it holds back")
    for text in (options.prompt, *options.stop, options.end_token or ""):
        check_text(text)
    if not 0 <= options.seed < 2**32:
        raise InputError("--seed must be at least 0 and under 4294967296")


def _print_stream(model: Any, params: Any, ids: list[int], choice: dict[str, Any]) -> None:
    """Print one text while it is generated."""
    from bertgpt.inference.decoding import stream

    from ..reports import say

    tokenizer = choice["tokenizer"]
    new = stream(model, params, ids, **choice)
    shown = tokenizer.decode(ids)
    say(shown, end="")
    for token in new:
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):  # else the last character is incomplete
            say(text.removeprefix(shown), end="")
            shown = text
    say("")


def _print_samples(
    model: Any, params: Any, prompt: list[int], choice: dict[str, Any], options: argparse.Namespace
) -> None:
    """Print each text under its number, followed by a line per new token if log-probabilities are wanted."""
    from bertgpt.inference.decoding import generate

    from ..reports import say

    tokenizer, count = choice["tokenizer"], options.samples
    rows, log_probs = generate(model, params, [prompt], num_return_sequences=count, output_log_probs=True, **choice)
    for number, (ids, values) in enumerate(zip(rows, log_probs, strict=True), 1):
        if count > 1:
            say(f"sample {number} of {count}")
        new = ids[len(ids) - len(values) :].tolist()
        say(tokenizer.decode(prompt + new))  # the whole prompt, even if --cut-left has truncated it
        if options.log_probs:
            for token, value in zip(new, values.tolist(), strict=True):
                say(f"  {value:8.3f}  {tokenizer.id_to_token(token) or token}")
            say(f"  {values.sum():8.3f}  sum of {len(values)} tokens")
        if number < count:
            say("")
