"""Words of Chinese text, which has no spaces between them: by rjieba, the Rust form of jieba (the extra `zh`).

jieba itself has had no release since 2020. rjieba is maintained and installs without a compiler. Its dictionary is part
of its compiled module, so its version names the dictionary; a hash of the words of a fixed text shows any change.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from bertgpt.errors import InputError

LANGUAGE = "zh"
# Languages without spaces between words (codes of sentencex). Only zh has a segmenter here.
WITHOUT_SPACES = ("zh", "ja", "th", "lo", "km", "my", "bo", "dz", "yue", "wuu", "gan", "zh-classical", "zh-yue")
PROBE = (
    "我们中出了一个叛徒。南京市长江大桥欢迎您,研究生命的起源。他来到网易杭研大厦,小明硕士毕业于中国科学院计算所,"
    "后在日本京都大学深造。乒乓球拍卖完了。结婚的和尚未结婚的都在买bert模型2024版。"
)


def check_language(language: str) -> None:
    """Checks that whole words are known in a language.

    Raises:
        InputError: it has no spaces between words, and no segmenter here.
    """
    if language in WITHOUT_SPACES and language != LANGUAGE:
        raise InputError(
            f"data.whole_word: text in data.language={language} has no spaces between words, and bertgpt has a "
            f"segmenter only for {LANGUAGE}; set data.whole_word=false"
        )


def identity() -> dict[str, Any] | None:
    """What decides where words end: name, version and the hash of the words of a fixed text. None if not installed."""
    if importlib.util.find_spec("rjieba") is None:
        return None
    words = "\n".join(cut(PROBE))
    digest = hashlib.blake2b(words.encode(), digest_size=16).hexdigest()
    return {"name": "rjieba", "version": importlib.metadata.version("rjieba"), "words": digest}


def cut(text: str) -> list[str]:
    """The words of a text, white space and punctuation included: joined, they are the text.

    Raises:
        InputError: the extra `zh` is not installed.
    """
    return _segmenter().cut(text)


@functools.cache
def _segmenter() -> Any:
    try:
        import rjieba
    except ModuleNotFoundError:
        raise InputError(
            f"data.whole_word with data.language={LANGUAGE} needs a segmenter; pip install 'bertgpt[zh]'"
        ) from None
    return rjieba.Jieba()  # one of its own, so that words that other code adds to the default one change nothing


def continuations(text: str, starts: Sequence[int]) -> np.ndarray:
    """Which tokens continue a word [N] bool: those that begin in the same word as the token before.

    Args:
        text: a sentence.
        starts: [N] where each of its tokens begins, in characters.
    """
    sizes = [len(word) for word in cut(text)]
    words = np.repeat(np.arange(len(sizes)), sizes)  # of each character
    of_tokens = words[np.minimum(starts, len(text) - 1)] if len(starts) else np.zeros(0, np.int64)
    return np.diff(of_tokens, prepend=-1) == 0
