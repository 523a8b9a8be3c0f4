"""Continue a text with a run's GPT-1."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run folder, a prompt, and how to decode."""
    parser.add_argument("run", metavar="RUN", help="the run folder of a GPT-1")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="tokens to add (default 64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (the default)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")


def run(options: argparse.Namespace) -> None:
    """Prints the prompt with its continuation."""
    import jax
    import numpy as np

    from bertgpt.decoding import generate
    from bertgpt.errors import InputError
    from train.reports import say
    from train.runs import load_run, need

    if options.max_new_tokens < 1 or options.temperature < 0:
        raise InputError("--max-new-tokens must be at least 1 and --temperature at least 0")
    model, params, tokenizer, _ = need(load_run(options.run), "gpt", "generate", "fill-mask")
    prompt = np.array([tokenizer.encode(options.prompt).ids], np.int32)
    key = jax.random.key(options.seed)
    ids = generate(model, params, prompt, options.max_new_tokens, options.temperature, key)
    say(tokenizer.decode(np.asarray(ids[0]).tolist()))
