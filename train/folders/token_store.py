"""A run's token store and its tokenizer; both are prepared if they are missing or stale."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

import bertgpt
from bertgpt.data.pretraining.sentence_pairs import one_sentence_share
from bertgpt.data.text import store
from bertgpt.data.text.files import File, stamp
from bertgpt.data.text.store import Split
from bertgpt.data.text.text_source import TextSource
from bertgpt.errors import InputError
from bertgpt.tokenizers import (
    BERT_SPECIAL,
    check_installed,
    load_tokenizer,
    special_id,
    train_bpe,
    train_wordpiece,
    vocabulary_size,
)

from .. import config as configs
from .. import hosts
from ..addresses import Remote, is_address, local, shared
from ..progress import Bar
from ..reports import say, warn
from ..sections import RunConfig
from . import locks, store_copies, verified
from .run_folder import InitialModel
from .tokenizer_fit import find_problems, unknown_share, unknown_token

if TYPE_CHECKING:
    from .distributed_preparation import TaskOptions


def store_folder(config: RunConfig) -> Path:
    """The folder of the run's token store on this machine.

    Raises:
        InputError: it is the root or the current folder; the store needs files next to its folder.
    """
    address = store_address(config)
    if address is not None:
        return local(address, "store")
    folder = Path(config.data.store) if config.data.store else Path(config.out) / "store"
    if folder.name in ("", ".."):
        raise InputError(f"data.store is {config.data.store}; give a named folder, such as data.store=stores/mine")
    return folder


def store_address(config: RunConfig) -> str | None:
    """The address of the run's token store; None if its folder is on a disk."""
    address = config.data.store or f"{config.out.rstrip('/')}/store"
    return address if is_address(address) else None


def check_place(config: RunConfig) -> None:
    """Check that the store can be written at its address, or that all processes share its folder.

    Raises:
        InputError: it cannot, or they do not.
    """
    address = store_address(config)
    if address is None:
        hosts.check_shared(store_folder(config).parent)
    elif config.data.store:
        Remote(address, "data.store").check_writable()


def prepare_store(
    config: RunConfig,
    initial: InitialModel | None = None,
    task_options: "TaskOptions | None" = None,
    verify: bool = False,
) -> bool:
    """Prepare the token store if it is missing or damaged, or if its inputs changed.

    One process prepares it; other processes that need the same store wait. The tokenizer is that of the initial model
    or of tokenizer.path, or one trained on the training text.

    Args:
        config: of the run.
        initial: the initial or resumed model.
        task_options: prepare the store in tasks.
        verify: read the whole store even if this machine has verified it before.

    Returns:
        Whether the store is complete; False if Slurm makes it later.

    Raises:
        InputError: the text or the tokenizer cannot be used, or has changed since the run began.
    """
    source, folder = configs.text_source(config), store_folder(config)
    address = store_address(config)
    given = _given_tokenizer(config, initial)
    wanted = _wanted_tokenizer(config, given)
    if address is not None and task_options is not None:
        raise InputError(
            f"data.store is {address}; --tasks needs a folder on a shared disk: prepare there, and copy the folder to "
            "the address with gcloud storage cp -r"
        )

    def bring_up_to_date() -> bool:
        """Prepare the store if it must be, from its address if it has one; returns whether it is complete."""
        if address is None:
            return prepared()
        with _store_lock(folder, task_options):
            intact = store_copies.fetch(Remote(address), folder)
        complete = prepared()
        store_copies.push(folder, Remote(address), intact)
        return complete

    def prepared() -> bool:
        """Prepare the store on this machine if it must be."""
        if _why_prepare(config, initial, source, wanted, verify) is None:
            return True
        store.check_replaceable(folder)  # before a tokenizer is trained
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _store_lock(folder, task_options):
            # another process may have prepared it meanwhile
            reason = _why_prepare(config, initial, source, wanted, verify=False)
            if reason is None:
                return True
            say(f"preparing {address or folder} ({reason})")
            if not _prepare(config, source, wanted, given, task_options):
                return False
            verified.remember(folder)
            _tell_splits(folder, load_tokenizer(folder))
            return True

    place = address or folder
    complete = hosts.after_first(
        shared(place).parent, bring_up_to_date, f"waiting for {place}, which the first process is preparing"
    )
    if address is not None and not hosts.is_first():
        with _store_lock(folder, task_options):
            store_copies.need(Remote(address), folder)
    return complete


def _prepare(
    config: RunConfig,
    source: TextSource,
    wanted: dict[str, Any],
    given: Tokenizer | None,
    task_options: "TaskOptions | None",
) -> bool:
    folder = store_folder(config)
    if task_options is not None:
        from . import distributed_preparation  # needs an extra

        return distributed_preparation.prepare(
            folder, source, wanted, lambda: given or _train_tokenizer(source, wanted), task_options
        )
    workers = config.data.workers or os.cpu_count() or 1
    tokenizer = given or _train_tokenizer(source, wanted)
    with _SplitBars(source) as bars:
        store.prepare(folder, source, tokenizer, wanted, workers, bars)
    return True


@contextlib.contextmanager
def _store_lock(folder: Path, task_options: "TaskOptions | None") -> Iterator[None]:
    """Lock the store against preparation by other processes. For Slurm, the last job takes the lock instead."""
    if task_options is not None and task_options.slurm is not None:
        yield
        return
    path = folder.with_name(f".{folder.name}.lock")
    with locks.lock(path, lambda holder: say(f"waiting for {folder}, which {holder} is preparing")) as held:
        if held:  # without a lock, another process may be preparing the store
            store.remove_leftovers(folder)
        yield


def _why_prepare(
    config: RunConfig, initial: InitialModel | None, source: TextSource, wanted: dict[str, Any], verify: bool
) -> str | None:
    """The reason why the store must be prepared, in one phrase; None if it is up to date.

    Raises:
        InputError: its inputs changed after the run began; or it is damaged and its text is missing.
    """
    folder = store_folder(config)
    damage = verified.fault(folder, verify) if (folder / "meta.json").exists() else None
    try:
        reason = store.stale_reason(folder, source, wanted)
    except InputError as error:
        raise InputError(f"{folder}: {damage}, and cannot be prepared again: {error}") if damage else error from None
    has_begun = initial is not None and initial.is_resumed and (folder / "meta.json").exists()
    if reason is not None and has_begun:
        raise InputError(
            f"{reason} since this run began at {config.out}, or another run replaced {folder}; if the text and the "
            "settings are still the same, remove that folder, and the run makes it again; otherwise start a new run "
            "with another out"
        )
    return reason or (damage and f"damaged: {damage}")


def open_store(config: RunConfig, tokenizer: Tokenizer, initial: InitialModel | None) -> dict[str, Split]:
    """Open the splits of the run's store, by name; warn if the tokenizer does not suit the text.

    Args:
        config: of the run.
        tokenizer: the run's tokenizer, loaded after the store was prepared.
        initial: the initial or resumed model.

    Raises:
        InputError: the store is damaged, or another run has replaced it by one of another text or tokenizer.
    """
    folder = store_folder(config)
    splits = {name: store.open_split(folder, name) for name in store.split_names(folder)}
    wanted = _wanted_tokenizer(config, _given_tokenizer(config, initial))
    changed = store.stale_reason(folder, configs.text_source(config), wanted)
    if changed or store.made_with(folder) != store.tokenizer_hash(tokenizer):
        reason = changed or "tokenizer changed"
        raise InputError(f"{folder}: another run has replaced this store ({reason}); give each run its own data.store")
    for problem in find_problems(splits, tokenizer):
        warn(problem)
    return splits


class _SplitBars(contextlib.ExitStack):
    """The progress of one split after another, as `store.prepare` tells it."""

    def __init__(self, source: TextSource) -> None:
        super().__init__()
        self.source, self.files, self.split = source, source.files(), ""

    def __call__(self, split: str, size: float) -> None:
        if split != self.split:
            self.close()
            total = _bytes_of(self.source.files_of(split, self.files))
            self.split, self.bar = split, self.enter_context(Bar(f"tokenizing {split}", total, "bytes"))
        self.bar.advance(size)


def _bytes_of(files: Iterable[File]) -> int:
    return sum(stamp(path)[0] for path in files)


def _tell_splits(folder: Path, tokenizer: Tokenizer) -> None:
    """Log the size of each split, and its share of unknown tokens."""
    unknown = unknown_token(tokenizer)
    for name in store.split_names(folder):
        split = store.open_split(folder, name)
        documents = (
            f"{len(split.documents) - 1:,} documents ({one_sentence_share(split.documents):.0%} of one sentence)"
        )
        share = "" if unknown is None else f", {unknown}: {100 * unknown_share(split, tokenizer):.2g} % of tokens"
        say(f"{name}: {documents}, {len(split.sentences) - 1:,} sentences, {len(split.tokens):,} tokens{share}")


def warn_of_tokenizer(config: RunConfig) -> None:
    """Warn if the tokenizer does not suit the text, in vocabulary or case. The store must be complete."""
    folder = store_folder(config)
    splits = {name: store.open_split(folder, name) for name in store.split_names(folder)}
    for problem in find_problems(splits, load_tokenizer(folder)):
        warn(problem)


def expected_vocab_size(config: RunConfig, initial: InitialModel | None = None) -> int:
    """The vocabulary size of the run's tokenizer; its upper bound if the tokenizer is yet to be trained."""
    given = _given_tokenizer(config, initial)
    return vocabulary_size(given) if given else _wanted_tokenizer(config, None)["vocab_size"]


def _given_tokenizer(config: RunConfig, initial: InitialModel | None) -> Tokenizer | None:
    if initial is not None:
        return initial.tokenizer
    if config.tokenizer.path is None:
        return None
    tokenizer = load_tokenizer(config.tokenizer.path, cleanup=config.tokenizer.cleanup)
    for token in BERT_SPECIAL if architecture(config) == "bert" else ():
        special_id(tokenizer, token)
    return tokenizer


def architecture(config: RunConfig) -> str:
    """The architecture of a new model, bert or gpt, from `model.architecture` or the preset."""
    preset = bertgpt.presets.get(config.model.preset) if config.model.preset else None
    return config.model.architecture or (preset.architecture if preset else "bert")


def _wanted_tokenizer(config: RunConfig, given: Tokenizer | None) -> dict[str, Any]:
    """JSON values that identify the tokenizer of the configuration."""
    if given is not None:
        return {"sha256": store.tokenizer_hash(given)}
    section = dataclasses.asdict(config.tokenizer)
    preset = bertgpt.presets.get(config.model.preset) if config.model.preset else None
    bert = architecture(config) == "bert"
    section["kind"] = section["kind"] or ("wordpiece" if bert else "bpe")
    if bert and section["kind"] == "bpe":
        raise InputError("tokenizer.kind bpe has no [MASK]; BERT needs wordpiece")
    if section["kind"] == "bpe" and not section["lowercase"]:
        raise InputError("tokenizer.lowercase=false is for wordpiece; GPT-1's bpe always lowercases")
    if section["cleanup"] is None:
        del section["cleanup"]  # as in stores that were made when there was no other
    elif section["kind"] != "bpe":
        raise InputError(f"tokenizer.cleanup={section['cleanup']} is for GPT-1's bpe; set tokenizer.cleanup=null")
    else:
        check_installed()  # before long work
    section["vocab_size"] = section["vocab_size"] or config.model.vocab_size or (preset.vocab_size if preset else 30522)
    return section


class _TrainingTexts(contextlib.ExitStack):
    """The training documents as texts; each iteration reads them again, since tokenizer training needs two passes."""

    def __init__(self, source: TextSource) -> None:
        super().__init__()
        self.source, self.passes = source, 0
        self.size = _bytes_of(source.files_of("train", source.files()))

    def __iter__(self) -> Iterator[str]:
        self.passes += 1
        counted = "characters" if self.passes == 1 else "words"
        with Bar(f"tokenizer: counting {counted}", self.size, "bytes") as bar:
            for document in self.source.documents("train", read=bar.advance):
                yield "\n".join(document)
        if self.passes == 2:
            self.enter_context(Bar("tokenizer: merging pieces", None, "pieces"))


def _train_tokenizer(source: TextSource, wanted: dict[str, Any]) -> Tokenizer:
    say(f"training a {wanted['kind']} tokenizer of {wanted['vocab_size']:,} tokens")
    with ctrl_c_ends_at_once(), _TrainingTexts(source) as texts:
        if wanted["kind"] == "bpe":
            return train_bpe(texts, wanted["vocab_size"], wanted.get("cleanup"))
        return train_wordpiece(texts, wanted["vocab_size"], wanted["lowercase"])


@contextlib.contextmanager
def ctrl_c_ends_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process immediately, for long calls of Rust code that ignore signals and write nothing.

    If Ctrl-C has another handler, such as none in a background job of a shell, it is kept.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
