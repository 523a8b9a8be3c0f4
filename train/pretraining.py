"""Pretraining: the job of a configuration without a task, from a corpus."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bertgpt.data import store
from bertgpt.decoding import generate
from bertgpt.errors import InputError
from bertgpt.tokenizers import load_tokenizer, vocabulary_size
from train import config as configs
from train import hosts, locks, loop, parallel, reports, runs
from train.config import RunConfig
from train.loop import Job, Trainer
from train.reports import say
from train.state import TrainState

EVAL_SEED = 1  # of the held-out plan: the same pairs and masks in every run


def pretrain(config: RunConfig) -> None:
    """Runs a configuration to its end, from its newest checkpoint where there is one.

    Leaves in `config.out` what `loop.run` does, the token store, and curves.png.

    Raises:
        InputError: the user's mistake, found before anything is written where possible.
        NotFiniteError: the training diverged; the last good checkpoint is kept.
    """
    out = Path(config.out)
    if config.task.kind is not None:
        raise InputError(f"task.kind {config.task.kind} is for fine-tuning: python -m train finetune")
    if config.train.epochs is not None:
        raise InputError("train.epochs is for fine-tuning; give train.steps")
    hosts.connect()
    hosts.check_same({"command": "pretrain", **configs.flatten(configs.to_dict(config))})
    for folder in (out, runs.store_folder(config).parent):
        hosts.check_shared(folder)
    with locks.run_folder(out):
        _pretrain(config, out)


def _pretrain(config: RunConfig, out: Path) -> None:
    loop.check_out(out, config)
    start = runs.find_start(config)
    if start is not None and start.params is None and loop.is_finished(out, start.step, config.train.steps):
        return
    base = start.model_config if start else None
    configs.model_config(config, runs.expected_vocab_size(config, start), base)  # a mistake is told before the work
    strategy = parallel.make_strategy(config.parallel)
    parallel.check_batch(config.train.batch_size, config.train.accumulate, strategy)
    runs.prepare_store(config, start)
    job = make_job(config, load_tokenizer(runs.store_folder(config)), start)
    trainer, state = loop.run(config, job, strategy)
    finish(trainer, state)


def make_job(config: RunConfig, tokenizer: Tokenizer, start: runs.Start | None) -> Job:
    """Model and data; the store is prepared."""
    model_config = configs.model_config(config, vocabulary_size(tokenizer), start.model_config if start else None)
    model = runs.make_model(model_config, config.train.dtype, config.train.remat)
    train_split, eval_split = runs.open_store(config, tokenizer)
    family = model_config.architecture
    eval_source = runs.make_source(eval_split, tokenizer, config, family, EVAL_SEED)
    examples = config.train.eval_examples
    log_frequency = unigram(train_split.counts)
    tokens_per_byte = len(eval_split.tokens) / eval_split.text_bytes

    def unigram_sums(batch: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
        mask = batch["loss_mask"]
        return {"unigram_cross_entropy": (-float((log_frequency[batch["labels"]] * mask).sum()), float(mask.sum()))}

    return Job(
        model=model,
        tokenizer=tokenizer,
        params=start.params if start else None,
        task=runs.make_task(model, model_config),
        train_source=runs.make_source(train_split, tokenizer, config, family, config.seed, config.data.pack),
        eval_source=eval_source,
        eval_seed=EVAL_SEED,
        # windows cover the text; pairs can be drawn anew
        eval_examples=min(examples, len(eval_source)) if family == "gpt" else examples,
        token_keys=("input_ids", "labels"),
        digest=store.digest(runs.store_folder(config)),
        host_sums=unigram_sums,
        figures=lambda means, _: reports.derived(means, tokens_per_byte),
    )


def unigram(counts: np.ndarray) -> np.ndarray:
    """Log relative frequencies [V] of the training text, one added to every count."""
    smoothed = counts + 1.0
    return np.log(smoothed / smoothed.sum())


def finish(trainer: Trainer, state: TrainState) -> None:
    """Draws the curves and says where the run ended beside the unigram baseline; GPT-1 writes a line."""
    config, job = trainer.config, trainer.job
    if not hosts.is_first():
        return
    for line in reports.report(Path(config.out)):
        say(line)
    if not hosts.several() and job.model.config.causal:  # type: ignore[attr-defined]
        split = store.open_split(runs.store_folder(config), "eval")
        prompt = np.asarray(split.tokens[:8], np.int32)[None]
        room = job.model.config.max_positions - prompt.shape[1]  # type: ignore[attr-defined]
        ids = generate(job.model, state.params, prompt, min(32, room))
        say(f"generated: {job.tokenizer.decode(np.asarray(ids[0]).tolist())}")
