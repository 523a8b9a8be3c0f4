"""Tokens added to a vocabulary by the files next to it, with the ids and properties that transformers gives them."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from bertgpt.errors import InputError
from bertgpt.json_files import read_json_object
from bertgpt.tokenizers.checks import check_added_tokens, check_numbering, is_file
from bertgpt.tokenizers.classes import CONFIG
from bertgpt.tokenizers.kinds import BERT_SPECIAL

SPECIAL_MAP, ADDED = "special_tokens_map.json", "added_tokens.json"
DECIMAL = re.compile("[0-9]{1,10}")  # an id; Python rejects numbers with thousands of digits
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BERT_ROLES = {f"{token[1:-1].lower()}_token": token for token in BERT_SPECIAL}


class Added(NamedTuple):
    """Added and special tokens, from the files next to a vocabulary.

    Attributes:
        file: the file with the ids of the added tokens.
        numbered: the added tokens by their ids.
        overrides: whether their properties override those in tokenizer.json.
        named: the tokens of roles such as "mask_token", each with the file that sets it. A token of None means that the
            file leaves the role empty.
        extra: further special tokens.
    """

    file: Path
    numbered: dict[int, AddedToken]
    overrides: bool
    named: dict[str, tuple[AddedToken | None, Path]]
    extra: list[AddedToken]


def read_added(folder: Path, config: dict[str, Any]) -> Added:
    """The added and special tokens of a folder, with the precedence of transformers.

    If tokenizer_config.json has `added_tokens_decoder`, the other files do not count. Otherwise
    special_tokens_map.json overrides the other keys of tokenizer_config.json, and added_tokens.json gives the ids.

    Args:
        folder: of the tokenizer.
        config: its tokenizer_config.json; empty if it has none.

    Raises:
        InputError: a file cannot be read, or a token in it is invalid.
    """
    file, map_file, added_file = folder / CONFIG, folder / SPECIAL_MAP, folder / ADDED
    named = _named(file, config)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if "added_tokens_decoder" in config:
        numbered = _decoder(file, config["added_tokens_decoder"])
        return _with_extra(Added(file, numbered, True, named, []), file, extra)
    special = read_json_object(map_file) if is_file(map_file) else {}
    named |= _named(map_file, special, special=True)
    added = _with_extra(Added(added_file, {}, False, named, []), file, extra)
    added = _with_extra(added, map_file, special.get("extra_special_tokens") or [], special=True)
    if is_file(added_file):
        added = added._replace(numbered=_legacy(added_file, _special(added)))
    # transformers reads these after added_tokens.json, so they do not make its tokens special.
    late = [] if extra else special.get("additional_special_tokens") or []
    return _with_extra(added, map_file, late, special=True)


def with_roles(added: Added, roles: dict[str, str], file: Path) -> Added:
    """The tokens, with those of a class for the roles that its folder does not set."""
    named = {role: (AddedToken(content, special=True), file) for role, content in roles.items()}
    return added._replace(named={**named, **added.named})


def check_roles(added: Added, tokenizer: Tokenizer, bert: bool) -> None:
    """Checks that BERT's special tokens have their usual names, because they are found by name.

    Args:
        added: the tokens of the tokenizer's folder.
        tokenizer: the folder's tokenizer.
        bert: whether its class is one of BERT's.

    Raises:
        InputError: a role that BERT needs has another token.
    """
    for role, name in BERT_ROLES.items():
        token, file = added.named.get(role, (None, None))
        if file and str(token and token.content) != name and (bert or tokenizer.token_to_id(name) is not None):
            found = repr(token.content) if token else "null"
            raise InputError(f"{file}: {role} is {found}; it must be {name!r}, here and in the tokenizer's other files")


def add_tokens(tokenizer: Tokenizer, added: Added, file: Path) -> None:
    """Adds the folder's tokens to the tokenizer, in place.

    Args:
        tokenizer: of the folder's vocabulary.
        added: the tokens of the folder.
        file: the vocabulary.

    Raises:
        InputError: a token would get another id than its file gives it, or would share its id with another token.
    """
    own = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    numbered = {token.content: token for _, token in sorted(added.numbered.items())}
    tokens = own | numbered if added.overrides else numbered | own
    roles = sorted(added.named, key=lambda role: ROLES.index(role) if role in ROLES else len(ROLES))
    named = [token for token, _ in map(added.named.__getitem__, roles) if token]
    for token in (*named, *added.extra):
        tokens.setdefault(token.content, token)
    for token in named:
        tokens[token.content].special = True
    check_added_tokens(file.parent, list(tokens))
    tokenizer.add_tokens(list(tokens.values()))
    place = added.file if added.numbered else file
    check_numbering(place, tokenizer, {index: token.content for index, token in added.numbered.items()})


def _special(added: Added) -> set[str]:
    return {token.content for token in (*(token for token, _ in added.named.values()), *added.extra) if token}


def _named(file: Path, values: dict[str, Any], **properties: bool) -> dict[str, tuple[AddedToken | None, Path]]:
    """The tokens of the roles in a file: the roles of every class, and all other keys that end in _token."""
    known = {key: value for key, value in values.items() if key in ROLES or _is_own_role(key, value)}
    return {
        key: (None if value is None else _token(file, key, value, **properties), file) for key, value in known.items()
    }


def _is_own_role(key: str, value: Any) -> bool:
    return key.endswith("_token") and isinstance(value, str | dict)


def _with_extra(added: Added, file: Path, extra: Any, **properties: bool) -> Added:
    """The tokens, with further special tokens: a list, or an object whose keys are additional roles."""
    key = "extra_special_tokens"
    if isinstance(extra, dict):
        roles = {role: (_token(file, key, value, **properties), file) for role, value in extra.items()}
        return added._replace(named=added.named | roles)
    if not isinstance(extra, list):
        raise InputError(f"{file}: {key} is {extra!r:.80}; it must be a list of tokens")
    return added._replace(extra=[*added.extra, *(_token(file, key, value, **properties) for value in extra)])


def _decoder(file: Path, values: Any) -> dict[int, AddedToken]:
    """`added_tokens_decoder`: tokens with their properties, by ids in decimal."""
    key = "added_tokens_decoder"
    if not isinstance(values, dict) or not all(DECIMAL.fullmatch(index) for index in values):
        raise InputError(f"{file}: {key} is {values!r:.80}; it must be an object from ids to tokens")
    return {int(index): _token(file, key, value) for index, value in values.items()}


def _legacy(file: Path, special: set[str]) -> dict[int, AddedToken]:
    """added_tokens.json: ids by tokens. Tokens that are not special match normalized text."""
    numbered: dict[int, AddedToken] = {}
    for content, index in read_json_object(file).items():
        if type(index) is not int or index in numbered:
            raise InputError(f"{file}: {content!r:.80} has the id {index!r:.80}; it must be a unique integer")
        flags = {"normalized": content not in special, "special": content in special}
        numbered[index] = _token(file, "a token", {"content": content} | flags)
    return numbered


def _token(file: Path, key: str, value: Any, **properties: bool) -> AddedToken:
    """A token, from its text (then it is special) or from an object with its text and properties."""
    fields = value if isinstance(value, dict) else {"content": value, "special": True}
    content, flags = fields.get("content"), {flag: fields[flag] for flag in FLAGS if flag in fields} | properties
    if not isinstance(content, str) or not content or not all(isinstance(flag, bool) for flag in flags.values()):
        raise InputError(f"{file}: {key} has {value!r:.80}, which is not a token")
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise InputError(f"{file}: {key} has {content!r:.80}, an unpaired surrogate; remove it")
    return AddedToken(content, **flags)
