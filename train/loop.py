"""The training loop, in the order in which its parts run."""

import dataclasses
import functools
import math
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bertgpt.errors import InputError

from . import addresses, hosts, loader, parallel, reports, tracking
from . import config as configs
from .atomic_files import write_whole
from .evaluation import eval_batches, evaluate, put
from .folders.checkpoints import Checkpoints, restore_newest
from .folders.run_storage import RunStorage
from .job import CompiledSteps, TrainJob
from .optimizers import make_optimizer, make_schedule, warmup_steps
from .parallel import Strategy
from .progress import Bar
from .reports import say
from .sections import RunConfig
from .state import TrainState, create_state
from .step import eval_step, train_step, trained
from .watching import Profile, Stop, Watchdog
from .window import Window

SHOWN = 8  # settings in a message
FEW_TOKENS = 1000  # predicted tokens in an evaluation; below this number a run warns


class Progress(NamedTuple):
    """The progress of a run, as saved in a checkpoint.

    Attributes:
        state: on the devices.
        step: number of updates so far.
        row: global number of the next row of the data.
        eval_history: the selection loss of each evaluation so far.
        eval_pending: whether a signal interrupted the evaluation of this step.
        logged: number of steps since the last row of metrics, and the sums of their figures.
    """

    state: TrainState
    step: int = 0
    row: int = 0
    eval_history: tuple[float, ...] = ()
    eval_pending: bool = False
    logged: tuple[int, dict[str, float]] = (0, {})


def run(config: RunConfig, job: TrainJob, strategy: Strategy, files: RunStorage) -> tuple[CompiledSteps, TrainState]:
    """Train to the last step, resuming from the newest checkpoint if there is one.

    Writes to `config.out`: config.yaml, tokenizer.json, metrics.jsonl, checkpoints/.

    Raises:
        InputError: the data changed since the checkpoint.
        NotFiniteError: training diverged; the last good checkpoint is kept.
    """
    compiled, create = build(config, job, strategy)
    shapes = jax.eval_shape(create, job.params)
    for line in reports.opening(config, job.model.config, strategy, count(shapes.params)):
        say(line)
    hosts.sync("every process has read the run's folder")
    files.out.mkdir(parents=True, exist_ok=True)
    with files.checkpoints(config.checkpoint.keep) as checkpoints:
        progress = resume(compiled, strategy.abstract_state(shapes), checkpoints) or Progress(
            strategy.put_state(create(job.params))
        )
        warn_of_settings(config, job)
        if hosts.is_first():
            configs.save(config, files.out / "config.yaml")
            write_whole(files.out / "tokenizer.json", job.tokenizer.to_str(pretty=True))
        return compiled, run_steps(compiled, progress, checkpoints)


def warn_of_settings(config: RunConfig, job: TrainJob) -> None:
    """Warn if the run ends within its warm-up, or if an evaluation has too few tokens to be reliable."""
    steps, warmup = config.train.steps, warmup_steps(config.optimizer, config.train.steps)
    if warmup >= steps:
        reports.warn(
            f"the warm-up takes {warmup:,} updates, but the run has only {steps:,}: the learning rate never reaches "
            f"{config.optimizer.learning_rate:g}; lower optimizer.warmup_steps (or warmup_fraction), or train longer"
        )
    tokens = scored_tokens(config, job) if "labels" in job.token_keys else FEW_TOKENS
    if tokens < FEW_TOKENS:
        limited = config.task.kind is None and job.deciding.examples == config.train.eval_examples
        more = "raise train.eval_examples, or " if limited else ""
        reports.warn(
            f"an evaluation scores only {tokens:,} predicted tokens, too few to rely on (under {FEW_TOKENS:,}); {more}"
            "hold out more text (data.eval or data.eval_fraction)"
        )


def scored_tokens(config: RunConfig, job: TrainJob) -> int:
    """The number of tokens that an evaluation predicts in the set that decides; stops counting in each process at
    FEW_TOKENS."""
    tokens = 0
    for batch in eval_batches(config, job, job.deciding.source, job.deciding.examples):
        tokens += int((batch["loss_mask"] > 0).sum())
        if tokens >= FEW_TOKENS:
            break
    return int(hosts.summed([tokens])[0])


def is_finished(files: RunStorage, step: int, steps: int) -> bool:
    """Whether a run has made all its steps and its last checkpoint is intact; if so, logs its results."""
    if step < steps:
        return False
    checkpoints, out = files.checkpoints(), files.out
    if hosts.agreed(hosts.is_first() and checkpoints.fault(step) is not None):
        return False
    evaluated = any(row["step"] == step and row["split"] == "eval" for row in reports.read_metrics(out))
    if checkpoints.extra(step).get("owes_evaluation", False) and not evaluated:
        return False
    name = files.config.out
    say(f"finished: {name} has made {step} of {steps} steps; raise train.steps (or train.epochs) to continue")
    for line in reports.report(out, name=name) if hosts.is_first() else ():
        say(line)
    return True


def check_out(files: RunStorage, config: RunConfig) -> None:
    """Check that this run may use the folder; a run without a checkpoint is replaced.

    The commit of the run's initial model and its objective are added to `config`.

    Raises:
        InputError: the folder has a checkpoint of a run with different settings.
    """
    out = files.out
    if not (out / "config.yaml").exists():
        return
    old = configs.load(str(out / "config.yaml"))
    configs.keep_decided(old, config)
    differing = configs.differences(old, config)
    if not differing:
        return
    checkpoints = files.checkpoints()
    if checkpoints.steps() or checkpoints.damaged():
        raise InputError(
            f"{config.out} was started with different settings: {listed(differing)}; restore them, or start a new "
            f"run from its weights: out=ANOTHER model.init_from={config.out}. A resumed run may change keys such as "
            "train.steps, train.eval_every and checkpoint.every (marked * in docs/configuration.md)"
        )
    say(f"{out}: replacing a run with other settings that ended before its first checkpoint: {', '.join(differing)}")


def listed(settings: list[str]) -> str:
    """The first of many settings, and how many more there are."""
    return ", ".join(settings[:SHOWN] + ([f"and {len(settings) - SHOWN} more"] if len(settings) > SHOWN else []))


def build(config: RunConfig, job: TrainJob, strategy: Strategy) -> tuple[CompiledSteps, Callable[[Any], TrainState]]:
    """Return the compiled steps, and a function (parameters or None) -> the state at step 0."""
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.train.freeze)
    objective = trained(job.objective, config.train.freeze)
    train, evaluate = parallel.compile_steps(
        strategy,
        functools.partial(train_step, objective=objective, optimizer=optimizer, accumulate=config.train.accumulate),
        functools.partial(eval_step, objective=job.objective),
    )
    schedule = make_schedule(config.optimizer, config.train.steps, np)
    create = strategy.compile_init(functools.partial(create_state, job.model, optimizer, config.seed))
    return CompiledSteps(config, job, strategy, train, evaluate, schedule), create


def resume(compiled: CompiledSteps, abstract_state: TrainState, checkpoints: Checkpoints) -> Progress | None:
    """Load the newest intact checkpoint; return None if there is none.

    Raises:
        InputError: the data, or the rule that chooses examples, changed since the checkpoint.
    """
    found = restore_newest(checkpoints, abstract_state, reports.warn)
    if found is None:
        return None
    state, extra = found
    step = int(state.step)
    if extra["data"] != compiled.job.digest:
        raise InputError(f"the data changed since checkpoint {step}; start a new run with another out")
    if extra.get("plan", 1) != compiled.job.plan:
        raise InputError(
            f"checkpoint {step} is of a version of bertgpt that chose other sentence pairs for a text of this size; "
            "finish the run with that version, or start a new one (another out, with model.init_from to keep the "
            "weights)"
        )
    say(f"resuming from step {step}")
    eval_history, owed = tuple(extra.get("scored", ())), extra.get("owes_evaluation", False)
    steps, sums = extra.get("logged", (0, {}))
    return Progress(compiled.strategy.put_state(state), step, extra["row"], eval_history, owed, (steps, sums))


def run_steps(compiled: CompiledSteps, progress: Progress, checkpoints: Checkpoints) -> TrainState:
    """Train to `train.steps`; log, evaluate and save when due.

    Stops early if `train.patience` evaluations bring no improvement. On SIGTERM or Ctrl-C, saves and exits.
    """
    config, job, last = compiled.config, compiled.job, compiled.config.train.steps
    stacks = addresses.local(config.out) / f"stalled_{jax.process_index()}.txt"
    with (
        Stop() as stop,
        Watchdog(config.train.stall_seconds, stacks, reports.warn_here) as watchdog,
        reports.Metrics(addresses.local(config.out), progress.step, progress.eval_pending) as metrics,
        tracking.Tracker(config, progress.step, metrics.last, metrics.dropped) as tracker,
        Bar("training", last, "steps", progress.step) as bar,
    ):
        loop = TrainLoop(compiled, progress, stop, watchdog, metrics, tracker, checkpoints)
        if progress.eval_pending or (job.evaluates_first and loop.step == 0):
            loop.score()
        while not loop.ends():
            loop.advance()
            bar.advance()
            if loop.is_due(config.train.log_every):
                figures = loop.log()
                bar.update(loop.step, f"loss {figures['loss']:.3f}  {figures['tokens_per_second']:,.0f} tokens/s")
            selection_loss = loop.score() if loop.is_due(config.train.eval_every) else None
            may_be_best = selection_loss is not None and (job.evaluates_first or config.train.patience > 0)
            if loop.step % config.checkpoint.every == 0 or loop.ends() or may_be_best:
                loop.save(selection_loss)
        loop.profile.end()
        say(bar.line())
        checkpoints.wait()
    if loop.step < last:
        say_why(compiled, loop.step, stop.received)
    return compiled.strategy.to_checkpoint(loop.state)


class TrainLoop:
    """A run in progress: its state, and the objects that log, save and watch it."""

    def __init__(
        self,
        compiled: CompiledSteps,
        progress: Progress,
        stop: Stop,
        watchdog: Watchdog,
        metrics: reports.Metrics,
        tracker: tracking.Tracker,
        checkpoints: Checkpoints,
    ) -> None:
        self.compiled, self.config, self.job = compiled, compiled.config, compiled.job
        self.state, self.step, row, self.eval_history, self.eval_pending, logged = progress
        self.stop, self.watchdog, self.checkpoints = stop, watchdog, checkpoints
        self.metrics, self.tracker = metrics, tracker
        size = self.config.train.batch_size
        source = loader.planned_ahead(self.job.train_source, self.config.train.steps * size)
        self.batches = loader.batches(source, size, self.config.seed, row)
        self.profile = Profile(self.config.train.profile, addresses.local(self.config.out) / "profile")
        self.window = Window(compiled, *logged)

    def is_due(self, every: int) -> bool:
        """Whether something that happens each `every` steps, and at the last step, is due at this step."""
        return self.step % every == 0 or self.step == self.config.train.steps

    def ends(self) -> bool:
        """Whether the run ends at this step; the same in every process of a run."""
        return self.step >= self.config.train.steps or self.stop.received is not None or self.is_stale()

    def is_stale(self) -> bool:
        """Whether none of the last `train.patience` evaluations is better than the best before them."""
        patience = self.config.train.patience
        return 0 < patience < len(self.eval_history) and min(self.eval_history[-patience:]) >= min(
            self.eval_history[:-patience]
        )

    def advance(self) -> None:
        """Make one update, then check for a signal."""
        self.step += 1
        self.watchdog.at(f"the loader, for the batch of step {self.step},")
        batch = next(self.batches)
        self.profile.before(self.step)
        self.watchdog.at(f"step {self.step}")
        self.state, figures = self.compiled.train(self.state, put(self.compiled, batch))
        self.window.add(self.step, figures, batch)
        if self.profile.after(self.step, figures):
            say(f"profile of steps {self.config.train.profile}: {self.profile.folder}")
        self.stop.requested()

    def log(self) -> dict[str, float]:
        """Write a row with the means since the last row, and return them."""
        figures = self.window.figures()
        self.record("train", figures)
        return figures

    def record(self, split: str, figures: dict[str, float]) -> None:
        """Write a row of metrics, and send it to the tracker."""
        self.metrics.write(self.step, split, figures)
        self.tracker.write(self.step, split, figures)

    def score(self) -> float | None:
        """Evaluate, log the figures and return the selection loss; on a signal, set `eval_pending` and return None."""
        self.window.check()
        self.watchdog.at(f"the evaluation after step {self.step}")
        decides = self.job.evaluates_first or self.config.train.patience > 0  # on the best checkpoint, or the end
        held_out = evaluate(self.compiled, self.state.params, None if decides else self.stop)
        self.window.restart_clock()
        self.eval_pending = held_out is None
        if held_out is None:
            return None
        self.record("eval", held_out)
        for line in reports.eval_lines(self.step, held_out):
            say(line)
        selection_loss = self.job.best.selection_loss(held_out)
        if self.step > 0:
            self.eval_history = (*self.eval_history, selection_loss)
        return selection_loss

    def save(self, selection_loss: float | None) -> None:
        """Save a checkpoint in the background, after the rows of metrics before it are on disk."""
        self.window.check()
        self.metrics.sync()
        self.watchdog.at(f"the checkpoint of step {self.step}")
        self.checkpoints.save(self.step, self.compiled.strategy.to_checkpoint(self.state), self.extra(), selection_loss)

    def extra(self) -> dict[str, Any]:
        """The JSON values of a checkpoint; the position in the data is one global row number."""
        return {
            "row": self.step * self.config.train.batch_size,
            "data": self.job.digest,
            "plan": self.job.plan,
            "config": configs.to_dict(self.config),
            "architecture": type(self.job.model).__name__,
            "model": dataclasses.asdict(self.job.model.config),
            "tokenizer": self.job.tokenizer.to_str(),
            "scored": self.eval_history,
            "owes_evaluation": self.eval_pending,
            "logged": (self.window.steps, self.window.sums),
        }


def say_why(compiled: CompiledSteps, step: int, received: signal.Signals | None) -> None:
    """Log why a run ended before its last step; after a signal, exit with its code."""
    if received is None:
        name = compiled.job.best.name
        say(f"step {step}: no better {name} in {compiled.config.train.patience} evaluations; stopped early")
    else:
        say(f"stopped by {received.name}; saved at step {step}; run the command again to resume")
        raise SystemExit(128 + received)


def count(params: Any) -> int:
    """The number of parameters in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
