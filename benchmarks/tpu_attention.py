"""The TPU's attention kernel beside plain attention, by the TPU compiler's account; nothing is measured on a device.

python -m benchmarks.tpu_attention [--topology v5e:1x1]

A kernel has no estimate in the compiled program, so its schedule is counted: the compiler writes out the instructions
of a grid step, one line per cycle. Plain attention is timed as in `plan --topology`. Needs the extra aot-tpu.
"""

import argparse
import functools
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from bertgpt.model import attention, tpu_attention
from bertgpt.model.attention import Masks
from bertgpt.model.dropout import Dropout
from train import estimate, hlo, targets

RATE = 0.1
SCHEDULE = "*final_hlo-static-per-bundle-utilization.txt"


class Case(NamedTuple):
    """Sizes of a batch, and whether it is causal; rows that are not causal have an attention mask."""

    batch: int
    length: int
    heads: int
    width: int
    causal: bool


CASES = (
    Case(8, 512, 12, 64, True),
    Case(8, 512, 12, 64, False),
    Case(16, 256, 12, 64, False),
    Case(32, 128, 12, 64, False),
    Case(32, 128, 16, 64, False),
)


def compiled(function: Any, case: Case, device: Any, arrays: int) -> str:
    """Compile a function of bfloat16 arrays, a mask and a dropout key for a device; return the program."""
    place = SingleDeviceSharding(device)
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=place)
    x = shape((case.batch, case.length, case.heads * case.width), jnp.bfloat16)
    given = (shape((case.batch, case.length), jnp.int32), shape((2,), jnp.uint32))
    with jax.default_device(device):
        return jax.jit(function, out_shardings=place).lower(*[x] * arrays, *given).compile().as_text()


def forms(case: Case, plain: bool) -> tuple[Any, Any]:
    """Attention, and its gradient, as functions of flat arrays [B T D], a mask [B T] and a dropout key."""

    def attend(*arrays: Any, mask: Any, words: Any) -> Any:
        parts = (x.reshape(case.batch, case.length, case.heads, case.width) for x in arrays)
        masks = Masks(case.causal, None if case.causal else mask)
        if not plain:
            return tpu_attention.attention(*parts, **masks._asdict(), rate=RATE, words=words).reshape(arrays[0].shape)
        module, key = Dropout(RATE, deterministic=False), jax.random.wrap_key_data(words)
        run = nn.apply(lambda m: attention.dot_product_attention(*parts, masks, None, m).mixed, module)
        return run({}, rngs={"dropout": key}).reshape(arrays[0].shape)

    def forward(query: Any, key: Any, value: Any, mask: Any, words: Any) -> Any:
        return attend(query, key, value, mask=mask, words=words)

    def gradient(query: Any, key: Any, value: Any, slope: Any, mask: Any, words: Any) -> Any:
        made, back = jax.vjp(functools.partial(attend, mask=mask, words=words), query, key, value)
        return (made, back(slope)) if plain else back(slope)

    return forward, gradient


def kernel_seconds(case: Case, device: Any, clock: float, folder: Path) -> float:
    """The time of both kernels by the compiler's schedule."""
    rows = tpu_attention.rows_of_step(case.batch, case.length)
    steps = case.batch // rows * case.heads * case.width // tpu_attention.LANES
    cycles = 0
    for function, arrays in zip(forms(case, plain=False), (3, 4), strict=True):
        before = set(folder.glob(SCHEDULE))
        compiled(function, case, device, arrays)
        made = set(folder.glob(SCHEDULE)) - before
        cycles += max(sum(line[:1].isdigit() for line in path.read_text().splitlines()) for path in made)
    return steps * cycles / clock


def main(arguments: list[str] | None = None) -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:1x1")
    topology = parser.parse_args(arguments).topology
    jax.config.update("jax_platforms", "cpu")
    print("| rows x tokens, heads x width | masks | kernel, ms | plain, ms | plain / kernel |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        target, device = targets.find(topology), targets.devices(topology)[0]
        for case in CASES:
            kernel = kernel_seconds(case, device, target.clock, Path(folder))
            text = compiled(forms(case, plain=True)[1], case, device, 4)
            plain = estimate.estimate(hlo.parse(text), target).step
            sizes = f"{case.batch} x {case.length}, {case.heads} x {case.width}"
            mask = "causal" if case.causal else "padding"
            times = f"{1e3 * kernel:.3f} | {1e3 * plain:.3f} | {plain / kernel:.1f}"
            print(f"| {sizes} | {mask} | {times} |", flush=True)


if __name__ == "__main__":
    main()
