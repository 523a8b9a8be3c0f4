"""Limits on tokenizer files, which are untrusted: the library would allocate memory for them without limit."""

import base64
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bertgpt.errors import InputError, check_regular
from bertgpt.json_files import MAX_VALUES

MAX_FILE = 1 << 26  # bytes of a tokenizer's file
MAX_LINES = MAX_VALUES // 2  # of a vocabulary or of merges; in JSON a token has a comma and a colon
MAX_IDS = 1 << 24  # the library makes lists as long as the highest id
FEW_IDS = 100_000  # lists of this length are cheap, whatever gaps the ids have
HOLES = 8  # maximum ids per token in a larger vocabulary
MAX_TOKEN = 4096  # bytes of an added token, or of a Unigram piece: each byte becomes a state of an automaton
MAX_ADDED = 1 << 22  # bytes of all added tokens
MAX_STEPS = 128  # steps of one section
MAX_GROWTH = 1 << 14  # how many times longer a section may make a text; ALBERT's reaches 6,500 by this count
SECTIONS = (("normalizer", "pre_tokenizer"), ("decoder",), ("post_processor",))
GROWTH = {  # maximum bytes that a step makes of one byte, from Unicode's longest cases; other steps add none
    "BertNormalizer": 5,
    "BPEDecoder": 2,
    "ByteLevel": 2,
    "CTC": 2,
    "Lowercase": 2,
    "Metaspace": 4,
    "NFC": 3,
    "NFD": 3,
    "NFKC": 11,
    "NFKD": 11,
    "WordPiece": 2,
}


def is_file(file: Path) -> bool:
    """Whether the file exists.

    Raises:
        InputError: the path is a folder, a pipe, a device or a broken link, or the file is a git-lfs pointer.
    """
    if file.is_file():
        check_regular(file)
        return True
    if file.exists() or file.is_symlink():
        raise InputError(f"{file}: not a regular file")
    return False


def read_text(file: Path) -> str:
    """The text of a tokenizer's file.

    Raises:
        InputError: the file is too large, or not UTF-8 text.
    """
    if file.stat().st_size > MAX_FILE:
        raise InputError(f"{file}: over {MAX_FILE} bytes; not a tokenizer")
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not a tokenizer: {error}") from error
    if "\0" in text:
        raise InputError(f"{file}: not a tokenizer: contains a NUL character")
    return text


def check_text(file: Path) -> None:
    """Checks the size and the encoding of a file.

    Raises:
        InputError: as `read_text`.
    """
    read_text(file)


def check_lines(file: Path, text: str) -> None:
    """Checks the number of lines; the library makes several maps of them.

    Raises:
        InputError: the file's text has more lines than any vocabulary.
    """
    if text.count("\n") > MAX_LINES:
        raise InputError(f"{file}: over {MAX_LINES} lines; not a tokenizer")


def check_ids(place: Any, vocabulary: dict[str, Any]) -> None:
    """Checks the ids of a vocabulary.

    Raises:
        InputError: an id is not an integer, is too high for the number of tokens, or belongs to two tokens.
    """
    limit = min(MAX_IDS, max(FEW_IDS, HOLES * len(vocabulary)))
    for token, index in vocabulary.items():
        if type(index) is not int or not 0 <= index < limit:
            raise InputError(f"{place}: {token!r:.80} has the id {index!r:.80}; it must be from 0 to {limit - 1}")
    _check_unique(place, vocabulary)


def check_added_tokens(place: Any, contents: Sequence[str]) -> None:
    """Checks the size of added tokens.

    Raises:
        InputError: a token, or all tokens together, are too long.
    """
    sizes = [len(content.encode(errors="replace")) for content in contents]
    if max(sizes, default=0) > MAX_TOKEN or sum(sizes) > MAX_ADDED:
        raise InputError(
            f"{place}: added tokens of up to {max(sizes)} bytes, {sum(sizes)} together; "
            f"the maximum is {MAX_TOKEN} and {MAX_ADDED}"
        )


def check_before(place: Any, description: dict[str, Any]) -> None:
    """Checks the parts of tokenizer.json for which the library allocates memory while it reads them.

    Parts of an unknown form are left to the library to reject.

    Raises:
        InputError: an id is too high, or a piece or an added token is too long.
    """
    model, added = description.get("model"), description.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        check_ids(place, vocabulary)
    elif isinstance(vocabulary, list):  # Unigram's pieces with their scores
        pieces = [entry[0] for entry in vocabulary if isinstance(entry, list) and entry and isinstance(entry[0], str)]
        if max(map(len, pieces), default=0) > MAX_TOKEN:
            raise InputError(f"{place}: a piece has over {MAX_TOKEN} characters")
    tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    check_added_tokens(place, [str(token.get("content")) for token in tokens])


def check_after(place: Any, tokenizer: Tokenizer) -> None:
    """Checks the parts for which encoding and decoding would allocate memory, as the library has parsed them.

    Raises:
        InputError: texts may grow too much, the post-processor gives an id without a token, or there are no tokens.
    """
    if not tokenizer.get_vocab_size():
        raise InputError(f"{place}: not a tokenizer: contains no tokens")
    description = json.loads(tokenizer.to_str())
    for names in SECTIONS:
        steps = [step for name in names for step in _steps(description[name])]
        if len(steps) > MAX_STEPS:
            raise InputError(f"{place}: {' and '.join(names)} of {len(steps)} steps; the maximum is {MAX_STEPS}")
        growth = math.prod(map(_growth, steps))
        if growth > MAX_GROWTH:
            raise InputError(
                f"{place}: {' and '.join(names)} may make a text {growth:.3g} times as long; the limit is {MAX_GROWTH}"
            )
    for step in _steps(description["post_processor"]):
        for index in _processor_ids(step):
            if tokenizer.id_to_token(index) is None:
                raise InputError(f"{place}: post_processor gives the id {index}, which no token has")


def check_numbering(place: Any, tokenizer: Tokenizer, declared: dict[int, str]) -> None:
    """Checks the ids of added tokens. The library numbers them itself, whatever ids their file gives them.

    Args:
        place: named in errors.
        tokenizer: the tokenizer with the added tokens.
        declared: the added tokens by the ids that the file gives them.

    Raises:
        InputError: a token has another id than the file gives it, or an id belongs to two tokens.
    """
    for index, content in declared.items():
        found = tokenizer.token_to_id(content)
        if found != index:
            raise InputError(
                f"{place}: added token {content!r:.80} has the id {index}, expected {found}; the id of an added "
                "token must be its id in the vocabulary, or the next id that no token before it has"
            )
    _check_unique(place, tokenizer.get_vocab())


def _check_unique(place: Any, vocabulary: dict[str, int]) -> None:
    if len(set(vocabulary.values())) < len(vocabulary):
        index = Counter(vocabulary.values()).most_common(1)[0][0]
        first, second = sorted(token for token, other in vocabulary.items() if other == index)[:2]
        raise InputError(f"{place}: {first!r:.80} and {second!r:.80} both have the id {index}")


def _steps(value: Any) -> Iterator[dict[str, Any]]:
    """The steps of a section, however they are nested."""
    if isinstance(value, dict) and value["type"] == "Sequence":
        (parts,) = (part for part in value.values() if isinstance(part, list))
        for part in parts:
            yield from _steps(part)
    elif value is not None:
        yield value


def _growth(step: dict[str, Any]) -> float:
    """The maximum bytes that a step makes of one byte; for a post-processor, tokens of one token."""
    kind = step["type"]
    if kind == "Replace":
        old, new = len(step["pattern"].get("String", "").encode()), len(step["content"].encode())
        return max(1, new / old) if old else 1 + new  # a regular expression may match between any two characters
    if kind == "Prepend":
        return 1 + len(step["prepend"].encode())
    if kind == "Precompiled":  # the size of a trie, the trie, and its replacements, separated by NUL
        charsmap = base64.b64decode(step["precompiled_charsmap"])
        replacements = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
        return max(1, *map(len, replacements.split(b"\0")))
    if kind == "TemplateProcessing":
        return max(1, len(step["single"]) + len(step["pair"])) * max(1, len(_processor_ids(step)))
    return GROWTH.get(kind, 1)


def _processor_ids(step: dict[str, Any]) -> list[int]:
    """The ids that a post-processor adds."""
    if step["type"] == "TemplateProcessing":
        return [index for token in step["special_tokens"].values() for index in token["ids"]]
    return [step[key][1] for key in ("sep", "cls") if key in step]
