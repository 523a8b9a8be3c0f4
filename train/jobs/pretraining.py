"""Pretraining on a corpus: the job of a configuration without a task."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer

from bertgpt.config import ModelConfig
from bertgpt.data.pretraining.masking import MaskRule
from bertgpt.data.pretraining.mixture import Mixture
from bertgpt.data.pretraining.packing import Packed
from bertgpt.data.pretraining.pair_plans import IS_NEXT, NOT_NEXT, count_labels
from bertgpt.data.pretraining.sentence_pairs import BertPairs, LengthBaseline, fit_lengths, one_sentence_share
from bertgpt.data.text import store, text_source
from bertgpt.data.text.store import Split
from bertgpt.errors import InputError
from bertgpt.inference.decoding import generate
from bertgpt.model.inputs import example_ids
from bertgpt.tokenizers import load_tokenizer, vocabulary_size

from .. import addresses, capacity, hosts, loop, model_section, parallel, parameter_groups, reports, tracking
from .. import config as configs
from ..folders import locks, plans, run_folder, token_store
from ..folders.run_storage import RunStorage
from ..job import CompiledSteps, EvalSet, TrainJob
from ..loader import Source
from ..optimizers import make_schedule
from ..reports import say, warn
from ..sections import RunConfig
from ..state import TrainState
from . import objectives

MOST_NOT_NEXT = 0.75  # share of an epoch's pairs before balancing; above it a run warns


def pretrain(config: RunConfig) -> None:
    """Pretrain to the last step, resuming from the newest checkpoint if there is one.

    Writes to `config.out` the files of `loop.run`, the token store, and curves.png.

    Raises:
        InputError: a mistake of the user, found before anything is written if possible.
        NotFiniteError: training diverged; the last good checkpoint is kept.
    """
    files = RunStorage(config)
    if config.task.kind is not None:
        raise InputError(f"task.kind {config.task.kind} is for fine-tuning; use finetune, or add task.kind=null")
    if config.train.epochs is not None:
        raise InputError("train.epochs is for fine-tuning; add train.epochs=null, and give train.steps")
    tracking.check(config)
    hosts.connect()
    hosts.check_same({"command": "pretrain", **configs.flatten(configs.to_dict(config))})
    files.check()
    token_store.check_place(config)
    with locks.run_folder(files.out), files.opened():
        _pretrain(config, files)


def _pretrain(config: RunConfig, files: RunStorage) -> None:
    loop.check_out(files, config)
    initial = run_folder.find_initial_model(config)
    objectives.decide(config, initial)
    if initial is not None and initial.is_resumed and loop.is_finished(files, initial.step, config.train.steps):
        return
    vocab_size = token_store.expected_vocab_size(config, initial)
    base = initial.config if initial else None
    model_config = model_section.model_config(config, vocab_size, base)
    strategy = parallel.make_strategy(config.parallel, config.train.dtype)
    parallel.check_batch(config.train.batch_size, config.train.accumulate, strategy)
    capacity.check(config, model_config, strategy)
    check_settings(config, model_config)
    token_store.prepare_store(config, initial)
    job = make_job(config, load_tokenizer(token_store.store_folder(config)), initial)
    compiled, state = loop.run(config, job, strategy, files)
    finish(compiled, state)


def check_settings(config: RunConfig, model_config: ModelConfig) -> None:
    """Check before the long work what is needed only after it.

    Raises:
        InputError: of the schedule, frozen parameters or the deciding held-out set.
    """
    make_schedule(config.optimizer, config.train.steps, np)
    configs.deciding_set(config, list(configs.text_source(config).held_out_sets()))
    if patterns := parameter_groups.patterns(config.train.freeze):
        model = objectives.make_model(str(config.train.objective), model_config)
        ids = example_ids(type(model).__name__)
        parameter_groups.frozen(jax.eval_shape(model.init, jax.random.key(0), ids)["params"], patterns)


def make_job(config: RunConfig, tokenizer: Tokenizer, initial: run_folder.InitialModel | None) -> TrainJob:
    """Build the job: model, objective and data, from a prepared store.

    Raises:
        InputError: no IsNext pair can be made from a split.
    """
    model_config = model_section.model_config(config, vocabulary_size(tokenizer), initial.config if initial else None)
    objective = str(config.train.objective)  # set by `objectives.decide`
    model = objectives.make_model(
        objective, model_config, config.train.dtype, config.train.remat, config.model.attention
    )
    splits = token_store.open_store(config, tokenizer, initial)
    folder = token_store.store_folder(config)
    train, held_out = _parts(splits, "train"), _parts(splits, "eval")
    given = config.data.train.values() if isinstance(config.data.train, dict) else [1.0]
    weights = dict(zip(train, given, strict=True))
    sources = make_sources(config, tokenizer, folder, train)
    pairs = {name: found for name, source in sources.items() if (found := bert_pairs(source)) is not None}
    lengths = None
    if pairs:
        records = [found.plan(0).records for found in pairs.values()]
        lengths = fit_lengths(records, config.data.sequence_length - 3, list(weights.values()))
    log_frequency = unigram(mixed_counts([split.counts for split in train.values()], list(weights.values())))

    return TrainJob(
        model=model,
        tokenizer=tokenizer,
        params=initial.params if initial else None,
        objective=objectives.make_objective(objective, model),
        train_source=mix(config, sources, weights),
        evals={name: make_eval_set(config, tokenizer, folder, split, name) for name, split in held_out.items()},
        eval_seed=objectives.EVAL_SEED,
        token_keys=("input_ids", "labels"),
        digest=store.digest(folder, config.data.whole_word),
        host_sums=lambda batch: baseline_sums(batch, log_frequency, lengths),
        plan=max((found.plan_version for found in pairs.values()), default=1),
        best_on=configs.deciding_set(config, list(held_out)),
    )


def _parts(splits: dict[str, Split], kind: str) -> dict[str, Split]:
    """The splits of a kind, by the name of the source or set."""
    return {name.partition(".")[2]: split for name, split in splits.items() if name.partition(".")[0] == kind}


def make_eval_set(config: RunConfig, tokenizer: Tokenizer, folder: Path, split: Split, name: str) -> EvalSet:
    """The held-out examples of a split of the store.

    Raises:
        InputError: no IsNext pair can be made from it.
    """
    split_name = text_source.split_name("eval", name)
    keep = plans.keep(config, folder, split, split_name, objectives.EVAL_SEED)
    with naming(split_name):
        source = objectives.eval_source(split, tokenizer, config, keep=keep)
    pairs, examples = bert_pairs(source), config.train.eval_examples
    if pairs is not None:
        check_labels(pairs, split_name, config)
    windows = config.train.objective == "clm"  # they cover the text once; further masks can be sampled
    tokens_per_byte = len(split.tokens) / split.text_bytes
    second = None
    if config.data.whole_word and not windows:
        second = objectives.eval_source(split, tokenizer, config, MaskRule(whole_word=True), keep)
    return EvalSet(
        source,
        min(examples, len(source)) if windows else examples,
        lambda means, _: reports.derived(means, tokens_per_byte),
        second,
    )


def mixed_counts(counts: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Token counts [V] of as much text as all sources have, if each source gave the share of its weight."""
    if len(counts) == 1:
        return counts[0]
    shares = np.array(weights) / np.sum(weights)
    total = sum(int(found.sum()) for found in counts)
    return np.sum([total * share * found / found.sum() for share, found in zip(shares, counts, strict=True)], axis=0)


def make_sources(config: RunConfig, tokenizer: Tokenizer, folder: Path, train: dict[str, Split]) -> dict[str, Source]:
    """The training examples of each source, by its name; each source has its own seed.

    Raises:
        InputError: no example, or no IsNext pair, can be made from a source.
    """
    sources = {}
    for number, (name, split) in enumerate(train.items()):
        split_name, seed = text_source.split_name("train", name), config.seed + (number << 32)
        keep = plans.keep(config, folder, split, split_name, seed)
        with naming(split_name):
            sources[name] = objectives.train_source(split, tokenizer, config, keep, seed)
        if (pairs := bert_pairs(sources[name])) is not None:
            check_labels(pairs, split_name, config)
    return sources


@contextlib.contextmanager
def naming(split: str) -> Iterator[None]:
    """Begin an error of the body with the name of a source or held-out set, if it has one."""
    try:
        yield
    except InputError as error:
        if "." not in split:
            raise
        raise InputError(f"the {split} split: {error}") from error


def mix(config: RunConfig, sources: dict[str, Source], weights: dict[str, float]) -> Source:
    """The sources as one; logs the share of each, and how often the run reads it."""
    if len(sources) == 1:
        return next(iter(sources.values()))
    mixture = Mixture(sources, weights, config.seed)
    epochs = config.train.steps * config.train.batch_size / len(mixture)
    for (name, source), rows in zip(sources.items(), mixture.rows().values(), strict=True):
        share, read = rows / len(mixture), epochs * rows / len(source)
        say(f"{name}: {share:.1%} of the rows; the run reads its {len(source):,} rows {read:.2f} times")
    return mixture


def bert_pairs(source: Source) -> BertPairs | None:
    """The sentence pairs of a source, packed or not; None for GPT-1's text."""
    examples = source.examples if isinstance(source, Packed) else source
    return examples if isinstance(examples, BertPairs) else None


def check_labels(pairs: BertPairs, split: str, config: RunConfig) -> None:
    """Warn if over `MOST_NOT_NEXT` of the pairs are NotNext: balancing skips most pairs, or the labels are unbalanced.

    Raises:
        InputError: no pair is IsNext.
    """
    plan = pairs.plan(0)
    counts = count_labels(plan.records)
    total = len(plan.records) + plan.left_out
    not_next = (counts[NOT_NEXT] + plan.left_out) / total
    if counts[IS_NEXT] and not_next <= MOST_NOT_NEXT:
        return
    single = one_sentence_share(pairs.split.documents)
    cause = (
        f"{single:.0%} of its {len(pairs.split.documents) - 1:,} documents have one sentence; {_hint(single, config)}"
    )
    if not counts[IS_NEXT]:
        raise InputError(f"the {split} split: none of its {total:,} sentence pairs is IsNext: {cause}")
    effect = f", and {plan.left_out:,} of {total:,} are skipped in each epoch" if plan.left_out else ""
    warn(f"the {split} split: {not_next:.0%} of its sentence pairs are NotNext{effect}: {cause}")


def _hint(single: float, config: RunConfig) -> str:
    """Advice on how to get more pairs of several sentences, given the share of one-sentence documents."""
    if single <= 0.5:
        return (
            f"raise data.sequence_length: two sentences rarely fit into {config.data.sequence_length} tokens; "
            "or give more text"
        )
    if config.data.document == "line":
        return "data.document=line makes a document of every line; set data.document to paragraph or file"
    if config.data.sentence_per_line:
        return "put each sentence on its own line, and blank lines only between documents"
    return (
        "separate documents, not sentences, by blank lines (data.sentence_per_line=true: one sentence per line), or "
        "give .jsonl with one document per line"
    )


def baseline_sums(
    batch: dict[str, np.ndarray], log_frequency: np.ndarray, lengths: LengthBaseline | None
) -> dict[str, tuple[float, float]]:
    """The baselines of a held-out batch, as (sum, weight) by name.

    They are the cross-entropy of unigram frequencies, and the recalls of both NSP labels predicted from the lengths of
    the two segments.
    """
    mask = batch["loss_mask"]
    sums = {"unigram_cross_entropy": (-float((log_frequency[batch["labels"]] * mask).sum()), float(mask.sum()))}
    if lengths is None:
        return sums
    label = batch["next_sentence_label"]
    right = lengths.predict(batch) == label
    for name, value in (("is_next", IS_NEXT), ("not_next", NOT_NEXT)):
        weight = batch["nsp_loss_mask"] * (label == value)
        sums[f"nsp_length_recall_{name}"] = float((right * weight).sum()), float(weight.sum())
    return sums


def unigram(counts: np.ndarray) -> np.ndarray:
    """Log relative token frequencies [V] of the training text, with 1 added to each count."""
    smoothed = counts + 1.0
    return np.log(smoothed / smoothed.sum())


def finish(compiled: CompiledSteps, state: TrainState) -> None:
    """Draw the curves and log the final figures with their baselines; for GPT-1, log a generated text."""
    config, job = compiled.config, compiled.job
    if not hosts.is_first():
        return
    for line in reports.report(addresses.local(config.out), name=config.out):
        say(line)
    if not hosts.several() and job.model.config.causal:
        prompt = job.deciding.source.batch(np.arange(1))["input_ids"][:, :8]
        room = job.model.config.max_positions - prompt.shape[1]
        ids = generate(job.model, state.params, prompt, min(32, room))
        say(f"generated: {job.tokenizer.decode(np.asarray(ids[0]).tolist())}")
