"""Greedy continuation of a GPT-1 with the cache, against reading the whole text anew for every token.

    python -m benchmarks.generate [--preset gpt1] [--new 256] [--batch 1] [--dtype float32] [--plain-tokens 8]

The plain way is timed on a few tokens spread over the continuation, since it is slow; both sides are compiled before.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import bertgpt


def main() -> None:
    """Times both, in turn, three times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="gpt1")
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--plain-tokens", type=int, default=8)
    options = parser.parse_args()
    model = bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.get(options.preset), jnp.dtype(options.dtype))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    prompt = np.random.default_rng(0).integers(1, 1000, (options.batch, options.prompt))
    plain = jax.jit(lambda params, ids: model.apply({"params": params}, ids).logits[:, -1].argmax(-1))
    places = np.linspace(options.prompt, options.prompt + options.new - 1, options.plain_tokens).astype(int)
    texts = [jnp.asarray(np.resize(prompt, (options.batch, place))) for place in places]
    for text in texts:
        plain(params, text).block_until_ready()
    bertgpt.generate(model, params, prompt, options.new).block_until_ready()
    device = jax.devices()[0].device_kind
    print(f"{options.preset}, {options.dtype}, batch {options.batch}, {options.new} new tokens, on {device}")
    for _ in range(3):
        start = time.perf_counter()
        bertgpt.generate(model, params, prompt, options.new).block_until_ready()
        cached = options.batch * options.new / (time.perf_counter() - start)
        start = time.perf_counter()
        for text in texts:
            plain(params, text).block_until_ready()
        anew = options.batch * len(texts) / (time.perf_counter() - start)
        print(f"cached {cached:.1f} tokens/s, anew {anew:.2f} tokens/s, ratio {cached / anew:.1f}")


if __name__ == "__main__":
    main()
