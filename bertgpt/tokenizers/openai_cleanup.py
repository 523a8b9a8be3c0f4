"""GPT-1's own clean-up of text, as in OpenAI's released code (the extra `gpt1`: ftfy and spaCy).

`text_utils.py` of openai/finetune-transformer-lm repairs a text with ftfy, sets some marks apart, splits the text into
words with spaCy's English tokenizer, and lower-cases them. It loads a spaCy model, but only the model's tokenizer
changes the words, and that is the English language's own. The words depend on the versions of both packages.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Encoding, Tokenizer

from bertgpt.errors import InputError
from bertgpt.tokenizers.kinds import is_gpts

OPENAI = "openai"
KEY = "cleanup"  # in the normalizer of tokenizer.json; other libraries ignore it and see BERT's clean-up
PACKAGES = ("ftfy", "spacy")
MARKS = re.compile(r'([-~!";?+,)(/*\[\]}{|_])\1*')  # no backslash: the released expression escapes the one it has
SPACES = re.compile(r"\s+")
ASCII = {0x2014: "-", 0x2013: "-", 0x2015: "-", 0x2026: "...", 0xB4: "'"}  # three dashes, ellipsis, acute accent
LONGEST = 1000  # characters without white space; the packages' time grows with the square of their number
TOO_LONG = re.compile(rf"\S{{{LONGEST}}}(?=\S)")
MOST_LEXEMES = 200_000  # that spaCy remembers, in about 100 MB; it never forgets a word
PROBE = (
    "“It\u2019s 1984…” said the FranÃ§ois\u2019s cafÃ©—don't e-mail me@example.com, U.S. or (see http://a.org/b?c=1)!\n"
    "They'd've cost $5.00/kg in 1990. &lt;unk&gt; I'm gonna, can't; 10am—3pm :-) naïve ﬁnance № 7. 我们 ½"
)


class CleaningTokenizer:
    """A tokenizer of GPT-1 that cleans each text as OpenAI's code does, and then looks up the pieces of its words.

    Everything except encoding and writing is that of the inner `tokenizers.Tokenizer`. A line break is a word. Special
    tokens spelled out in a text are read as text, as in the released code. Offsets are in the cleaned words.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """
        Args:
            tokenizer: of GPT-1, with BERT's clean-up; it is copied.
        """
        description = json.loads(tokenizer.to_str())
        inner = Tokenizer.from_str(json.dumps(description | {"normalizer": None, "pre_tokenizer": None}))
        inner.encode_special_tokens = True
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_usual", {key: description[key] for key in ("normalizer", "pre_tokenizer")})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def __reduce__(self) -> tuple[Callable[[str], Tokenizer], tuple[str]]:
        return tokenizer_from_str, (self.to_str(),)

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        """The pieces of a text."""
        return self._inner.encode(clean_words(text), is_pretokenized=True, add_special_tokens=add_special_tokens)

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Encoding]:
        """The pieces of each text."""
        return self._encode_all(self._inner.encode_batch, texts, add_special_tokens)

    def encode_batch_fast(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Encoding]:
        """The pieces of each text, without offsets."""
        return self._encode_all(self._inner.encode_batch_fast, texts, add_special_tokens)

    def _encode_all(self, encode: Callable, texts: Sequence[str], add_special_tokens: bool) -> list[Encoding]:
        words = [clean_words(text) for text in texts]
        return encode(words, is_pretokenized=True, add_special_tokens=add_special_tokens)

    def to_str(self, pretty: bool = False) -> str:
        """The text of tokenizer.json. Its normalizer has the key "cleanup", which other libraries ignore."""
        description = json.loads(self._inner.to_str()) | self._usual
        description["normalizer"] = {**description["normalizer"], KEY: OPENAI}
        layout: dict[str, Any] = {"indent": 2} if pretty else {"separators": (",", ":")}
        return json.dumps(description, ensure_ascii=False, **layout)

    def save(self, path: str, pretty: bool = True) -> None:
        """Writes tokenizer.json."""
        Path(path).write_text(self.to_str(pretty), encoding="utf-8")


def with_cleanup(tokenizer: Tokenizer, cleanup: Any, place: Any) -> Tokenizer:
    """The tokenizer with a clean-up.

    Args:
        tokenizer: any.
        cleanup: "openai", or None: the tokenizer as it is.
        place: the file or key that the tokenizer is from, for errors.

    Raises:
        InputError: the clean-up is unknown, needs a package that is not installed, or is not for this tokenizer.
    """
    if cleanup is None:
        return tokenizer
    if cleanup != OPENAI:
        raise InputError(f"{place}: the clean-up {cleanup!r:.80} is unknown; it must be {OPENAI} or null")
    check_installed()
    if isinstance(tokenizer, CleaningTokenizer):
        return tokenizer
    if not is_gpts(json.loads(tokenizer.to_str())):
        raise InputError(
            f"{place}: the clean-up {OPENAI} is for GPT-1's tokenizer (BPE with </w>, <unk> and BERT's clean-up), and "
            "this one is another; leave the clean-up out"
        )
    return cast(Tokenizer, CleaningTokenizer(tokenizer))


def named_cleanup(description: dict[str, Any]) -> Any:
    """The clean-up that a tokenizer.json names; None if it names none."""
    normalizer = description.get("normalizer")
    return normalizer.get(KEY) if isinstance(normalizer, dict) else None


def tokenizer_from_str(text: str) -> Tokenizer:
    """The tokenizer from the text that its `to_str` gave, with its clean-up. For files of others: `parse_tokenizer`.

    Raises:
        InputError: its clean-up needs a package that is not installed.
    """
    return with_cleanup(Tokenizer.from_str(text), named_cleanup(json.loads(text)), "tokenizer.json")


def check_installed() -> None:
    """Checks that the packages are there, without importing them.

    Raises:
        InputError: one is not.
    """
    if _missing():
        raise InputError(_advice(f"{' and '.join(_missing())} not found"))


def _missing() -> list[str]:
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def cleanup_identity(tokenizer: Tokenizer) -> dict[str, str] | None:
    """What decides the words of a tokenizer with OpenAI's clean-up, besides its text; None for other tokenizers.

    Its name, the versions of the packages, and a hash of the words of a fixed text.
    """
    return installed_cleanup() if isinstance(tokenizer, CleaningTokenizer) else None


@functools.cache
def installed_cleanup() -> dict[str, str] | None:
    """What decides the words of the clean-up with the packages that are installed; None if one is not."""
    if _missing():
        return None
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    words = "\0".join(clean_words(PROBE))
    return {"name": OPENAI, **versions, "words": hashlib.blake2b(words.encode(), digest_size=16).hexdigest()}


def clean_words(text: str) -> list[str]:
    """The words of a text, lower-cased; a line break is the word "\\n". No word has other white space, or is empty.

    They equal those of the released code, except that over LONGEST characters without white space become several words.

    Raises:
        InputError: ftfy or spaCy is not installed.
    """
    fix_text, split = _packages()
    if len(split.vocab) > MOST_LEXEMES:
        _packages.cache_clear()
        fix_text, split = _packages()
    text = fix_text(TOO_LONG.sub(r"\g<0> ", text)).translate(ASCII)
    text = SPACES.sub(lambda found: " \n " if "\n" in found[0] else " ", MARKS.sub(r" \g<0> ", text))
    words = (token.text.lower() for token in split(text.strip()))
    return ["\n" if word == "\n " else word for word in words]  # spaCy's word keeps the space after a line break


@functools.cache
def _packages() -> tuple[Callable[[str], str], Any]:
    """ftfy's function and spaCy's tokenizer. They take seconds to import."""
    try:
        import ftfy
        from spacy.lang.en import English
    except ImportError as error:
        raise InputError(_advice(str(error))) from error
    return ftfy.fix_text, English().tokenizer


def _advice(found: str) -> str:
    return f"OpenAI's clean-up of GPT-1 needs ftfy and spaCy ({found}); pip install 'bertgpt[gpt1]'"
