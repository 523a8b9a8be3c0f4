"""A run's parts made from its configuration, and a finished run's folder read back."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

import bertgpt
from bertgpt.checkpoints.adapt import adapt
from bertgpt.checkpoints.load import example_ids, family_of_folder
from bertgpt.config import ModelConfig
from bertgpt.data.pretraining.packing import Packed, most_examples
from bertgpt.data.pretraining.sentence_pairs import BertPairs, one_sentence_share, pack_pairs
from bertgpt.data.pretraining.windows import GptPieces, GptWindows
from bertgpt.data.text import store
from bertgpt.data.text.store import Split, TextSource
from bertgpt.errors import InputError, check_local
from bertgpt.tokenizers import (
    BERT_SPECIAL,
    load_tokenizer,
    parse_tokenizer,
    special_id,
    train_bpe,
    train_wordpiece,
    vocabulary_size,
)

from .. import config as configs
from .. import hosts
from ..config import RunConfig
from ..folders import locks, verified
from ..folders.checkpoints import Checkpoints
from ..loader import Source
from ..reports import say, warn
from ..step import Task, bert_task, gpt_task

if TYPE_CHECKING:
    from ..folders.distributed_preparation import Spread

PRETRAINED = {"bert": "BertForPreTraining", "gpt": "OpenAIGPTLMHeadModel"}  # the model that an architecture pretrains


class Run(NamedTuple):
    """A run folder's model, ready to use."""

    model: nn.Module
    params: Any
    tokenizer: Tokenizer
    step: int


class Start(NamedTuple):
    """What a run begins or goes on with instead of its preset and a tokenizer trained anew.

    `params` None: the run in `config.out` goes on, whose checkpoint has them.
    """

    model_config: ModelConfig
    tokenizer: Tokenizer
    params: Any = None
    step: int = 0


def load_run(folder: str | Path, step: int | None = None) -> Run:
    """A run folder's best checkpoint (the newest where none was evaluated), or the next where it is damaged.

    A model folder (Hugging Face's, or one exported) is read as well; its step is 0.

    Args:
        folder: of a run or a model.
        step: that checkpoint of a run and no other.

    Raises:
        InputError: the folder is neither, or has no such checkpoint that can be read.
    """
    check_local("the run or model folder", folder)
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        return _load_model_folder(folder, step)
    checkpoints = Checkpoints(folder / "checkpoints")
    steps, best = checkpoints.steps(), checkpoints.best()
    if not steps:
        raise InputError(f"{folder}: no checkpoint yet; let the run reach its first, or lower checkpoint.every")
    if step is not None and step not in steps:
        raise InputError(f"{folder}: no checkpoint {step}; there are {', '.join(map(str, sorted(steps)))}")
    wanted = [step] if step is not None else sorted(steps, key=lambda step: (step != best, -step))
    for number in wanted:
        fault = checkpoints.fault(number)
        if fault is None:
            return _load_step(checkpoints, number)
        warn(f"checkpoint {number} of {folder} is damaged: {fault}")
    rest = "leave --step out for another" if step is not None else "train again with another out"
    raise InputError(f"{folder}: no checkpoint can be read; {rest}")


def _load_model_folder(folder: Path, step: int | None = None, architecture: str | None = None) -> Run:
    if not _is_model_folder(folder):
        raise InputError(f"{folder}: not a run folder (no config.yaml), and no model folder (no config.json)")
    if step is not None:
        raise InputError(f"{folder}: a model folder has no checkpoint {step}; leave --step out")
    model, params = bertgpt.load_pretrained(folder, architecture)
    return Run(model, params, load_tokenizer(folder), 0)


def _is_model_folder(folder: Path) -> bool:
    """Whether it looks like Hugging Face's, or like OpenAI's release."""
    return any((folder / name).is_file() for name in ("config.json", "params_shapes.json"))


def _load_start(folder: Path) -> Run:
    """A run, or a model folder, with the heads of its pretraining; those that it lacks are made anew."""
    if not (folder / "config.yaml").is_file() and _is_model_folder(folder):
        return _load_model_folder(folder, None, PRETRAINED[family_of_folder(folder)])
    run = load_run(folder)
    name = PRETRAINED[run.model.config.architecture]  # type: ignore[attr-defined]
    if type(run.model).__name__ == name:
        return run
    config = dataclasses.replace(run.model.config, num_labels=2, labels=(), problem_type=None)  # type: ignore[attr-defined]
    model, params = adapt(run.model, run.params, name, config, run.tokenizer, key=jax.random.key(0))
    return Run(model, params, run.tokenizer, run.step)


def _load_step(checkpoints: Checkpoints, step: int) -> Run:
    extra = checkpoints.extra(step)
    config = ModelConfig(**extra["model"])
    model = getattr(bertgpt, _architecture_of(extra))(config)
    params = checkpoints.load_params(step, abstract_params(model))
    return Run(
        model, jax.tree.map(jnp.asarray, params), parse_tokenizer(extra["tokenizer"], f"checkpoint {step}"), step
    )


def _architecture_of(extra: dict[str, Any]) -> str:
    """The class of a checkpoint's model."""
    return extra.get("architecture") or PRETRAINED[extra["model"]["architecture"]]


def need(run: Run, architecture: str, verb: str, other: str) -> Run:
    """The run, if its model suits the verb.

    Raises:
        InputError: it does not; names the verb that does.
    """
    found = run.model.config.architecture
    if found != architecture:
        names = {"bert": "BERT", "gpt": "GPT-1"}
        raise InputError(f"{verb} needs a {names[architecture]}, and this run is a {names[found]}; use {other}")
    return run


def make_model(config: ModelConfig, dtype: str = "float32", remat: str = "none") -> nn.Module:
    """The model of an architecture with its pretraining heads."""
    return getattr(bertgpt, PRETRAINED[config.architecture])(config, jnp.dtype(dtype), remat)


def make_task(model: nn.Module, config: ModelConfig) -> Task:
    """What the architecture is pretrained on."""
    return bert_task(model) if config.architecture == "bert" else gpt_task(model)


def abstract_params(model: nn.Module) -> Any:
    """The parameters' shapes and dtypes; nothing is allocated."""
    return jax.eval_shape(model.init, jax.random.key(0), example_ids(type(model).__name__))["params"]


def make_source(
    split: Split, tokenizer: Tokenizer, config: RunConfig, architecture: str, seed: int, pack: bool = False
) -> Source:
    """The examples of a split, each in a row of its own; or several, where `pack`."""
    data, length = config.data, config.data.sequence_length
    if architecture == "gpt" and pack:
        return Packed(GptPieces(split, length, seed), most_examples(length), seed)
    if architecture == "gpt":
        return GptWindows(split, length, seed)
    pairs = BertPairs(split, tokenizer, length, seed, data.whole_word, data.balance_nsp)
    return pack_pairs(pairs) if pack else pairs


def find_start(config: RunConfig) -> Start | None:
    """The run already in config.out, or else the one that model.init_from names; None where there is neither.

    Raises:
        InputError: model.init_from is no run, or stands beside what it brings itself.
    """
    start = find_resumed(config)
    if start is not None or config.model.init_from is None:
        return start
    check_init_from(config)
    run = _load_start(Path(config.model.init_from))
    return Start(run.model.config, run.tokenizer, run.params)


def find_resumed(config: RunConfig) -> Start | None:
    """The run already in config.out."""
    checkpoints = Checkpoints(Path(config.out) / "checkpoints")
    for step in reversed(checkpoints.steps()):
        if checkpoints.fault(step, arrays=False) is None:  # else the restore that follows sets it aside
            extra = checkpoints.extra(step)
            tokenizer = parse_tokenizer(extra["tokenizer"], f"checkpoint {step}")
            return Start(ModelConfig(**extra["model"]), tokenizer, None, step)
    return None


def check_init_from(config: RunConfig) -> None:
    """
    Raises:
        InputError: something stands beside model.init_from that it brings itself.
    """
    for key, value in (("model.preset", config.model.preset), ("tokenizer.path", config.tokenizer.path)):
        if value is not None:
            raise InputError(f"{key} is given beside model.init_from, which brings its own; leave one of them out")


def store_folder(config: RunConfig) -> Path:
    """Where the run's token store lies.

    Raises:
        InputError: it is the root folder or the current one, beside which nothing can be made.
    """
    folder = Path(config.data.store) if config.data.store else Path(config.out) / "store"
    if folder.name in ("", ".."):
        raise InputError(f"data.store is {config.data.store}; give a named folder, such as data.store=stores/mine")
    return folder


def prepare_store(
    config: RunConfig, start: Start | None = None, spread: "Spread | None" = None, verify: bool = False
) -> bool:
    """Makes the token store where it is missing, damaged, or its inputs changed. One process at a time does; others
    that need the same store wait for it.

    The tokenizer is that of the run started from, that of tokenizer.path, or one trained on the training text.

    Args:
        config: of the run.
        start: what the run begins or goes on with.
        spread: makes the store in tasks.
        verify: reads the whole store even where this machine has found it sound before.

    Returns:
        Whether the store is there; Slurm makes it later.

    Raises:
        InputError: the text or the tokenizer cannot be used, or changed under a run that has begun.
    """
    source, folder = configs.text_source(config), store_folder(config)
    given = _given_tokenizer(config, start)
    wanted = _wanted_tokenizer(config, given)

    def bring_up_to_date() -> bool:
        if _why_prepare(config, start, source, wanted, verify) is None:
            return True
        store.check_replaceable(folder)  # before a tokenizer is trained for it
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _store_lock(folder, spread):
            reason = _why_prepare(config, start, source, wanted, verify=False)  # another may have made it meanwhile
            if reason is None:
                return True
            say(f"preparing {folder}: {reason}")
            if not _prepare(config, source, wanted, given, spread):
                return False
            verified.remember(folder)
            _tell_splits(folder, load_tokenizer(folder))
            return True

    return hosts.after_first(folder.parent, bring_up_to_date, f"waits for {folder}, which the first process prepares")


def _prepare(
    config: RunConfig, source: TextSource, wanted: dict[str, Any], given: Tokenizer | None, spread: "Spread | None"
) -> bool:
    folder = store_folder(config)
    if spread is not None:
        from ..folders import distributed_preparation as scaling  # needs an extra

        return scaling.prepare(folder, source, wanted, lambda: given or _train_tokenizer(source, wanted), spread)
    workers = config.data.workers or os.cpu_count() or 1
    tokenizer = given or _train_tokenizer(source, wanted)
    store.prepare(folder, source, tokenizer, wanted, workers, _tell_progress())
    return True


@contextlib.contextmanager
def _store_lock(folder: Path, spread: "Spread | None") -> Iterator[None]:
    """Keeps others from preparing the store. Handing tasks to Slurm needs no lock: its last job takes it."""
    if spread is not None and spread.slurm is not None:
        yield
        return
    path = folder.with_name(f".{folder.name}.lock")
    with locks.lock(path, lambda holder: say(f"waiting for {folder}, which {holder} is preparing")) as held:
        if held:  # else another may be at work
            store.remove_leftovers(folder)
        yield


def _why_prepare(
    config: RunConfig, start: Start | None, source: TextSource, wanted: dict[str, Any], verify: bool
) -> str | None:
    """Why the store does not serve, in one phrase; None where it does.

    Raises:
        InputError: its inputs changed, and the run that it served has begun; or it is damaged, and its text is gone.
    """
    folder = store_folder(config)
    damage = verified.fault(folder, verify) if (folder / "meta.json").exists() else None
    try:
        reason = store.changes(folder, source, wanted)
    except InputError as error:
        raise InputError(f"{folder}: {damage}, and cannot be made again: {error}") if damage else error from None
    has_begun = start is not None and start.params is None and (folder / "meta.json").exists()
    if reason is not None and has_begun:
        raise InputError(f"{reason} since this run began at {config.out}; start a new run with another out")
    return reason or (damage and f"the store there is damaged: {damage}")


def open_store(config: RunConfig, tokenizer: Tokenizer, start: Start | None) -> list[Split]:
    """The training and the held-out split of the run's store.

    Args:
        config: of the run.
        tokenizer: the run's, loaded after the store was prepared.
        start: what the run begins or goes on with.

    Raises:
        InputError: the store is damaged, or another run has put one of another text or tokenizer there.
    """
    folder = store_folder(config)
    splits = [store.open_split(folder, name) for name in store.SPLITS]
    wanted = _wanted_tokenizer(config, _given_tokenizer(config, start))
    changed = store.changes(folder, configs.text_source(config), wanted)
    if changed or store.made_with(folder) != store.tokenizer_hash(tokenizer):
        reason = changed or "tokenizer changed"
        raise InputError(f"{folder}: another run has replaced this store ({reason}); give each run its own data.store")
    return splits


def _tell_progress() -> Callable[[int], None]:
    """Takes sizes in bytes and tells their sum at every 64 MiB."""
    done = 0

    def progress(size: int) -> None:
        nonlocal done
        if (done + size) >> 26 > done >> 26:
            say(f"tokenized {(done + size) / 2**20:,.0f} MiB")
        done += size

    return progress


def _tell_splits(folder: Path, tokenizer: Tokenizer) -> None:
    """Tells what each split holds, and how much of it the tokenizer does not know."""
    unknown = getattr(tokenizer.model, "unk_token", None)  # byte-level BPE has none
    index = tokenizer.token_to_id(unknown) if unknown else None
    for name in store.SPLITS:
        split = store.open_split(folder, name)
        documents = (
            f"{len(split.documents) - 1:,} documents ({one_sentence_share(split.documents):.0%} of one sentence)"
        )
        share = "" if index is None else f", {unknown}: {100 * split.counts[index] / len(split.tokens):.2g} % of tokens"
        say(f"{name}: {documents}, {len(split.tokens):,} tokens{share}")


def expected_vocab_size(config: RunConfig, start: Start | None = None) -> int:
    """The vocabulary that the run's tokenizer has, or may have at most where it is still to be trained."""
    given = _given_tokenizer(config, start)
    return vocabulary_size(given) if given else _wanted_tokenizer(config, None)["vocab_size"]


def _given_tokenizer(config: RunConfig, start: Start | None) -> Tokenizer | None:
    if start is not None:
        return start.tokenizer
    if config.tokenizer.path is None:
        return None
    tokenizer = load_tokenizer(config.tokenizer.path)
    for token in BERT_SPECIAL if _architecture(config) == "bert" else ():
        special_id(tokenizer, token)
    return tokenizer


def _architecture(config: RunConfig) -> str:
    preset = bertgpt.presets.get(config.model.preset) if config.model.preset else None
    return config.model.architecture or (preset.architecture if preset else "bert")


def _wanted_tokenizer(config: RunConfig, given: Tokenizer | None) -> dict[str, Any]:
    """Plain values that say which tokenizer the configuration asks for."""
    if given is not None:
        return {"sha256": store.tokenizer_hash(given)}
    section = dataclasses.asdict(config.tokenizer)
    preset = bertgpt.presets.get(config.model.preset) if config.model.preset else None
    bert = _architecture(config) == "bert"
    section["kind"] = section["kind"] or ("wordpiece" if bert else "bpe")
    if bert and section["kind"] == "bpe":
        raise InputError("tokenizer.kind bpe has no [MASK]; BERT needs wordpiece")
    if section["kind"] == "bpe" and not section["lowercase"]:
        raise InputError("tokenizer.lowercase=false is for wordpiece; GPT-1's bpe lower-cases")
    section["vocab_size"] = section["vocab_size"] or config.model.vocab_size or (preset.vocab_size if preset else 30522)
    return section


class _TrainingTexts:
    """The training documents, each as one text, read anew by every iteration: a tokenizer's training needs two."""

    def __init__(self, source: TextSource) -> None:
        self.source = source

    def __iter__(self) -> Iterator[str]:
        for document in self.source.documents("train"):
            yield "\n".join(document)


def _train_tokenizer(source: TextSource, wanted: dict[str, Any]) -> Tokenizer:
    say(f"training a {wanted['kind']} tokenizer of {wanted['vocab_size']:,} pieces")
    texts = _TrainingTexts(source)
    with ctrl_c_ends_at_once():
        if wanted["kind"] == "bpe":
            return train_bpe(texts, wanted["vocab_size"])
        return train_wordpiece(texts, wanted["vocab_size"], wanted["lowercase"])


@contextlib.contextmanager
def ctrl_c_ends_at_once() -> Iterator[None]:
    """For long calls of Rust code, which look at no signal, while nothing is being written. Where Ctrl-C does something
    else, such as nothing in the background of a shell, that stays."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
