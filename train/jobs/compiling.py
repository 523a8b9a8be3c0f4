"""A run's steps, compiled for accelerators that this machine need not have: memory, estimated time, collectives."""

import contextlib
import gzip
import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.errors import JaxRuntimeError
from jax.experimental.compilation_cache import compilation_cache

from .. import config as configs
from .. import estimate, flops, hlo, targets
from ..atomic_files import user_cache, write_whole
from ..parallel import FSDP, OnMesh
from ..sections import KEYS, RunConfig
from ..targets import GIB, Target
from . import planning
from .planning import Plan

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
FORMAT = "2"  # of a kept result
FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")  # environment variables that change what the compilers make
OPTIONS = {"tpu": {}, "cuda": {"xla_gpu_autotune_level": 0}}  # autotuning would need a GPU


class Compiled(NamedTuple):
    """What a compiler made of a step.

    Attributes:
        memory: bytes per device by name; empty if the step does not fit.
        text: the optimized program; empty if the step does not fit.
        needed: bytes that the step needs on a device; 0: unknown, but more than the device has.
    """

    memory: dict[str, int]
    text: str
    needed: int


def describe(config: RunConfig, topology: str) -> Iterator[str]:
    """Yield the plan for a topology such as v5e:4x4, line by line; lines that need a compilation come last.

    Raises:
        InputError: there is no such topology, or its compiler is not installed; or as `planning.make_plan`.
    """
    target, devices = targets.find(topology), targets.devices(topology)
    plan = planning.make_plan(config, devices)
    yield from planning.describe_exact(plan, devices)
    yield f"compiling the train step for {topology} with {targets.version(target)} (minutes, the first time) ..."
    step = compile_step(plan, topology)
    yield from describe_memory(step, target)
    if not fits(step, target):
        yield from describe_remedies(plan, step, topology, devices)
        return
    yield from describe_program(step, target, plan)
    yield "compiling the evaluation ..."
    evaluation = compile_step(plan, topology, evaluation=True)
    rows = next(iter(plan.eval_batch.values())).shape[0]
    yield f"evaluation of {rows:,} rows: {verdict(evaluation, target)}"
    if evaluation.text and target.clock:
        seconds = estimate.estimate(hlo.parse(evaluation.text), target).step
        yield f"  estimated time, not measured {1e3 * seconds:>20.2f} ms"


def compile_step(plan: Plan, topology: str, evaluation: bool = False) -> Compiled:
    """Compile a run's train step, or its evaluation.

    The result is kept in the user's cache folder, under a hash of the program, the topology, and the
    compiler's version and flags.
    """
    target = targets.find(topology)
    lowered = planning.lower_eval(plan) if evaluation else planning.lower_train(plan)
    flags = [os.environ.get(name, "") for name in FLAGS]
    options = str((OPTIONS, plan.strategy.options))
    content = "\n".join((FORMAT, topology, targets.version(target), *flags, options, lowered.as_text()))
    path = user_cache() / "programs" / f"{hashlib.sha256(content.encode()).hexdigest()}.json.gz"
    if path.exists():
        try:
            return Compiled(**json.loads(gzip.decompress(path.read_bytes())))
        except (OSError, EOFError, zlib.error, ValueError, TypeError):
            pass  # damaged: compile again
    compiled = _compile(lowered, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, gzip.compress(json.dumps(compiled._asdict()).encode(), 3))
    return compiled


def _compile(lowered: Any, target: Target) -> Compiled:
    try:
        with _without_jax_cache():
            compiled = lowered.compile(compiler_options=OPTIONS[target.platform])
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled({}, "", _needed(str(error)))
    analysis = compiled.memory_analysis()
    memory = {
        "arguments": analysis.argument_size_in_bytes,
        "results, not in place": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    return Compiled(memory, compiled.as_text(), sum(memory.values()))


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
    """Switch JAX's compilation cache off: it writes programs for absent devices, but cannot read them."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    _use_jax_cache(False)
    try:
        yield
    finally:
        _use_jax_cache(before)


def _use_jax_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # JAX decides only once whether it uses the cache


def _needed(error: str) -> int:
    """The bytes that a program needs, from the compiler's error; 0 if it does not say."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of|\(([\d.]+)([KMGT]?)\) exceeds", error)
    if found is None:
        return 0
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * UNITS[unit])


def fits(step: Compiled, target: Target) -> bool:
    """Whether a step fits into the device's memory."""
    return bool(step.text) and step.needed <= target.memory


def verdict(step: Compiled, target: Target) -> str:
    """Whether a step fits, and by how much."""
    have = f"a device's {target.memory / GIB:.2f} GiB"
    if not step.needed:
        return f"does not fit: it needs more than {have}"
    needs, left = f"it needs {step.needed / GIB:.2f} of {have}", (target.memory - step.needed) / GIB
    return (
        f"fits: {needs}; {left:.2f} GiB are left"
        if fits(step, target)
        else f"does not fit: {needs}, {-left:.2f} GiB too much"
    )


def describe_memory(step: Compiled, target: Target) -> Iterator[str]:
    """Yield the compiler's figures of a step's memory."""
    for name, size in step.memory.items():
        yield f"  {name:<28}{size:>20,}"
    yield f"train step: {verdict(step, target)}"


def describe_program(step: Compiled, target: Target, plan: Plan) -> Iterator[str]:
    """Yield the estimated time of a train step, if the compiler estimates cycles, and its collectives."""
    program = hlo.parse(step.text)
    if target.clock:
        yield from describe_time(estimate.estimate(program, target), target, plan)
    if any(program.trips(x) is None for computation in program.computations.values() for x in computation.values()):
        yield "warning: the program has a loop of unknown length, which counts once"
    found = summary(estimate.collectives(program))
    yield "collectives of a step:" + ("" if found else " none")
    yield from (f"  {line}" for line in found)


def summary(counted: Counter[estimate.Collective]) -> list[str]:
    """Collectives by kind, dtype and whether they are asynchronous: their number and bytes, the largest first."""
    sizes: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for collective, count in counted.items():
        kind = f"{'asynchronous' if collective.is_async else 'synchronous'} {collective.dtype} {collective.kind}"
        sizes[kind] += count * collective.size
        times[kind] += count
    return [f"{times[kind]} {kind} ({size / 1e6:,.1f} MB)" for kind, size in sizes.most_common()]


def describe_time(estimated: estimate.Estimate, target: Target, plan: Plan) -> Iterator[str]:
    """Yield the parts of a train step's estimated time, and the figures that follow from it."""
    peak = flops.peak(target.kind) or 0
    model_flops = flops.step_flops(plan.model.config, plan.batch) // plan.strategy.devices
    yield "time of a step, estimated from the compiled program, not measured (ms):"
    for name, seconds, note in (
        ("compute", estimated.compute, f"the compiler's cycles at {target.clock / 1e9:g} GHz"),
        ("without an estimate", estimated.other, "at least"),
        ("collectives", estimated.collectives, "those that no other work hides"),
        ("memory traffic", estimated.floor, "the least time of the whole step"),
        ("step", estimated.step, ""),
        ("model FLOPs at the peak", model_flops / peak, f"{model_flops:.3g} FLOPs per device"),
    ):
        yield f"  {name:<28}{1e3 * seconds:>20.2f}" + (f"  ({note})" if note else "")
    rate = planning.tokens(plan.batch) / estimated.step
    yield f"  tokens per second, padding included: {rate:,.0f}; MFU {model_flops / peak / estimated.step:.1%}"
    yield "largest parts of the step (ms):"
    for name, seconds in estimated.largest:
        yield f"  {1e3 * seconds:>8.2f}  {name}"


def describe_remedies(plan: Plan, step: Compiled, topology: str, devices: list[Any]) -> Iterator[str]:
    """Yield which of accumulate, remat and fsdp makes a step fit, tried in this order; each try is a compilation."""
    target, tried = targets.find(topology), []
    for overrides in remedies(plan, step, target.memory):
        yield f"trying {overrides} ..."
        changed = planning.make_plan(configs.override(plan.config, overrides.split()), devices)
        found = compile_step(changed, topology)
        yield f"  {verdict(found, target)}"
        if fits(found, target):
            yield f"set {overrides}"
            return
        tried.append(overrides)
    yield (f"not enough: {', '.join(tried)}; " if tried else "") + "use several settings together, or more devices"


def remedies(plan: Plan, step: Compiled, memory: int) -> Iterator[str]:
    """The settings that may make a step fit, without those that cannot."""
    figures, strategy, section = planning.exact(plan), plan.strategy, plan.config.parallel
    lasting = 2 * figures["parameter_bytes"] + figures["optimizer_bytes"]  # parameters, their gradient, and the state
    if lasting < memory:
        yield from _accumulations(plan, step.needed, lasting, memory)
        levels = KEYS["train.remat"].rules.choices  # from least to most memory saved
        yield from (f"train.remat={remat}" for remat in levels[levels.index(plan.config.train.remat) + 1 :])
    if strategy.name == "pmap":
        yield "parallel.strategy=mesh"
    if isinstance(strategy, OnMesh) and strategy.devices > strategy.mesh.shape[FSDP]:
        yield ("" if section.data == -1 else "parallel.data=1 ") + f"parallel.fsdp={strategy.devices}"


def _accumulations(plan: Plan, needed: int, lasting: int, memory: int) -> Iterator[str]:
    """Doubled numbers of micro-batches, without those that are too few even if all but `lasting` shrinks with them."""
    start, rows = plan.config.train.accumulate, plan.config.train.batch_size // plan.strategy.devices
    count = 2 * start
    while rows % count == 0:
        if lasting + max(0, needed - lasting) * start / count <= memory:
            yield f"train.accumulate={count}"
        count *= 2
