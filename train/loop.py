"""Pretraining, in the order in which it happens."""

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

from bertgpt.config import ModelConfig
from bertgpt.data import store
from bertgpt.decoding import generate
from bertgpt.errors import InputError
from bertgpt.tokenizers import save_tokenizer, vocabulary_size
from train import config as configs
from train import loader, parallel, reports, runs
from train.checkpoints import Checkpoints, restore_newest
from train.config import RunConfig
from train.optimizers import make_optimizer, make_schedule
from train.parallel import Strategy
from train.reports import say
from train.state import TrainState, create_state
from train.step import eval_step, train_step

EVAL_SEED = 1  # of the held-out plan: the same pairs and masks in every run


class NotFiniteError(RuntimeError):
    """A loss or gradient was infinite or not a number."""


class Trainer(NamedTuple):
    """What the loop needs, made once."""

    config: RunConfig
    model_config: ModelConfig
    model: nn.Module
    tokenizer: Tokenizer
    strategy: Strategy
    train: Callable[..., Any]
    evaluate: Callable[..., Any]
    schedule: Callable[[int], Any]
    train_source: loader.Source
    eval_source: loader.Source
    train_split: store.Split
    eval_split: store.Split


def pretrain(config: RunConfig) -> None:
    """Runs a configuration to its end, from its newest checkpoint where there is one.

    Leaves in `config.out`: config.yaml, tokenizer.json, metrics.jsonl, checkpoints/, curves.png.

    Raises:
        InputError: the user's mistake, found before anything is written where possible.
        NotFiniteError: the training diverged; the last good checkpoint is kept.
    """
    out = Path(config.out)
    check_out(out, config)
    start = runs.find_start(config)
    if start is not None and start.params is None and is_finished(out, start.step, config.train.steps):
        return
    base = start.model_config if start else None
    configs.model_config(config, runs.expected_vocab_size(config, start), base)  # a mistake is told before the work
    strategy = parallel.make_strategy(config.parallel)
    parallel.check_batch(config.train.batch_size, config.train.accumulate, strategy)

    tokenizer = runs.prepare_store(config, start)
    trainer, state = build(config, tokenizer, strategy, start)
    for line in reports.opening(config, trainer.model_config, strategy, count(state.params)):
        say(line)
    out.mkdir(parents=True, exist_ok=True)

    checkpoints = Checkpoints(out / "checkpoints", config.checkpoint.keep)
    try:
        state, row = resume(trainer, state, checkpoints)
        configs.save(config, out / "config.yaml")
        save_tokenizer(tokenizer, out)
        state = run_steps(trainer, state, row, checkpoints)
        finish(trainer, state)
    finally:
        checkpoints.close()


def is_finished(out: Path, step: int, steps: int) -> bool:
    """Whether the run in `out` has made all its steps and its last checkpoint is sound; says so."""
    checkpoints = Checkpoints(out / "checkpoints", keep=1, read_only=True)
    if step < steps or not checkpoints.is_sound(step):
        return False
    say(f"finished: {out} has made its {steps} steps; raise train.steps to go on")
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


def build(
    config: RunConfig, tokenizer: Tokenizer, strategy: Strategy, start: runs.Start | None
) -> tuple[Trainer, TrainState]:
    """Model, data, optimizer and compiled steps; the state at step 0."""
    vocab_size = vocabulary_size(tokenizer)
    model_config = configs.model_config(config, vocab_size, start.model_config if start else None)
    model = runs.make_model(model_config, config.train.dtype)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    task = runs.make_task(model, model_config)
    train, evaluate = parallel.compile_steps(
        strategy,
        functools.partial(train_step, task=task, optimizer=optimizer, accumulate=config.train.accumulate),
        functools.partial(eval_step, task=task),
    )
    train_split, eval_split = (store.open_split(runs.store_folder(config), name) for name in store.SPLITS)
    trainer = Trainer(
        config=config,
        model_config=model_config,
        model=model,
        tokenizer=tokenizer,
        strategy=strategy,
        train=train,
        evaluate=evaluate,
        schedule=make_schedule(config.optimizer, config.train.steps),
        train_source=runs.make_source(train_split, tokenizer, config, model_config.architecture, config.seed),
        eval_source=runs.make_source(eval_split, tokenizer, config, model_config.architecture, EVAL_SEED),
        train_split=train_split,
        eval_split=eval_split,
    )
    create = parallel.compile_init(functools.partial(create_state, model, optimizer, config.seed))
    return trainer, create(start.params if start else None)


def resume(trainer: Trainer, state: TrainState, checkpoints: Checkpoints) -> tuple[TrainState, int]:
    """The newest good checkpoint's state and the row of the data that comes next, or the fresh state and 0.

    Raises:
        InputError: the text changed since the checkpoint.
    """
    found = restore_newest(checkpoints, state, reports.warn)
    if found is None:
        return state, 0
    state, extra = found
    if extra["data"] != store.digest(runs.store_folder(trainer.config)):
        raise InputError(f"the text changed since checkpoint {state.step}; start a new run with another out")
    say(f"going on from step {int(state.step)}")
    return state, extra["row"]


def run_steps(trainer: Trainer, state: TrainState, row: int, checkpoints: Checkpoints) -> TrainState:
    """Trains to `train.steps`: logs, evaluates and saves when due; saves and leaves on SIGTERM."""
    config, strategy = trainer.config, trainer.strategy
    first, last = int(state.step), config.train.steps
    batches = loader.batches(trainer.train_source, config.train.batch_size, config.seed, row)
    window, state = Window(trainer), strategy.put_state(state)
    with Stop() as stop, reports.Metrics(Path(config.out), first) as metrics, reports.Bar(last, first) as bar:
        for step, batch in zip(range(first + 1, last + 1), batches, strict=False):
            state, figures = trainer.train(state, strategy.put_batch(validated(batch, trainer.model_config)))
            window.add(step, figures, loader.real_tokens(batch))
            bar.advance(step)
            ends = step == last or stop.received is not None
            if step % config.train.log_every == 0 or step == last:
                seen = window.figures()
                metrics.write(step, "train", seen)
                bar.show(step, seen)
            loss = None
            if step % config.train.eval_every == 0 or step == last:
                window.check()
                held_out = evaluate(trainer, state.params)
                metrics.write(step, "eval", held_out)
                say(reports.eval_line(step, held_out))
                loss = held_out["loss"]
                window.restart_clock()
            if step % config.checkpoint.every == 0 or ends:
                window.check()
                metrics.sync()
                checkpoints.save(step, strategy.saved(state), extra(trainer, step), loss)
            if ends:
                break
    checkpoints.wait()
    if stop.received is not None and step < last:
        say(f"stopped by {stop.received.name}; saved at step {step}: the same command goes on from there")
        raise SystemExit(128 + stop.received)
    return strategy.saved(state)


def evaluate(trainer: Trainer, params: Any) -> dict[str, float]:
    """Mean losses and accuracies over the held-out examples, every example once, and the unigram's loss on the same."""
    config = trainer.config
    sums: dict[str, list[float]] = {}
    examples = config.train.eval_examples
    if trainer.model_config.architecture == "gpt":
        examples = min(examples, len(trainer.eval_source))  # windows cover the text; pairs can be drawn anew
    log_frequency = unigram(trainer.train_split.counts)
    add(sums, "unigram_cross_entropy", 0.0, 0.0)
    began = time.monotonic()
    size = config.train.batch_size // config.train.accumulate  # no more memory than a micro-batch
    for batch in loader.eval_batches(trainer.eval_source, size, EVAL_SEED, examples):
        outcome = trainer.evaluate(params, trainer.strategy.put_batch(validated(batch, trainer.model_config)))
        for name, value in outcome.items():
            add(sums, name, trainer.strategy.scalar(value.sum), trainer.strategy.scalar(value.weight))
        mask = batch["loss_mask"]
        add(sums, "unigram_cross_entropy", -float((log_frequency[batch["labels"]] * mask).sum()), float(mask.sum()))
    means = {name: total / weight if weight else 0.0 for name, (total, weight) in sums.items()}
    tokens_per_byte = len(trainer.eval_split.tokens) / trainer.eval_split.text_bytes
    return reports.derived(means, tokens_per_byte) | {"examples": examples, "seconds": time.monotonic() - began}


def add(sums: dict[str, list[float]], name: str, total: float, weight: float) -> None:
    """Adds to a named (sum, weight) in float64."""
    pair = sums.setdefault(name, [0.0, 0.0])
    pair[0] += total
    pair[1] += weight


def unigram(counts: np.ndarray) -> np.ndarray:
    """Log relative frequencies [V] of the training text, one added to every count."""
    smoothed = counts + 1.0
    return np.log(smoothed / smoothed.sum())


def finish(trainer: Trainer, state: TrainState) -> None:
    """Draws the curves and says where the run ended beside the unigram baseline; GPT-1 writes a line."""
    out = Path(trainer.config.out)
    summary = reports.report(out)
    for line in summary:
        say(line)
    if trainer.model_config.architecture == "gpt":
        prompt = np.asarray(trainer.eval_split.tokens[:8], np.int32)[None]
        room = trainer.model_config.max_positions - prompt.shape[1]
        ids = generate(trainer.model, state.params, prompt, min(32, room))
        say(f"generated: {trainer.tokenizer.decode(np.asarray(ids[0]).tolist())}")


def extra(trainer: Trainer, step: int) -> dict[str, Any]:
    """What a checkpoint holds beside the arrays: the data position is one global row number."""
    return {
        "row": step * trainer.config.train.batch_size,
        "data": store.digest(runs.store_folder(trainer.config)),
        "config": configs.to_dict(trainer.config),
        "model": dataclasses.asdict(trainer.model_config),
        "tokenizer": trainer.tokenizer.to_str(),
    }


def count(params: Any) -> int:
    """Parameters in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def validated(batch: dict[str, np.ndarray], model: ModelConfig) -> dict[str, np.ndarray]:
    """The batch, its ids checked on the host: JAX would clamp one beyond the vocabulary in silence.

    Raises:
        InputError: an id is beyond the vocabulary: the store is damaged, or not this tokenizer's.
    """
    top = max(int(batch[name].max()) for name in ("input_ids", "labels"))
    if top >= model.vocab_size:
        raise InputError(f"token id {top} is beyond the vocabulary of {model.vocab_size}; prepare the store again")
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
