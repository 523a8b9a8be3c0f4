"""Ends a continuation at a text, such as a blank line: a check on the host after each token."""

import itertools
from collections.abc import Sequence

from tokenizers import Tokenizer

from bertgpt.errors import InputError


class StopStrings:
    """Finds the token that completes one of several strings.

    Args:
        strings: at least one, none of them empty.
        tokenizer: decodes ids. The text of special tokens counts too.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer) -> None:
        self.strings, self.tokenizer = strings, tokenizer
        longest = max(len(string.encode(errors="replace")) for string in strings)
        self.window = longest + 1  # a token may be one byte; the first one's text may depend on those before it

    def end_at(self, ids: Sequence[int]) -> bool:
        """Whether the last token of a text completes a string, which may begin in any token before it."""
        ids = list(ids[-self.window :])
        before, text = (self.tokenizer.decode(part, skip_special_tokens=False) for part in (ids[:-1], ids))
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False))
        old = sum(1 for _ in same)  # what was incomplete before, such as half a character, is new
        return any(string in text[max(0, old + 1 - len(string)) :] for string in self.strings)


def make_stop_strings(strings: str | Sequence[str], tokenizer: Tokenizer | None) -> StopStrings | None:
    """Check the arguments `stop_strings` and `tokenizer` of `generate`. Return None if there are no strings.

    Raises:
        InputError: a string is empty or not a string, or there is no tokenizer.
    """
    strings = [strings] if isinstance(strings, str) else list(strings)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise InputError(f"stop string {string!r:.80} must be a text of at least one character")
    if strings and tokenizer is None:
        raise InputError("stop_strings needs a tokenizer, such as tokenizer=bertgpt.load_tokenizer(folder)")
    return StopStrings(strings, tokenizer) if strings and tokenizer is not None else None
