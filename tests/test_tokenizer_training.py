"""Tokenizers learnt from text: clean-up, alphabet, pieces."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, trainers

from bertgpt import tokenizers
from bertgpt.data.text import store
from bertgpt.data.text.text_source import TextSource
from bertgpt.errors import InputError
from bertgpt.tokenizers import training
from bertgpt.tokenizers.kinds import bpe, wordpiece
from train.folders import token_store

WORDS = "the cat the café played 中文 playing plays I"
TRAINERS = {"wordpiece": tokenizers.train_wordpiece, "bpe": tokenizers.train_bpe}
CLEAN_UPS = {
    "uncased": {"lowercase": True},
    "cased": {"lowercase": False},
    "accents kept": {"lowercase": True, "strip_accents": False},
}


def pieces(tokenizer, text: str) -> list[str]:
    return tokenizer.encode(text, add_special_tokens=False).tokens


def unknown(tokenizer, texts: list[str]) -> float:
    """The share of unknown tokens."""
    tokens = [token for text in texts for token in pieces(tokenizer, text)]
    return sum(token in ("[UNK]", "<unk>") for token in tokens) / len(tokens)


def test_wordpiece_keeps_berts_special_tokens_first():
    tokenizer = tokenizers.train_wordpiece([WORDS], 60)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [tokenizer.id_to_token(index) for index in range(5)] == special
    assert [tokenizers.special_id(tokenizer, token) for token in special] == [0, 1, 2, 3, 4]


def test_wordpiece_lower_cases_strips_accents_and_parts_chinese():
    tokenizer = tokenizers.train_wordpiece([WORDS] * 3, 100)
    assert pieces(tokenizer, "CAFÉ, 中文") == ["cafe", "[UNK]", "中", "文"]


def test_wordpiece_marks_what_goes_on_a_word():
    tokenizer = tokenizers.train_wordpiece(["ab ba"], 9)  # no room for more than a, b, ##a, ##b
    assert pieces(tokenizer, "abb a") == ["a", "##b", "##b", "a"]
    assert tokenizer.decode(tokenizer.encode("abb a").ids) == "abb a"


def test_a_cased_wordpiece_keeps_case_and_accents():
    tokenizer = tokenizers.train_wordpiece(["Café Café cafe"] * 3, 100, lowercase=False)
    assert pieces(tokenizer, "Café cafe") == ["Café", "cafe"]


def test_wordpiece_frames_one_and_two_texts():
    encoding = tokenizers.train_wordpiece([WORDS] * 3, 100).encode("the cat", "the")
    assert encoding.tokens == ["[CLS]", "the", "cat", "[SEP]", "the", "[SEP]"]
    assert encoding.type_ids == [0, 0, 0, 0, 1, 1]


def test_bpe_ends_a_word_and_lower_cases():
    tokenizer = tokenizers.train_bpe(["Low lower low"] * 3, 100)
    assert pieces(tokenizer, "LOW Lower") == ["low</w>", "lower</w>"]
    assert tokenizer.decode(tokenizer.encode("LOW Lower").ids) == "low lower"


def test_bpe_reads_an_unknown_character_as_id_0():
    tokenizer = tokenizers.train_bpe(["low"], 100)
    assert tokenizer.encode("z").ids == [0]
    assert tokenizer.id_to_token(0) == "<unk>"


@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_training_keeps_to_the_size(train, documents):
    assert train(documents, 100).get_vocab_size() == 100
    letters = ["".join(map(chr, range(0x61, 0x7B)))] * 3  # more forms of characters than places
    assert train(letters, 20).get_vocab_size() == 20


@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_texts_that_can_be_read_only_once_are_refused(train):
    with pytest.raises(
        InputError, match="texts are read twice; give a list, or an object whose __iter__ can run twice"
    ):
        train((text for text in ["a b"]), 100)


class _Texts:
    """Texts without a length, as a corpus in files has none."""

    def __init__(self, texts):
        self.texts = texts

    def __iter__(self):
        yield from self.texts


@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_an_object_that_begins_anew_serves_as_texts(train, documents):
    assert train(_Texts(documents), 150).get_vocab_size() == 150


def in_words(text: str, cleaned, plain_last: bool) -> Counter:
    """Characters as they occur in words, from whole texts."""
    words = [word for word, _ in cleaned.pre_tokenizer.pre_tokenize_str(cleaned.normalizer.normalize_str(text))]
    edge = [word[-1] if plain_last else word[0] for word in words]
    within = "".join(word[:-1] if plain_last else word[1:] for word in words)
    return Counter({(character, True): n for character, n in Counter(edge).items()}) + Counter(
        {(character, False): n for character, n in Counter(within).items()}
    )


CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from(
    "aB 中,é\n\u0301\u0345\u200d각ﬁİ\u212b\U0001d15e"
)


@pytest.mark.parametrize("clean_up", CLEAN_UPS)
@given(texts=st.lists(st.text(CHARACTERS, max_size=20), max_size=4))
@settings(max_examples=20)
@example(texts=["각 ＡＢＣ, e\u0301e\u0301", "\u0301x", "don't 中a文\u0000\ufffd\u200b\tb"])
def test_characters_are_counted_as_clean_up_and_splitting_leave_them(texts, clean_up):
    cleaned = wordpiece(models.WordPiece(), **CLEAN_UPS[clean_up])
    for plain_last in (False, True):
        forms = training._count_forms(texts, cleaned, plain_last)
        found = Counter({(character, not plain_last): n for character, (n, _) in forms.items()})
        found = Counter({(character, plain_last): n for character, (_, n) in forms.items()}) + found
        assert found == sum((in_words(text, cleaned, plain_last) for text in texts), Counter())


def test_characters_are_counted_across_blocks(monkeypatch):
    cleaned = wordpiece(models.WordPiece(), lowercase=True)
    texts = ["ab é", "ba ", "", "c", "ab"]
    whole = training._count_forms(texts, cleaned, plain_last=False)
    assert whole == {"a": (2, 1), "b": (1, 2), "e": (1, 0), "c": (1, 0)}  # texts end words
    monkeypatch.setattr(training, "BLOCK", 3)
    assert training._count_forms(texts, cleaned, plain_last=False) == whole


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (1000, "bacd"),  # e is beyond 99.95 %
        (4, "ba"),  # two places each, none for c
        (1, ""),
        (0, ""),
    ],
)
def test_the_alphabet_is_the_most_frequent_characters(places, expected):
    forms = {"d": (10, 10), "c": (900, 0), "a": (900, 100), "e": (2, 0), "b": (3990, 4010)}
    assert training._alphabet(forms, places) == list(expected)


def test_the_alphabet_fills_at_most_half_of_the_vocabulary():
    forms = {chr(0x5000 - number): (5, 0) for number in range(3000)}
    assert training._alphabet(forms, 2000) == sorted(forms)[:1000]  # ties go by code point
    assert len(training._alphabet(forms, 300)) == training.SMALL_ALPHABET
    assert len(training._alphabet(dict.fromkeys(forms, (4, 1)), 2000)) == 500


@pytest.mark.parametrize(
    ("kind", "expected"), [("wordpiece", ["a", "x", "##y"]), ("bpe", ["a", "a</w>", "x", "y</w>"])]
)
def test_places_that_merging_leaves_go_to_the_most_frequent_forms(kind, expected, monkeypatch):
    monkeypatch.setattr(training, "COVERED", 0.5)
    special = 5 if kind == "wordpiece" else 1
    tokenizer = TRAINERS[kind](["a a a a a a a a", "xy xy xz"], special + len(expected))
    found = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)[special:]
    assert found == expected
    assert pieces(tokenizer, "a xy") == [expected[0] if kind == "wordpiece" else "a</w>", *expected[-2:]]
    assert unknown(tokenizer, ["xz"]) > 0


@pytest.fixture(scope="module")
def chinese() -> list[str]:
    """Texts over 4,374 characters: each once, and then by Zipf's law."""
    rng = np.random.default_rng(0)
    characters = np.array([chr(0x4E00 + number) for number in rng.permutation(4374)])
    weights = 1 / np.arange(1, 4375)
    drawn = np.concatenate([characters, rng.choice(characters, 100_000, p=weights / weights.sum())])
    return ["".join(part) for part in np.array_split(drawn, 500)]


def test_chinese_keeps_every_character_for_which_there_is_a_place(chinese):
    distinct = set("".join(chinese))
    before = wordpiece(models.WordPiece(unk_token="[UNK]"), lowercase=True)  # a quarter of the places, as it was
    trainer = trainers.WordPieceTrainer(vocab_size=8000, limit_alphabet=2000, show_progress=False)
    before.train_from_iterator(chinese, trainer)
    assert len(distinct - before.get_vocab().keys()) == 2374
    tokenizer = tokenizers.train_wordpiece(chinese, 8000)
    assert distinct <= tokenizer.get_vocab().keys()
    assert unknown(tokenizer, chinese) == 0
    small = tokenizers.train_wordpiece(chinese, 2005)
    assert len(distinct & small.get_vocab().keys()) == 2000
    assert 0.04 < unknown(small, chinese) < 0.12


def test_the_order_of_the_texts_changes_nothing(chinese):
    shuffled = random.Random(0).sample(chinese, len(chinese))
    vocabulary = tokenizers.train_wordpiece(chinese, 3000).get_vocab()  # no merges, whose ties the library breaks
    assert tokenizers.train_wordpiece(shuffled, 3000).get_vocab() == vocabulary
    cleaned = bpe(models.BPE())
    assert training._count_forms(chinese, cleaned, True) == training._count_forms(shuffled, cleaned, True)


def test_a_prepared_store_tells_how_much_is_unknown(tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("a b c d\n\na b e f g h i j\n")
    (tmp_path / "held_out.txt").write_text("a b\n")
    (tmp_path / "vocab.txt").write_text("\n".join([*tokenizers.BERT_SPECIAL, *"abcd"]))
    tokenizer = tokenizers.load_tokenizer(tmp_path / "vocab.txt")
    source = TextSource(str(tmp_path / "texts.txt"), str(tmp_path / "held_out.txt"))
    store.prepare(tmp_path / "store", source, tokenizer, {})
    token_store._tell_splits(tmp_path / "store", tokenizer)
    printed = capsys.readouterr().out
    assert "train: 2 documents (100% of one sentence), 2 sentences, 12 tokens, [UNK]: 50 % of tokens\n" in printed
    assert "eval: 1 documents (100% of one sentence), 1 sentences, 2 tokens, [UNK]: 0 % of tokens\n" in printed
