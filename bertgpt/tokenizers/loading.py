"""Loads tokenizers from files and folders, in the formats of Hugging Face and OpenAI."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer, models, normalizers

from bertgpt import hub
from bertgpt.errors import InputError
from bertgpt.json_files import MAX_VALUES, has_over, read_json_object
from bertgpt.tokenizers.added import (
    ADDED,
    BERT_ROLES,
    SPECIAL_MAP,
    Added,
    add_tokens,
    check_roles,
    read_added,
    with_roles,
)
from bertgpt.tokenizers.case import GOOGLE_CONFIG, is_lowercased
from bertgpt.tokenizers.checks import (
    check_after,
    check_before,
    check_ids,
    check_lines,
    check_numbering,
    check_text,
    is_file,
    read_text,
)
from bertgpt.tokenizers.classes import CONFIG, Reader, check_reader, find_reader, read_settings
from bertgpt.tokenizers.kinds import BERT_SPECIAL, add_bert_template, bpe, wordpiece
from bertgpt.tokenizers.openai_cleanup import CleaningTokenizer, named_cleanup, with_cleanup

MERGES = {"vocab.json": "merges.txt", "encoder_bpe_40000.json": "vocab_40000.bpe"}  # Hugging Face's names, OpenAI's
TOKENIZER_FILES = ("tokenizer.json", CONFIG, SPECIAL_MAP, ADDED, "vocab.txt", "vocab.json", "merges.txt")
VOCABULARIES = (*MERGES.values(), *MERGES, "vocab.txt", "tokenizer.json")

Made = TypeVar("Made")


def load_tokenizer(path: str | Path, revision: str | None = None, cleanup: str | None = None) -> Tokenizer:
    """The tokenizer in a file or folder, or of a model on the Hugging Face hub.

    The file, or a file in the folder, is `tokenizer.json`, `vocab.txt`, `vocab.json` with `merges.txt` next to it, or
    OpenAI's `encoder_bpe_40000.json` with `vocab_40000.bpe` next to it.

    BERT's `tokenizer_config.json` next to the file decides lower case, Chinese characters and accents; settings that it
    lacks have Hugging Face's defaults. A `vocab.txt` without a config is lower-cased. In a folder of Google's BERT
    (`bert_config.json`, and no `config.json`) the vocabulary decides this, with a warning where it is a guess. If no
    file names the tokenizer's class, only settings that the config contains override tokenizer.json. Tokens added by
    `tokenizer_config.json`, `special_tokens_map.json` or `added_tokens.json` have the ids that transformers gives them.

    Args:
        path: a file or folder. If it does not exist, the name of a model on the hub, such as
            "google-bert/bert-base-uncased": its tokenizer files are downloaded to the cache of huggingface_hub.
        revision: a branch, tag or commit of a named model; None: main.
        cleanup: "openai": GPT-1's tokenizer cleans text as OpenAI's released code does, with ftfy and spaCy (the extra
            `gpt1`). None: what tokenizer.json says, and by default BERT's clean-up, as in transformers.

    Raises:
        InputError: there is no tokenizer, its file cannot be used, it would encode differently from transformers,
            BERT's special tokens have other names, or the clean-up is not for it or not installed.
    """
    path = _find(path, revision)
    return with_cleanup(_load(path), cleanup, path)


def _load(path: Path) -> Tokenizer:
    folder = path if path.is_dir() else path.parent
    config = read_json_object(folder / CONFIG) if is_file(folder / CONFIG) else None
    reader = find_reader(folder, config or {})
    file = _find_vocabulary(path, reader)
    check_reader(reader, file, "bert" if file.name == "vocab.txt" else "gpt" if file.name in MERGES else None)
    added = read_added(folder, config or {})
    if file.name == "vocab.txt":
        if config is None and is_file(folder / GOOGLE_CONFIG) and not is_file(folder / "config.json"):
            config = {"do_lower_case": is_lowercased(file, read_text(file).split())}
        return _from_vocab_txt(file, read_settings(folder / CONFIG, config or {}, bert=True), added)
    if file.name in MERGES:
        return _from_merges(file, added)
    tokenizer = parse_tokenizer(read_text(file), file)
    if config is not None and reader.family in (None, "bert"):
        _apply_settings(tokenizer, read_settings(folder / CONFIG, config, bert=reader.family == "bert"))
    return _with_added(tokenizer, file, added, reader.family == "bert")


def parse_tokenizer(text: str, place: Any) -> Tokenizer:
    """A tokenizer from the text of a tokenizer.json, without padding and truncation, which this library does itself.

    Args:
        text: from any source; it may be untrusted.
        place: named in errors.

    Raises:
        InputError: the text is not a tokenizer, would need too much memory, or names a clean-up that cannot be used.
    """
    if has_over(text, MAX_VALUES):
        raise InputError(f"{place}: over {MAX_VALUES} commas, colons and brackets; not a tokenizer")
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON, so no tokenizer.json: {error}") from error
    if not isinstance(description, dict):
        raise InputError(f"{place}: not a tokenizer: not a JSON object")
    check_before(place, description)
    description |= {"padding": None, "truncation": None}
    # Not from the original text: if it has a key twice, the library might read the value that was not checked.
    tokenizer = _guarded(place, lambda: Tokenizer.from_str(json.dumps(description)))
    check_after(place, tokenizer)
    added = description.get("added_tokens") or []
    check_numbering(place, tokenizer, {token["id"]: token["content"] for token in added})
    return with_cleanup(tokenizer, named_cleanup(description), place)


def _find(path: str | Path, revision: str | None) -> Path:
    """The file or folder of a tokenizer, downloaded if it is named."""
    if Path(path).name in VOCABULARIES:  # a missing file is not looked up
        path = Path(path)
    return hub.find(path, revision, _fetch_tokenizer).folder


def _fetch_tokenizer(snapshot: hub.Snapshot) -> None:
    if snapshot.files.isdisjoint((*MERGES, "tokenizer.json", "vocab.txt")):
        raise snapshot.lacks("tokenizer.json, vocab.txt, or vocab.json with merges.txt")
    fetch_tokenizer_files(snapshot)


def fetch_tokenizer_files(snapshot: hub.Snapshot) -> None:
    """Fetch the files that `load_tokenizer` reads, those without which it cannot load the others last.

    Raises:
        InputError: a file cannot be downloaded.
    """
    vocabularies = ("tokenizer.json",) if "tokenizer.json" in snapshot.files else VOCABULARIES
    for name in ("config.json", CONFIG, SPECIAL_MAP, ADDED, *vocabularies):
        if name in snapshot.files:
            snapshot.fetch(name)


def _find_vocabulary(path: Path, reader: Reader) -> Path:
    vocabularies = (*MERGES, "vocab.txt") if reader.family == "gpt" else ("vocab.txt", *MERGES)
    names = ("tokenizer.json", *vocabularies) if path.is_dir() else (path.name,)
    for file in (path / name if path.is_dir() else path for name in names):
        if is_file(file):
            return file
    raise InputError(f"{path}: no tokenizer.json, vocab.txt, or vocab.json with merges.txt; add the model's tokenizer")


def _guarded(place: Any, make: Callable[[], Made]) -> Made:
    """The library's result from a file; its errors are raised as InputError with one line."""
    try:
        return make()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises Exception, or Rust's panic, which is not an Exception
        raise InputError(f"{place}: not a tokenizer: {error}") from error


def _apply_settings(tokenizer: Tokenizer, settings: dict[str, bool | None]) -> None:
    """Changes the tokenizer's BERT clean-up, if it has one, where the settings differ from it."""
    if isinstance(tokenizer, CleaningTokenizer):
        return
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    if normalizer.pop("type", None) == "BertNormalizer" and normalizer | settings != normalizer:
        tokenizer.normalizer = normalizers.BertNormalizer(**normalizer | settings)


def _with_added(tokenizer: Tokenizer, file: Path, added: Added, bert: bool) -> Tokenizer:
    """The tokenizer with the tokens that its folder adds, and those that BERT's classes always add."""
    check_roles(added, tokenizer, bert)
    if bert:
        special = {role: token for role, token in BERT_ROLES.items() if tokenizer.token_to_id(token) is not None}
        added = with_roles(added, special, file)
    add_tokens(tokenizer, added, file)
    return tokenizer


def _from_vocab_txt(file: Path, settings: dict[str, bool | None], added: Added) -> Tokenizer:
    text = read_text(file)
    check_lines(file, text)
    vocabulary = _guarded(file, lambda: models.WordPiece.read_file(str(file)))  # as transformers does
    check_ids(file, vocabulary)
    later = {token.content for token in added.numbered.values()}
    known = vocabulary.keys() | (later - {"[UNK]"})  # the model itself must contain [UNK]
    for token in BERT_SPECIAL:
        if token not in known:
            why = (
                "a byte order mark precedes its first line"
                if text.startswith("\ufeff")
                else "BERT needs it; give a BERT's vocabulary"
            )
            raise InputError(f"{file}: no {token}; {why}")
    tokenizer = wordpiece(models.WordPiece(vocabulary, unk_token="[UNK]"), **settings)
    tokenizer = _with_added(tokenizer, file, added, bert=True)
    add_bert_template(tokenizer)
    return tokenizer


def _from_merges(file: Path, added: Added) -> Tokenizer:
    merges = file.with_name(MERGES[file.name])
    if not is_file(merges):
        raise InputError(f"{file}: needs {merges.name} in the same folder")
    check_text(file)
    check_lines(merges, read_text(merges))
    vocabulary = read_json_object(file)
    check_ids(file, vocabulary)
    token, _ = added.named.get("unk_token", (None, file))
    unknown = token.content if token else "<unk>"
    if unknown not in vocabulary:
        raise InputError(f"{file}: no {unknown}, which GPT-1 needs for unknown characters")
    files = str(file), str(merges)
    model = _guarded(file, lambda: models.BPE.from_file(*files, unk_token=unknown, end_of_word_suffix="</w>"))
    tokenizer = bpe(model)
    add_tokens(tokenizer, with_roles(added, {"unk_token": unknown}, file), file)
    return tokenizer
