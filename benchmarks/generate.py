"""Greedy generation by a GPT-1 with a key-value cache, compared with computing the whole text again for each token.

python -m benchmarks.generate [--preset gpt1] [--new 256] [--batch 1] [--dtype float32] [--plain-tokens 8]
python -m benchmarks.generate --against transformers --batch 1 8 --dtype float32 bfloat16

With --against transformers, it is compared with `generate` of transformers' GPT-1, which has no cache, and GPT-2 of the
same size with a cache, both with weights in the dtype. Without a cache, generation is slow. It is therefore timed only
for --plain-tokens tokens, spread evenly over the continuation, each after a text of the length that it would follow.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bertgpt
from benchmarks import side_by_side
from benchmarks.side_by_side import Make, Range, Rates, Work
from benchmarks.train_step import their_sizes
from bertgpt import presets
from bertgpt.config import ModelConfig
from bertgpt.errors import InputError

RUN = 4  # tokens that transformers adds per call, to amortize the cost of the call
CACHED = "bertgpt"
SPEED = "tokens"


def make_prompt(config: ModelConfig, batch: int, length: int) -> np.ndarray:
    """Random ids [B T]."""
    return np.random.default_rng(0).integers(1, min(1000, config.vocab_size), (batch, length))


def places(start: int, new: int, count: int) -> list[int]:
    """Return the lengths of the text at the middle of each of `count` equal parts of the continuation."""
    return [start + int((number + 0.5) * new / count) for number in range(count)]


def our_model(config: ModelConfig, dtype: str) -> tuple[Any, Any]:
    """Return the model and random parameters."""
    model = bertgpt.OpenAIGPTLMHeadModel(config, jnp.dtype(dtype))
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def cached(config: ModelConfig, dtype: str, prompt: np.ndarray, new: int) -> Work:
    """Work: generate the whole continuation with `bertgpt.generate`."""
    model, params = our_model(config, dtype)

    def step(_: int) -> None:
        bertgpt.generate(model, params, prompt, new).block_until_ready()

    amount: Rates = {SPEED: len(prompt) * new}
    return Work(step, lambda: None, [amount], side_by_side.jax_about(1), side_by_side.jax_peak_bytes)


def anew(config: ModelConfig, dtype: str, prompt: np.ndarray, new: int, tokens: int) -> Work:
    """Work: compute the whole text again for each token."""
    model, params = our_model(config, dtype)
    plain = jax.jit(lambda params, ids: model.apply({"params": params}, ids).logits[:, -1].argmax(-1))
    lengths = places(prompt.shape[1], new, tokens)
    texts = [jnp.asarray(np.resize(prompt, (len(prompt), length))) for length in lengths]

    def step(_: int) -> None:
        for text in texts:
            plain(params, text).block_until_ready()

    amount: Rates = {SPEED: len(prompt) * len(texts)}
    return Work(step, lambda: None, [amount], side_by_side.jax_about(1), side_by_side.jax_peak_bytes)


def their_model(config: ModelConfig, name: str, dtype: str) -> Any:
    """Return transformers' GPT-1 or GPT-2 of the same size, with random weights in the dtype and no end token."""
    import torch
    import transformers

    sizes = their_sizes(config)
    kind = getattr(transformers, f"{name}Config")(**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}LMHeadModel")(kind).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu", getattr(torch, dtype))


def theirs(config: ModelConfig, name: str, dtype: str, prompt: np.ndarray, runs: list[tuple[int, int]]) -> Work:
    """Work: transformers' `generate`; each run is the length of the initial text and the number of tokens to add."""
    import torch

    about = side_by_side.torch_about()
    model = their_model(config, name, dtype)
    has_cache = name == "GPT2"
    about |= {"model": name, "cache": has_cache}
    texts = [torch.tensor(np.resize(prompt, (len(prompt), length)), device=model.device) for length, _ in runs]

    def step(_: int) -> None:
        for text, (_, count) in zip(texts, runs, strict=True):
            mask = torch.ones_like(text)
            model.generate(text, attention_mask=mask, max_new_tokens=count, do_sample=False, use_cache=has_cache)

    amount: Rates = {SPEED: len(prompt) * sum(count for _, count in runs)}
    return Work(step, side_by_side.torch_wait, [amount], about, side_by_side.torch_peak_bytes)


def make_sides(options: argparse.Namespace, config: ModelConfig, batch: int, dtype: str) -> dict[str, Make]:
    """Return bertgpt with the cache, and the sides to compare it with."""
    prompt, new = make_prompt(config, batch, options.prompt), options.new
    sides: dict[str, Make] = {CACHED: (cached, config, dtype, prompt, new)}
    if not options.against:
        return sides | {"anew": (anew, config, dtype, prompt, new, options.plain_tokens)}
    parts = [(place - RUN // 2, RUN) for place in places(options.prompt, new, max(1, options.plain_tokens // RUN))]
    slow = [(options.prompt, new)] if options.plain_tokens >= new else parts
    return sides | {
        "transformers GPT-1, no cache": (theirs, config, "OpenAIGPT", dtype, prompt, slow),
        "transformers GPT-2, cache": (theirs, config, "GPT2", dtype, prompt, [(options.prompt, new)]),
    }


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, ModelConfig]:
    """Return the options and the model's configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt1", choices=[name for name in presets.ALL if name.startswith("gpt")])
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    parser.add_argument("--plain-tokens", type=int, default=8)
    parser.add_argument("--against", choices=("transformers",))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=side_by_side.OUT)
    options = parser.parse_args(arguments)
    config = presets.get(options.preset)
    room = config.max_positions - options.prompt
    if not RUN <= options.new <= room or options.prompt < 1:
        raise InputError(
            f"--new is {options.new} and --prompt {options.prompt}; --new must be from {RUN} to {room}, and --prompt "
            "at least 1"
        )
    if min(*options.batch, options.plain_tokens, options.repeats) < 1:
        raise InputError("--batch, --plain-tokens and --repeats must be at least 1")
    return options, config


def report(options: argparse.Namespace, results: dict[str, Any], batch: int, dtype: str) -> dict[str, Any]:
    """Print and return the figures of one batch size and dtype."""
    print(f"{options.preset}, {dtype}, batch {batch}, {options.new} new tokens after {options.prompt}")
    for line in side_by_side.describe(results):
        print(f"  {line}")
    noted: dict[str, Any] = {"batch": batch, "dtype": dtype, "sides": results, "ratios": {}}
    for name, result in results.items():
        speed = side_by_side.show(side_by_side.of(result, SPEED), 2)
        memory = f", peak memory {side_by_side.memory(result)}" if options.against else ""
        print(f"  {name}: {speed} tokens/s{memory}")
        if name != CACHED:
            noted["ratios"][name] = found = side_by_side.ratio(results[CACHED], result, SPEED)
            print(f"  {CACHED} / {name}: {side_by_side.show(found, 2)}")
    return noted


def main(arguments: list[str] | None = None) -> None:
    """Measure each batch size with each dtype; print the results and write them to files."""
    options, config = parse(arguments)
    if options.against:
        side_by_side.need_transformers()
    noted: list[dict[str, Any]] = []
    bars: dict[str, Range] = {}
    for dtype in options.dtype:
        for batch in options.batch:
            sides = make_sides(options, config, batch, dtype)
            results = side_by_side.measure(sides, options.repeats, apart=options.against is not None)
            noted.append(report(options, results, batch, dtype))
            bars |= {
                f"{name}, {dtype}, batch {batch}": side_by_side.of(result, SPEED) for name, result in results.items()
            }
    name = f"generate_{options.preset}" + (f"_against_{options.against}" if options.against else "")
    title = f"{options.preset}, greedy, {options.new} new tokens\n{results[CACHED]['about']['device']}"
    side_by_side.write(options.out, name, {"options": vars(options), "runs": noted}, bars, title)


if __name__ == "__main__":
    sys.exit(side_by_side.leave(main))
