"""Mean losses and accuracies over the held-out examples."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from bertgpt.errors import InputError

from . import hosts, loader
from .job import CompiledSteps, EvalSet, TrainJob
from .progress import Bar
from .sections import RunConfig
from .watching import Stop

SECOND = ("mlm_loss", "mlm_accuracy")  # figures of the examples with whole-word masks
UNDER_WAY = 2  # evaluation batches sent to the device before the results of the first are fetched


def eval_batches(
    config: RunConfig, job: TrainJob, source: loader.Source, examples: int
) -> Iterator[dict[str, np.ndarray]]:
    """The held-out examples of an evaluation, in batches of the size of a micro-batch."""
    size = config.train.batch_size // config.train.accumulate
    return loader.eval_batches(source, size, job.eval_seed, examples)


def put(compiled: CompiledSteps, batch: dict[str, np.ndarray]) -> Any:
    """Check a batch and put it on the devices."""
    job = compiled.job
    return compiled.strategy.put_batch(validated(batch, job.token_keys, job.model.config.vocab_size))


def evaluate(compiled: CompiledSteps, params: Any, stop: Stop | None = None) -> dict[str, float] | None:
    """Score each held-out example once and return the figures of the set that decides on the best checkpoint. If sets
    have names, the figures of each follow as `NAME/figure`. Return None if `stop` was requested during the evaluation.
    """
    job, began = compiled.job, time.monotonic()
    named: dict[str, float] = {}
    inputs = sum(held_out.examples * (1 if held_out.second is None else 2) for held_out in job.evals.values())
    with Bar("evaluating", inputs, "examples") as bar:
        for name, held_out in job.evals.items():
            figures = evaluate_set(compiled, params, held_out, bar, stop)
            if figures is None:
                return None
            if name == job.best_on:
                decides = figures
            if name:
                named |= {f"{name}/{figure}": value for figure, value in figures.items()}
    return decides | named | {"seconds": time.monotonic() - began}


def evaluate_set(
    compiled: CompiledSteps, params: Any, held_out: EvalSet, bar: Bar, stop: Stop | None = None
) -> dict[str, float] | None:
    """Score a held-out set and return its figures: mean losses, accuracies and what it derives from them. With
    `second`, score its examples too, and add their figures of `SECOND` as `whole_word_...`. None as in `evaluate`."""
    scores = []
    for source in (held_out.source, held_out.second):
        scored = ({}, {}) if source is None else _score(compiled, params, source, held_out.examples, bar, stop)
        if scored is None:
            return None
        scores.append(scored)
    (means, outputs), (second, _) = scores
    figures = held_out.figures({"loss": compiled.job.objective.total(means)} | means, in_order(outputs))
    figures |= {f"whole_word_{name}": second[name] for name in SECOND if name in second}
    return {"examples": held_out.examples} | figures


def _score(
    compiled: CompiledSteps, params: Any, source: loader.Source, examples: int, bar: Bar, stop: Stop | None
) -> tuple[dict[str, float], dict[str, list[np.ndarray]]] | None:
    """The means of an evaluation, and its outputs per batch; None if `stop` was requested."""
    config, job, strategy = compiled.config, compiled.job, compiled.strategy
    sums: dict[str, list[float]] = {}
    own_sums: dict[str, list[float]] = {}  # of this process's rows
    outputs: dict[str, list[np.ndarray]] = {}
    under_way: deque[Any] = deque()  # so that the device does not wait for the host

    def fetch() -> None:
        outcome, kept = strategy.fetch(*under_way.popleft())
        for name, value in outcome.items():
            add(sums, name, float(value.sum), float(value.weight))
        for name, value in kept.items():
            outputs.setdefault(name, []).append(value)

    size, start = config.train.batch_size // config.train.accumulate, bar.done
    for number, batch in enumerate(eval_batches(config, job, source, examples), 1):
        if stop is not None and stop.requested():
            return None
        under_way.append(compiled.evaluate(params, put(compiled, batch)))
        for name, pair in job.host_sums(batch).items():
            add(own_sums, name, *pair)
        if len(under_way) > UNDER_WAY:
            fetch()
        bar.update(start + min(number * size, examples))
    while under_way:
        fetch()
    sums |= {name: hosts.summed(pair) for name, pair in own_sums.items()}
    return {name: total / weight if weight else 0.0 for name, (total, weight) in sums.items()}, outputs


def in_order(outputs: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Outputs per batch -> outputs of all rows, in order; a mesh may permute the rows of a batch."""
    arrays = {name: np.concatenate(values) for name, values in outputs.items()}
    if not arrays:
        return {}
    order = np.argsort(arrays.pop("place"), kind="stable")
    return {name: values[order] for name, values in arrays.items()}


def add(sums: dict[str, list[float]], name: str, total: float, weight: float) -> None:
    """Add to a named (sum, weight), in float64."""
    pair = sums.setdefault(name, [0.0, 0.0])
    pair[0] += total
    pair[1] += weight


def validated(batch: dict[str, np.ndarray], token_keys: tuple[str, ...], vocab_size: int) -> dict[str, np.ndarray]:
    """Check a batch's token ids on the host, and return it. On the device, an invalid id would only show as a NaN loss.

    Raises:
        InputError: an id is beyond the vocabulary; the store is damaged or made with another tokenizer.
    """
    top = max(int(batch[name].max()) for name in token_keys)
    if top >= vocab_size:
        raise InputError(
            f"token id {top} is beyond the vocabulary of {vocab_size}; the data was made with another tokenizer"
        )
    return batch
