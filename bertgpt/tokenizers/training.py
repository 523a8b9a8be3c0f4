"""Trains tokenizers on text: counts characters to choose those that are kept, then merges pieces."""

import json
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from bertgpt.errors import InputError
from bertgpt.tokenizers.kinds import BERT_SPECIAL, GPT_SPECIAL, add_bert_template, bpe, wordpiece
from bertgpt.tokenizers.openai_cleanup import clean_words, with_cleanup

COVERED = 0.9995  # share of the text's characters that the alphabet should cover before pieces are merged
SMALL_ALPHABET = 256  # entries that the alphabet may fill in a vocabulary that is too small to give it half
BLOCK = 1 << 22  # characters counted at a time
CODES = 0x110000  # Unicode's code points
GONE, SPACE, ALONE, WORD = range(4)  # clean-up removes it; separates words; a word by itself; part of a word

Forms = dict[str, tuple[int, int]]  # a character -> how often it occurs plain, and with `##` before or `</w>` after it


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """A WordPiece tokenizer with BERT's clean-up, trained on texts; the id of [PAD] is 0.

    Merging starts from the most frequent characters: until they cover 99.95 % of the text, or fill half of the
    vocabulary (256 entries in a small one). Entries that merging leaves unused go to further characters.

    Args:
        texts: read twice, never all in memory: a list, or an object whose `__iter__` starts from the beginning.
        vocab_size: the maximum number of pieces, the five special ones included.
        lowercase: lower-case and strip accents, as the uncased models do.

    Raises:
        InputError: `texts` is an iterator, which can be read only once.
    """
    tokenizer = wordpiece(models.WordPiece(unk_token="[UNK]"), lowercase=lowercase)
    forms = _count_forms(_twice(texts), tokenizer, plain_last=False)
    kept = _alphabet(forms, vocab_size - len(BERT_SPECIAL))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=list(BERT_SPECIAL),
        initial_alphabet=kept,
        limit_alphabet=len(kept),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = _filled(tokenizer, forms, "##", "", vocab_size)
    tokenizer.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    add_bert_template(tokenizer)
    return tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int, cleanup: str | None = None) -> Tokenizer:
    """A lower-casing BPE tokenizer whose words end in `</w>`, trained on texts; the id of `<unk>` is 0.

    Other arguments, alphabet and errors are as in `train_wordpiece`.

    Args:
        texts: read twice.
        vocab_size: the maximum number of pieces.
        cleanup: "openai": the words are those of OpenAI's clean-up (`load_tokenizer`). None: BERT's.
    """
    tokenizer = bpe(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    usual = tokenizer.normalizer, tokenizer.pre_tokenizer
    texts = _twice(texts)
    if cleanup is not None:
        with_cleanup(tokenizer, cleanup, "cleanup")  # raises if it is unknown or not installed
        texts = _Cleaned(texts)
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Sequence([]), pre_tokenizers.Split(" ", "removed")
    forms = _count_forms(texts, tokenizer, plain_last=True)
    kept = _alphabet(forms, vocab_size - len(GPT_SPECIAL))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(GPT_SPECIAL),
        initial_alphabet=kept,
        limit_alphabet=len(kept),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = _filled(tokenizer, forms, "", "</w>", vocab_size)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokenizer.model = models.BPE(vocabulary, merges, unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer.normalizer, tokenizer.pre_tokenizer = usual
    return with_cleanup(tokenizer, cleanup, "cleanup")


class _Cleaned:
    """Texts as the words of OpenAI's clean-up, separated by spaces, which no word contains."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = texts

    def __iter__(self) -> Iterator[str]:
        return (" ".join(clean_words(text)) for text in self.texts)


def _twice(texts: Iterable[str]) -> Iterable[str]:
    if iter(texts) is texts:
        raise InputError("a tokenizer's texts are read twice; give a list, or an object whose __iter__ can run twice")
    return texts


def _count_forms(texts: Iterable[str], tokenizer: Tokenizer, plain_last: bool) -> Forms:
    """How often each cleaned character occurs in either form, in constant memory.

    BERT's clean-up works on single characters. So raw code points are counted, and each distinct one is cleaned once.

    Args:
        texts: read once.
        tokenizer: its clean-up decides what a character becomes, and where words end.
        plain_last: False: a word's first character is plain (WordPiece). True: all but its last are plain (BPE).
    """
    kinds, cleaned = np.full(CODES, GONE, np.uint8), dict[int, str]()
    edge, joined = np.zeros(CODES, np.int64), np.zeros(CODES, np.int64)
    for codes in _blocks(texts):
        for code in set(np.flatnonzero(np.bincount(codes)).tolist()) - cleaned.keys():
            kinds[code], cleaned[code] = _clean(chr(code), tokenizer)
        codes = codes[kinds[codes] != GONE]
        word = kinds[codes] == WORD
        beside = np.zeros(len(codes), bool)  # whether the word extends before (or after) the character
        (beside[:-1] if plain_last else beside[1:])[:] = word[1:] & word[:-1]
        edge += np.bincount(codes[~beside], minlength=CODES)
        joined += np.bincount(codes[beside], minlength=CODES)
    counts: dict[str, list[int]] = {}
    for code, text in cleaned.items():
        for place, character in enumerate(reversed(text) if plain_last else text):
            at_edge = int(edge[code]) if place == 0 else 0  # further characters of a code point are within
            count = counts.setdefault(character, [0, 0])
            count[0] += at_edge
            count[1] += int(edge[code] + joined[code]) - at_edge
    return {key: (within, at_edge) if plain_last else (at_edge, within) for key, (at_edge, within) in counts.items()}


def _blocks(texts: Iterable[str]) -> Iterator[np.ndarray]:
    """The code points of the texts, separated by spaces, in blocks of at least BLOCK (the last may be shorter)."""
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= BLOCK:
            yield np.frombuffer(" ".join(block).encode("utf-32-le"), np.int32)
            block, size = [], 0
    yield np.frombuffer(" ".join(block).encode("utf-32-le"), np.int32)


def _clean(character: str, tokenizer: Tokenizer) -> tuple[int, str]:
    """How clean-up changes a character within a word: its kind, and the characters that replace it."""
    text = tokenizer.normalizer.normalize_str(f"a{character}a")
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    if len(pieces) == 1:
        return (WORD if len(pieces[0]) > 2 else GONE), pieces[0][1:-1]
    return (ALONE if len(pieces) > 2 else SPACE), "".join(pieces[1:-1])


def _alphabet(forms: Forms, places: int) -> list[str]:
    """The characters that merging starts from, by descending frequency; ties are ordered by code point."""
    room = max(places // 2, min(places, SMALL_ALPHABET))
    wanted = COVERED * sum(map(sum, forms.values()))
    kept: list[str] = []
    for character in sorted(forms, key=lambda character: (-sum(forms[character]), character)):
        room -= 1 + (forms[character][1] > 0)  # the trainer always includes the plain form
        if wanted <= 0 or room < 0:
            break
        wanted -= sum(forms[character])
        kept.append(character)
    return kept


def _filled(tokenizer: Tokenizer, forms: Forms, prefix: str, suffix: str, vocab_size: int) -> dict[str, int]:
    """The vocabulary, with its unused ids given to forms of further characters, the most frequent first."""
    vocabulary = tokenizer.get_vocab()
    counts = {character: plain for character, (plain, _) in forms.items() if plain}
    counts |= {f"{prefix}{character}{suffix}": other for character, (_, other) in forms.items() if other}
    further = sorted(counts.keys() - vocabulary.keys(), key=lambda piece: (-counts[piece], piece))
    free = range(len(vocabulary), vocab_size)
    return vocabulary | dict(zip(further, free, strict=False))
