"""The inputs of the training loop: a job, and its compiled steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from bertgpt.model.blocks import Model

from . import loader
from .parallel import Strategy
from .sections import RunConfig
from .step import Objective


class Best(NamedTuple):
    """The held-out metric by which checkpoints are compared."""

    name: str = "loss"
    higher: bool = False

    def selection_loss(self, figures: dict[str, float]) -> float:
        """The metric as a loss: lower is better."""
        return -figures[self.name] if self.higher else figures[self.name]


class EvalSet(NamedTuple):
    """A held-out set.

    Attributes:
        source: its examples.
        examples: number of examples that an evaluation scores.
        figures: (means, outputs per example) -> all figures of an evaluation.
        second: the same examples with whole-word masks, for further figures; None: without these.
    """

    source: loader.Source
    examples: int
    figures: Callable[[dict[str, float], dict[str, np.ndarray]], dict[str, float]]
    second: loader.Source | None = None


class TrainJob(NamedTuple):
    """The model, objective and data of a run, built by a module of jobs/.

    Attributes:
        model: with its head.
        tokenizer: the model's.
        params: initial parameters; None: randomly initialized from the seed.
        objective: losses and accuracies.
        train_source: examples.
        evals: the held-out sets by name; a single one may have the name "".
        eval_seed: seed of the order of the held-out examples; None: the order of the source.
        token_keys: batch keys of token ids, which are checked against the vocabulary.
        digest: hash of the data; a run cannot be resumed with other data.
        plan: the version of the rule that chooses the examples of an epoch; a run cannot be resumed with another.
        host_sums: (held-out batch) -> further (sum, weight) by name, computed on the host.
        best: the figure that selects the best checkpoint.
        best_on: the name of the held-out set that selects it.
        evaluates_first: evaluate also before the first step, and save a checkpoint at each evaluation.
    """

    model: Model
    tokenizer: Tokenizer
    params: Any
    objective: Objective
    train_source: loader.Source
    evals: dict[str, EvalSet]
    eval_seed: int | None
    token_keys: tuple[str, ...]
    digest: str
    host_sums: Callable[[dict[str, np.ndarray]], dict[str, tuple[float, float]]]
    plan: int = 1
    best: Best = Best()
    best_on: str = ""
    evaluates_first: bool = False

    @property
    def deciding(self) -> EvalSet:
        """The held-out set that selects the best checkpoint."""
        return self.evals[self.best_on]


class CompiledSteps(NamedTuple):
    """A job with its strategy and compiled functions.

    Attributes:
        config: the run's.
        job: model, objective and data.
        strategy: how a step runs on the devices.
        train: (state, batch) -> (state, metrics).
        evaluate: (params, batch) -> (sums, outputs).
        schedule: update number -> learning rate, computed on the host.
    """

    config: RunConfig
    job: TrainJob
    strategy: Strategy
    train: Callable[..., Any]
    evaluate: Callable[..., Any]
    schedule: Callable[[int], Any]
