"""A scan over stacked layers compared with a Python loop: compile time and step time of bert_base's stack.

python -m benchmarks.layers [--layers 12] [--batch 16] [--length 128] [--steps 5]
"""

import argparse
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import bertgpt
from bertgpt.model.blocks import Block, Stack


class ScanStack(nn.Module):
    """The blocks of `Stack`, as one scan over parameters stacked on a leading axis."""

    config: bertgpt.ModelConfig

    @nn.compact
    def __call__(self, x, attention_mask=None, pack_ids=None, deterministic=True):
        scan = nn.scan(
            lambda block, x, _: (block(x, attention_mask, pack_ids, deterministic)[0], None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.config.num_layers,
        )
        return [scan(Block(self.config, self.config.causal), x, None)[0]], None, None


def compiled_step(stack, x):
    """Return (step, state, seconds to compile) for forward, backward and AdamW update with dropout."""
    optimizer = optax.adamw(1e-4)
    key = jax.random.key(0, impl="rbg")

    def loss(params, key):
        outputs, _ = stack.apply(params, x, deterministic=False, rngs={"dropout": key})
        return jnp.square(outputs[-1]).sum()

    def step(params, opt_state, key):
        updates, opt_state = optimizer.update(jax.grad(loss)(params, key), opt_state, params)
        return optax.apply_updates(params, updates), opt_state, jax.random.fold_in(key, 1)

    params = stack.init(key, x)
    state = (params, optimizer.init(params), key)
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1, 2)).lower(*state).compile()
    return compiled, state, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    config = bertgpt.presets.bert_base(num_layers=options.layers)
    x = jax.random.normal(jax.random.key(1), (options.batch, options.length, config.hidden_size))
    runs = {"scan": compiled_step(ScanStack(config), x), "loop": compiled_step(Stack(config), x)}
    states = {name: state for name, (_, state, _) in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.steps + 1):
        for name, (step, _, _) in runs.items():
            start = time.perf_counter()
            states[name] = jax.block_until_ready(step(*states[name]))
            times[name].append(time.perf_counter() - start)
    for name, (_, _, compile_seconds) in runs.items():
        print(f"{name}: compile {compile_seconds:.1f} s, step {statistics.median(times[name][1:]):.3f} s")
    ratios = [scan / loop for scan, loop in zip(times["scan"][1:], times["loop"][1:], strict=True)]
    print(f"step, scan / loop: {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
