"""What a kind of run gives to the loop, and the compiled steps made of it."""

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
    """The held-out figure by which checkpoints are compared."""

    name: str = "loss"
    higher: bool = False

    def selection_loss(self, figures: dict[str, float]) -> float:
        """Lower is better."""
        return -figures[self.name] if self.higher else figures[self.name]


class TrainJob(NamedTuple):
    """What a run learns, made by pretraining.py or finetuning.py.

    Attributes:
        model: with its head.
        tokenizer: the model's.
        params: to begin with; None: drawn from the seed.
        objective: losses and accuracies.
        train_source, eval_source: examples.
        eval_seed: of the order of held-out examples; None: as they are.
        eval_examples: how many are scored.
        token_keys: arrays of token ids, which are checked against the vocabulary.
        digest: of the data; a run does not go on with other data.
        host_sums: (held-out batch) -> further (sum, weight) by name, made on the host.
        figures: (held-out means, outputs of every example) -> all figures of an evaluation.
        best: which of them decides.
        evaluates_first: also before the first step; and every evaluation is a checkpoint.
    """

    model: Model
    tokenizer: Tokenizer
    params: Any
    objective: Objective
    train_source: loader.Source
    eval_source: loader.Source
    eval_seed: int | None
    eval_examples: int
    token_keys: tuple[str, ...]
    digest: str
    host_sums: Callable[[dict[str, np.ndarray]], dict[str, tuple[float, float]]]
    figures: Callable[[dict[str, float], dict[str, np.ndarray]], dict[str, float]]
    best: Best = Best()
    evaluates_first: bool = False


class CompiledSteps(NamedTuple):
    """A job with what runs it."""

    config: RunConfig
    job: TrainJob
    strategy: Strategy
    train: Callable[..., Any]
    evaluate: Callable[..., Any]
    schedule: Callable[[int], Any]
