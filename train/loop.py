"""The loop that every run goes through, in the order in which it happens."""

import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from tokenizers import Tokenizer

from bertgpt.errors import InputError
from bertgpt.tokenizers import save_tokenizer
from train import config as configs
from train import loader, parallel, reports
from train.checkpoints import Checkpoints, restore_newest
from train.config import RunConfig
from train.optimizers import make_optimizer, make_schedule
from train.parallel import Strategy
from train.reports import say
from train.state import TrainState, create_state
from train.step import Task, eval_step, train_step


class NotFiniteError(RuntimeError):
    """A loss or gradient was infinite or not a number."""


class Best(NamedTuple):
    """The held-out figure by which checkpoints are compared."""

    name: str = "loss"
    higher: bool = False

    def badness(self, figures: dict[str, float]) -> float:
        """Lower is better."""
        return -figures[self.name] if self.higher else figures[self.name]


class Job(NamedTuple):
    """What a run learns, made by pretraining.py or finetuning.py.

    Attributes:
        model: with its head.
        tokenizer: the model's.
        params: to begin with; None: drawn from the seed.
        task: losses and accuracies.
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

    model: nn.Module
    tokenizer: Tokenizer
    params: Any
    task: Task
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


class Trainer(NamedTuple):
    """A job with what runs it."""

    config: RunConfig
    job: Job
    strategy: Strategy
    train: Callable[..., Any]
    evaluate: Callable[..., Any]
    schedule: Callable[[int], Any]


def run(config: RunConfig, job: Job, strategy: Strategy) -> tuple[Trainer, TrainState]:
    """Trains to the end, from the newest checkpoint where there is one.

    Leaves in `config.out`: config.yaml, tokenizer.json, metrics.jsonl, checkpoints/.

    Raises:
        InputError: the data changed since the checkpoint.
        NotFiniteError: the training diverged; the last good checkpoint is kept.
    """
    out = Path(config.out)
    trainer, state = build(config, job, strategy)
    for line in reports.opening(config, job.model.config, strategy, count(state.params)):  # type: ignore[attr-defined]
        say(line)
    out.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(out / "checkpoints", config.checkpoint.keep)
    try:
        state, row = resume(trainer, state, checkpoints)
        configs.save(config, out / "config.yaml")
        save_tokenizer(job.tokenizer, out)
        return trainer, run_steps(trainer, state, row, checkpoints)
    finally:
        checkpoints.close()


def is_finished(out: Path, step: int, steps: int) -> bool:
    """Whether the run in `out` has made all its steps and its last checkpoint is sound; says so."""
    checkpoints = Checkpoints(out / "checkpoints", keep=1, read_only=True)
    if step < steps or not checkpoints.is_sound(step):
        return False
    say(f"finished: {out} has made its {steps} steps; raise train.steps (or train.epochs) to go on")
    for line in reports.report(out):
        say(line)
    return True


def check_out(out: Path, config: RunConfig) -> None:
    """
    Raises:
        InputError: it holds a run of another configuration, or is a file.
    """
    saved = out / "config.yaml"
    if saved.exists():
        differing = configs.differences(configs.load(str(saved)), config)
        if differing:
            raise InputError(f"{out} holds a run of another configuration: {', '.join(differing)}; choose another out")
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a folder as out")


def build(config: RunConfig, job: Job, strategy: Strategy) -> tuple[Trainer, TrainState]:
    """Optimizer and compiled steps; the state at step 0."""
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    train, evaluate = parallel.compile_steps(
        strategy,
        functools.partial(train_step, task=job.task, optimizer=optimizer, accumulate=config.train.accumulate),
        functools.partial(eval_step, task=job.task),
    )
    schedule = make_schedule(config.optimizer, config.train.steps)
    create = strategy.compile_init(functools.partial(create_state, job.model, optimizer, config.seed))
    return Trainer(config, job, strategy, train, evaluate, schedule), create(job.params)


def resume(trainer: Trainer, state: TrainState, checkpoints: Checkpoints) -> tuple[TrainState, int]:
    """The newest good checkpoint's state and the row of the data that comes next, or the fresh state and 0.

    Raises:
        InputError: the data changed since the checkpoint.
    """
    found = restore_newest(checkpoints, state, reports.warn)
    if found is None:
        return state, 0
    state, extra = found
    if extra["data"] != trainer.job.digest:
        raise InputError(f"the data changed since checkpoint {state.step}; start a new run with another out")
    say(f"going on from step {int(state.step)}")
    return state, extra["row"]


def run_steps(trainer: Trainer, state: TrainState, row: int, checkpoints: Checkpoints) -> TrainState:
    """Trains to `train.steps`: logs, evaluates and saves when due; saves and leaves on SIGTERM; ends when evaluations
    bring nothing better."""
    config, strategy, job = trainer.config, trainer.strategy, trainer.job
    first = step = int(state.step)
    last = config.train.steps
    batches = loader.batches(job.train_source, config.train.batch_size, config.seed, row)
    window, state = Window(trainer), strategy.put_state(state)
    with Stop() as stop, reports.Metrics(Path(config.out), first) as metrics, reports.Bar(last, first) as bar:
        if job.evaluates_first and first == 0:
            evaluate_and_tell(trainer, state.params, metrics, 0)
            window.restart_clock()
        ends = step >= last or is_stale(trainer)
        while not ends:
            step, batch = step + 1, next(batches)
            state, figures = trainer.train(state, put(trainer, batch))
            window.add(step, figures, loader.real_tokens(batch))
            bar.advance(step)
            if step % config.train.log_every == 0 or step == last:
                seen = window.figures()
                metrics.write(step, "train", seen)
                bar.show(step, seen)
            badness = None
            if step % config.train.eval_every == 0 or step == last:
                window.check()
                badness = job.best.badness(evaluate_and_tell(trainer, state.params, metrics, step))
                window.restart_clock()
            ends = step == last or stop.received is not None or (badness is not None and is_stale(trainer))
            kept = badness is not None and (job.evaluates_first or config.train.patience > 0)  # it may be the best
            if step % config.checkpoint.every == 0 or ends or kept:
                window.check()
                metrics.sync()
                checkpoints.save(step, strategy.saved(state), extra(trainer, step), badness)
    checkpoints.wait()
    if step < last:
        say_why(trainer, step, stop.received)
    return strategy.saved(state)


def say_why(trainer: Trainer, step: int, received: signal.Signals | None) -> None:
    """Tells why a run ended before its last step; leaves with the signal's exit code where one came."""
    if received is None:
        name = trainer.job.best.name
        say(f"step {step}: {trainer.config.train.patience} evaluations brought no better {name}; stopped early")
    else:
        say(f"stopped by {received.name}; saved at step {step}: the same command goes on from there")
        raise SystemExit(128 + received)


def put(trainer: Trainer, batch: dict[str, np.ndarray]) -> Any:
    """The batch, checked, on the devices."""
    job = trainer.job
    return trainer.strategy.put_batch(validated(batch, job.token_keys, job.model.config.vocab_size))  # type: ignore[attr-defined]


def evaluate_and_tell(trainer: Trainer, params: Any, metrics: reports.Metrics, step: int) -> dict[str, float]:
    """The held-out figures, written and shown."""
    held_out = evaluate(trainer, params)
    metrics.write(step, "eval", held_out)
    say(reports.eval_line(step, held_out))
    return held_out


def is_stale(trainer: Trainer) -> bool:
    """Whether the last `train.patience` evaluations brought nothing better than those before them."""
    patience, best = trainer.config.train.patience, trainer.job.best
    rows = reports.read_metrics(Path(trainer.config.out))
    scored = [best.badness(row) for row in rows if row["split"] == "eval" and row["step"] > 0]
    return 0 < patience < len(scored) and min(scored[-patience:]) >= min(scored[:-patience])


def evaluate(trainer: Trainer, params: Any) -> dict[str, float]:
    """Mean losses and accuracies over the held-out examples, every example once, and what the job makes of them."""
    config, job, strategy = trainer.config, trainer.job, trainer.strategy
    sums: dict[str, list[float]] = {}
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in job.task.outputs}
    began = time.monotonic()
    size = config.train.batch_size // config.train.accumulate  # no more memory than a micro-batch
    for batch in loader.eval_batches(job.eval_source, size, job.eval_seed, job.eval_examples):
        outcome, kept = trainer.evaluate(params, put(trainer, batch))
        for name, value in outcome.items():
            add(sums, name, strategy.scalar(value.sum), strategy.scalar(value.weight))
        for name, pair in job.host_sums(batch).items():
            add(sums, name, *pair)
        for name, value in kept.items():
            outputs[name].append(strategy.gathered(value))
    means = {name: total / weight if weight else 0.0 for name, (total, weight) in sums.items()}
    figures = job.figures(
        {"loss": job.task.total(means)} | means, {name: np.concatenate(values) for name, values in outputs.items()}
    )
    return {"examples": job.eval_examples} | figures | {"seconds": time.monotonic() - began}


def add(sums: dict[str, list[float]], name: str, total: float, weight: float) -> None:
    """Adds to a named (sum, weight) in float64."""
    pair = sums.setdefault(name, [0.0, 0.0])
    pair[0] += total
    pair[1] += weight


def extra(trainer: Trainer, step: int) -> dict[str, Any]:
    """What a checkpoint holds beside the arrays: the data position is one global row number."""
    job = trainer.job
    return {
        "row": step * trainer.config.train.batch_size,
        "data": job.digest,
        "config": configs.to_dict(trainer.config),
        "architecture": type(job.model).__name__,
        "model": dataclasses.asdict(job.model.config),  # type: ignore[attr-defined]
        "tokenizer": job.tokenizer.to_str(),
    }


def count(params: Any) -> int:
    """Parameters in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def validated(batch: dict[str, np.ndarray], token_keys: tuple[str, ...], vocab_size: int) -> dict[str, np.ndarray]:
    """The batch, its ids checked on the host: JAX would clamp one beyond the vocabulary in silence.

    Raises:
        InputError: an id is beyond the vocabulary: the store is damaged, or not this tokenizer's.
    """
    top = max(int(batch[name].max()) for name in token_keys)
    if top >= vocab_size:
        raise InputError(
            f"token id {top} is beyond the vocabulary of {vocab_size}; the data was made with another tokenizer"
        )
    return batch


class Window:
    """The steps since the last look: their metrics stay on the device until then, so that no step waits."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.pending: list[tuple[int, dict[str, Any]]] = []
        self.last: dict[str, float] = {}
        self.tokens, self.began = 0, time.monotonic()

    def add(self, step: int, figures: dict[str, Any], tokens: int) -> None:
        """Notes a step that is under way."""
        self.pending.append((step, figures))
        self.tokens += tokens

    def check(self) -> None:
        """Fetches what is pending.

        Raises:
            NotFiniteError: names the first step whose loss or gradient is not finite.
        """
        for step, figures in self.pending:
            self.last = {name: self.trainer.strategy.scalar(value) for name, value in figures.items()}
            if not (math.isfinite(self.last["loss"]) and math.isfinite(self.last["grad_norm"])):
                raise NotFiniteError(
                    f"step {step}: loss {self.last['loss']}, gradient norm {self.last['grad_norm']}; stopped, the last "
                    "checkpoint is kept; lower optimizer.learning_rate or raise optimizer.warmup_steps"
                )
            self.last["learning_rate"] = float(self.trainer.schedule(step - 1))
        self.pending = []

    def figures(self) -> dict[str, float]:
        """The newest step's metrics, and real tokens a second since the last call."""
        self.check()
        speed = self.tokens / (time.monotonic() - self.began)
        self.restart_clock()
        return self.last | {"tokens_per_second": speed}

    def restart_clock(self) -> None:
        """Counts tokens a second from now on."""
        self.tokens, self.began = 0, time.monotonic()


class Stop:
    """Notes SIGTERM and Ctrl-C, so that the loop can save at the step's end."""

    received: signal.Signals | None = None

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.received = signal.Signals(number)
