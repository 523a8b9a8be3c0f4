"""The time of the training loop on the host, without the work of the device: --host of `benchmarks.train_step`."""

import contextlib
import dataclasses
import functools
import itertools
import os
import statistics
import tempfile
import time
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.side_by_side import Range, range_of, show
from bertgpt.model.blocks import Model
from bertgpt.tokenizers import train_wordpiece
from train import loop, parallel
from train.job import EvalSet, TrainJob
from train.loader import Source
from train.sections import ParallelSection, RunConfig
from train.step import Objective

ROWS = 5  # rows of metrics in a run; the steps before the first one are not counted
LONGEST = 0.1  # seconds of a pause, at most


class Call(NamedTuple):
    """When a step was called, dispatched and over, in seconds; and the CPU time of its thread when it was called."""

    called: float
    dispatched: float
    ended: float
    cpu: float


class Clock:
    """A step that computes nothing, then pauses; notes when it is called, when it has been dispatched, and its end."""

    def __init__(self, step: Any, pause: float) -> None:
        self.step, self.pause = step, pause
        self.calls: list[Call] = []

    def __call__(self, state: Any, batch: Any) -> Any:
        called, cpu = time.perf_counter(), time.thread_time()
        outcome = self.step(state, batch)
        dispatched = time.perf_counter()
        time.sleep(self.pause)
        self.calls.append(Call(called, dispatched, time.perf_counter(), cpu))
        return outcome


class HostTime(NamedTuple):
    """Seconds per step.

    Attributes:
        step: with its share of a log line; the mean over the steps of each row of metrics.
        cpu: the same as CPU time of the loop's thread, which other programs on the machine hardly change.
        dispatch: to start the step alone (median).
        log_line: for a whole log line (median).
    """

    step: Range
    cpu: Range
    dispatch: float
    log_line: float


def make_job(model: Model, objective: Objective, source: Source) -> TrainJob:
    """Return a job that only trains; its evaluation at the end has one batch."""
    return TrainJob(
        model=model,
        tokenizer=train_wordpiece(["a b"], 30),
        params=None,
        objective=objective,
        train_source=source,
        evals={"": EvalSet(source, 1, lambda means, _: means)},
        eval_seed=0,
        token_keys=("input_ids", "labels"),
        digest="",
        host_sums=lambda batch: {},
    )


def empty_step(state: Any, batch: Any, names: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """A step with the arguments and results of the real one; it uses each, so that none is left out of the program."""
    total = sum(value.ravel()[0].astype(jnp.float32) for value in batch.values())
    state = dataclasses.replace(jax.lax.optimization_barrier(state), step=state.step + 1)
    return state, dict.fromkeys(names, total)


def measure(run: RunConfig, objective: Objective, source: Source, section: ParallelSection, seconds: float) -> HostTime:
    """Run the training loop with an empty step that pauses instead of the device's work.

    Args:
        run: the settings; steps and folder are set here.
        objective: of the run.
        source: of the run's batches.
        section: the devices.
        seconds: the duration of the real step.
    """
    every = run.train.log_every
    run.train.steps = run.train.eval_every = run.checkpoint.every = ROWS * every
    strategy = parallel.make_strategy(section)
    with tempfile.TemporaryDirectory() as run.out, open(os.devnull, "w") as nowhere:
        compiled, create = loop.build(run, make_job(objective.model, objective, source), strategy)
        state = strategy.put_state(create(None))
        batch = strategy.put_batch(source.batch(np.arange(run.train.batch_size)))
        names = tuple(jax.eval_shape(compiled.train, state, batch)[1])
        step = strategy.compile_train(functools.partial(empty_step, names=names))
        clock = Clock(step, min(seconds, LONGEST))
        compiled = compiled._replace(train=clock, evaluate=lambda params, batch: ({}, {}))
        unsaved: Any = types.SimpleNamespace(save=lambda *_: None, wait=lambda: None)
        with contextlib.redirect_stdout(nowhere):
            loop.run_steps(compiled, loop.Progress(state), unsaved)
    return summary(clock.calls, every)


def summary(calls: list[Call], every: int) -> HostTime:
    """Return the host's time, from the calls of a run that writes a row of metrics each `every` steps."""
    dispatches = [call.dispatched - call.called for call in calls]
    others = [following.called - call.ended for call, following in itertools.pairwise(calls)]
    rows = range(every - 1, len(calls) - every, every)  # the steps after which a row is written
    log_line = statistics.median(others[row] for row in rows) - statistics.median(others)
    return HostTime(
        range_of((sum(dispatches[row : row + every]) + sum(others[row : row + every])) / every for row in rows),
        range_of((calls[row + every].cpu - calls[row].cpu) / every for row in rows),
        statistics.median(dispatches),
        log_line,
    )


def describe(host: HostTime, seconds: float) -> str:
    """Return one line: the host's time per step, its share of a step of the device, and its parts."""
    step, cpu = (show(Range(*(1e3 * value for value in part)), 2) for part in (host.step, host.cpu))
    return (
        f"host: {step} ms per step, {host.step.median / seconds:.1%} of a step of {1e3 * seconds:.0f} ms; CPU time of "
        f"its thread {cpu} ms; dispatch {1e3 * host.dispatch:.2f} ms, a log line {1e3 * host.log_line:.1f} ms"
    )
