"""The steps between two rows of metrics."""

import math
import time
from typing import Any

import jax
import numpy as np

from . import flops
from .job import CompiledSteps
from .step import TOKENS


class NotFiniteError(RuntimeError):
    """A loss or gradient was infinite or not a number."""


class Window:
    """The steps since the last row of metrics.

    Their figures stay on the device until `check` or `figures` fetches them all at once, so no step waits for the host.
    """

    def __init__(self, compiled: CompiledSteps, steps: int = 0, sums: dict[str, float] | None = None) -> None:
        """
        Args:
            compiled: the run's compiled steps.
            steps: number of steps since the last row, from a checkpoint.
            sums: the sums of their figures.
        """
        self.compiled = compiled
        self.pending: list[tuple[int, dict[str, Any]]] = []
        self.steps, self.sums = steps, dict(sums or {})
        self.learning_rate = 0.0
        self.peak = flops.peak(jax.devices()[0].device_kind)
        self.restart_clock()

    def add(self, step: int, figures: dict[str, Any], batch: dict[str, np.ndarray]) -> None:
        """Record a step that may still be running, with this process's rows of its batch."""
        self.pending.append((step, figures))
        self.flops += flops.step_flops(self.compiled.job.model.config, batch)

    def check(self) -> None:
        """Fetch the pending figures, in one transfer.

        Raises:
            NotFiniteError: a loss or gradient is not finite; the error names the first such step.
        """
        if not self.pending:
            return
        steps, figures = zip(*self.pending, strict=True)
        fetched, _ = self.compiled.strategy.fetch(figures)
        for step, values in zip(steps, fetched, strict=True):
            found = {name: float(value) for name, value in values.items()}
            if not (math.isfinite(found["loss"]) and math.isfinite(found["grad_norm"])):
                raise NotFiniteError(
                    f"step {step}: loss {found['loss']}, gradient norm {found['grad_norm']}; stopped; the last "
                    "checkpoint is kept; lower optimizer.learning_rate or raise optimizer.warmup_steps"
                )
            self.tokens += found.pop(TOKENS)
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in found.items()}
            self.steps += 1
        self.learning_rate = float(self.compiled.schedule(steps[-1] - 1))
        self.pending = []

    def figures(self) -> dict[str, float]:
        """Means over the steps since the last call, the newest learning rate, and real tokens per second.

        If the peak rate of the devices is known, also the model FLOPs utilization (Chowdhery et al. 2022, appendix B).
        """
        self.check()
        seconds = time.monotonic() - self.began
        figures = {name: total / self.steps for name, total in self.sums.items()}
        figures["learning_rate"] = self.learning_rate
        figures["tokens_per_second"] = self.tokens / seconds
        if self.peak:
            used = jax.process_count() * self.flops / seconds
            figures["mfu"] = used / (self.peak * self.compiled.strategy.devices)
        self.steps, self.sums = 0, {}
        self.restart_clock()
        return figures

    def restart_clock(self) -> None:
        """Start to count tokens, FLOPs and time from now."""
        self.tokens, self.flops, self.began = 0.0, 0, time.monotonic()
