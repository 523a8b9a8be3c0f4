"""The pretraining recipes compiled for TPUs and GPUs: memory, estimated time and collectives of a train step.

python -m benchmarks.accelerators [overrides ...] [--recipes bert_base gpt1] [--topologies v5e:2x4 h100:8]
python -m benchmarks.accelerators --clocks

Nothing is measured on a device, and none is needed. A compilation takes minutes. Finished ones are kept in the user's
cache folder, so a run that was stopped goes on where it was. Needs the extras aot-tpu and cuda.
"""

import argparse
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from benchmarks import side_by_side
from train import config as configs
from train import estimate, flops, hlo, parallel, targets
from train.jobs import compiling, planning
from train.targets import GIB

SIZES = ["model.init_from=null", "tokenizer.kind=wordpiece", "tokenizer.vocab_size=30522"]
MINILM = ["model.architecture=bert", "model.num_layers=6", "model.hidden_size=384", "model.num_heads=12"]
MINILM += ["model.mlp_size=1536"]
RECIPES: dict[str, list[str]] = {  # with what stands for a model that is not here
    "bert_demo": [],
    "bert_demo_long": [],
    "bert_demo_real": [*SIZES, *MINILM],
    "bert_zh_demo": [],
    "gpt1_demo": [],
    "bert_base": [],
    "bert_base_512": [*SIZES, "model.preset=bert_base", "model.activation=gelu_tanh"],
    "bert_large": [],
    "gpt1": [],
    "bert_mlm": [*SIZES, "model.preset=bert_base"],
}
TOPOLOGIES = ("v5e:2x4", "h100:8")
FURTHER = (("bert_large", "v5e:4x4"),)
SIDE = 16384  # of the product that is compared with a device's peak
COLUMNS = (
    *("recipe", "topology", "strategy", "memory, GiB", "step, ms", "compute", "without an estimate", "collectives"),
    *("model FLOPs at the peak, ms", "MFU", "tokens/s", "collectives of a step"),
)


def row(recipe: str, topology: str, overrides: Sequence[str]) -> str:
    """Compile a recipe's train step for a topology, and return a row of the table."""
    target, devices = targets.find(topology), targets.devices(topology)
    config = configs.load(recipe, ["data.train=text", *RECIPES[recipe], *overrides])
    plan = planning.make_plan(config, devices)
    step = compiling.compile_step(plan, topology)
    share = f"{step.needed / GIB:.2f} of {target.memory / GIB:.2f}"
    if not compiling.fits(step, target):
        return f"| {recipe} | {topology} | {strategy_of(plan)} | {share}: does not fit |" + " |" * 8
    program = hlo.parse(step.text)
    exchanged = ", ".join(compiling.summary(estimate.collectives(program))) or "none"
    peak = flops.peak(target.kind) or 1
    ideal = flops.step_flops(plan.model.config, plan.batch) / plan.strategy.devices / peak
    times = ["-"] * 4
    rates = ["-"] * 2
    if target.clock:
        found = estimate.estimate(program, target)
        times = [f"{1e3 * seconds:.1f}" for seconds in (found.step, found.compute, found.other, found.collectives)]
        rates = [f"{ideal / found.step:.1%}", f"{planning.tokens(plan.batch) / found.step:,.0f}"]
    cells = [recipe, topology, strategy_of(plan), share, *times, f"{1e3 * ideal:.1f}", *rates, exchanged]
    return "| " + " | ".join(cells) + " |"


def strategy_of(plan: planning.Plan) -> str:
    """The name of a plan's strategy; of a mesh with its sizes."""
    if isinstance(plan.strategy, parallel.OnMesh):
        return "mesh, " + " x ".join(str(size) for size in plan.strategy.mesh.devices.shape)
    return plan.strategy.name


def clock_row(topology: str) -> str:
    """Compile one large bfloat16 product for a TPU; return the share of the peak that the compiler's cycles give."""
    target = targets.find(topology)
    place = SingleDeviceSharding(targets.devices(topology)[0])
    shape = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.bfloat16, sharding=place)
    text = jax.jit(jnp.matmul, out_shardings=place).lower(shape, shape).compile().as_text()
    seconds = estimate.estimate(hlo.parse(text), target).compute
    share = 2 * SIDE**3 / seconds / (flops.peak(target.kind) or 1)
    return f"| {topology} | {target.kind} | {target.clock / 1e9:g} GHz | {share:.1%} |"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="dotted.key=value, for every recipe; before the options")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, metavar="NAME")
    parser.add_argument("--topologies", nargs="+", metavar="TOPOLOGY")
    parser.add_argument("--clocks", action="store_true", help="compare the compiler's cycles with the peak instead")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Print the rows as they are compiled."""
    options = parse(arguments)
    jax.config.update("jax_platforms", "cpu")
    if options.clocks:
        for topology in options.topologies or ("v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
            print(clock_row(topology), flush=True)
        return
    names = options.recipes or list(RECIPES)
    pairs = [(name, place) for name in names for place in options.topologies or TOPOLOGIES]
    pairs += [] if options.topologies else [pair for pair in FURTHER if pair[0] in names]
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for recipe, topology in pairs:
        print(row(recipe, topology, options.overrides), flush=True)


if __name__ == "__main__":
    sys.exit(side_by_side.leave(main))
