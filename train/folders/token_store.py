"""A run's token store and the tokenizer that it is made with, prepared where they are missing or stale."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

import bertgpt
from bertgpt.data.pretraining.sentence_pairs import one_sentence_share
from bertgpt.data.text import store
from bertgpt.data.text.store import Split, TextSource
from bertgpt.errors import InputError
from bertgpt.tokenizers import (
    BERT_SPECIAL,
    load_tokenizer,
    special_id,
    train_bpe,
    train_wordpiece,
    vocabulary_size,
)

from .. import config as configs
from .. import hosts
from ..reports import say
from ..sections import RunConfig
from . import locks, verified
from .run_folder import InitialModel

if TYPE_CHECKING:
    from .distributed_preparation import TaskOptions


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
    config: RunConfig,
    initial: InitialModel | None = None,
    task_options: "TaskOptions | None" = None,
    verify: bool = False,
) -> bool:
    """Makes the token store where it is missing, damaged, or its inputs changed. One process at a time does; others
    that need the same store wait for it.

    The tokenizer is that of the run started from, that of tokenizer.path, or one trained on the training text.

    Args:
        config: of the run.
        initial: what the run begins or goes on with.
        spread: makes the store in tasks.
        verify: reads the whole store even where this machine has found it sound before.

    Returns:
        Whether the store is there; Slurm makes it later.

    Raises:
        InputError: the text or the tokenizer cannot be used, or changed under a run that has begun.
    """
    source, folder = configs.text_source(config), store_folder(config)
    given = _given_tokenizer(config, initial)
    wanted = _wanted_tokenizer(config, given)

    def bring_up_to_date() -> bool:
        if _why_prepare(config, initial, source, wanted, verify) is None:
            return True
        store.check_replaceable(folder)  # before a tokenizer is trained for it
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _store_lock(folder, task_options):
            reason = _why_prepare(config, initial, source, wanted, verify=False)  # another may have made it meanwhile
            if reason is None:
                return True
            say(f"preparing {folder}: {reason}")
            if not _prepare(config, source, wanted, given, task_options):
                return False
            verified.remember(folder)
            _tell_splits(folder, load_tokenizer(folder))
            return True

    return hosts.after_first(folder.parent, bring_up_to_date, f"waits for {folder}, which the first process prepares")


def _prepare(
    config: RunConfig,
    source: TextSource,
    wanted: dict[str, Any],
    given: Tokenizer | None,
    task_options: "TaskOptions | None",
) -> bool:
    folder = store_folder(config)
    if task_options is not None:
        from ..folders import distributed_preparation  # needs an extra

        return distributed_preparation.prepare(
            folder, source, wanted, lambda: given or _train_tokenizer(source, wanted), task_options
        )
    workers = config.data.workers or os.cpu_count() or 1
    tokenizer = given or _train_tokenizer(source, wanted)
    store.prepare(folder, source, tokenizer, wanted, workers, _tell_progress())
    return True


@contextlib.contextmanager
def _store_lock(folder: Path, task_options: "TaskOptions | None") -> Iterator[None]:
    """Keeps others from preparing the store. Handing tasks to Slurm needs no lock: its last job takes it."""
    if task_options is not None and task_options.slurm is not None:
        yield
        return
    path = folder.with_name(f".{folder.name}.lock")
    with locks.lock(path, lambda holder: say(f"waiting for {folder}, which {holder} is preparing")) as held:
        if held:  # else another may be at work
            store.remove_leftovers(folder)
        yield


def _why_prepare(
    config: RunConfig, initial: InitialModel | None, source: TextSource, wanted: dict[str, Any], verify: bool
) -> str | None:
    """Why the store does not serve, in one phrase; None where it does.

    Raises:
        InputError: its inputs changed, and the run that it served has begun; or it is damaged, and its text is gone.
    """
    folder = store_folder(config)
    damage = verified.fault(folder, verify) if (folder / "meta.json").exists() else None
    try:
        reason = store.stale_reason(folder, source, wanted)
    except InputError as error:
        raise InputError(f"{folder}: {damage}, and cannot be made again: {error}") if damage else error from None
    has_begun = initial is not None and initial.is_resumed and (folder / "meta.json").exists()
    if reason is not None and has_begun:
        raise InputError(f"{reason} since this run began at {config.out}; start a new run with another out")
    return reason or (damage and f"the store there is damaged: {damage}")


def open_store(config: RunConfig, tokenizer: Tokenizer, initial: InitialModel | None) -> list[Split]:
    """The training and the held-out split of the run's store.

    Args:
        config: of the run.
        tokenizer: the run's, loaded after the store was prepared.
        initial: what the run begins or goes on with.

    Raises:
        InputError: the store is damaged, or another run has put one of another text or tokenizer there.
    """
    folder = store_folder(config)
    splits = [store.open_split(folder, name) for name in store.SPLITS]
    wanted = _wanted_tokenizer(config, _given_tokenizer(config, initial))
    changed = store.stale_reason(folder, configs.text_source(config), wanted)
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


def expected_vocab_size(config: RunConfig, initial: InitialModel | None = None) -> int:
    """The vocabulary that the run's tokenizer has, or may have at most where it is still to be trained."""
    given = _given_tokenizer(config, initial)
    return vocabulary_size(given) if given else _wanted_tokenizer(config, None)["vocab_size"]


def _given_tokenizer(config: RunConfig, initial: InitialModel | None) -> Tokenizer | None:
    if initial is not None:
        return initial.tokenizer
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
