"""Whole words in Chinese: bounds from a segmenter, kept as bits, and masked together."""

import importlib.util
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bertgpt.data.pretraining.masking import MaskRule
from bertgpt.data.pretraining.pair_plans import from_records
from bertgpt.data.pretraining.sentence_pairs import BertPairs
from bertgpt.data.pretraining.sentence_runs import SentenceRuns
from bertgpt.data.text import bits, segmenter, store
from bertgpt.data.text.text_source import TextSource
from bertgpt.errors import InputError
from bertgpt.tokenizers import load_tokenizer, train_wordpiece
from train import config as configs
from train.jobs import pretraining

needs_zh = pytest.mark.skipif(importlib.util.find_spec("rjieba") is None, reason="the extra `zh` is absent")
SENTENCES = ["我们喜欢北京大学。", "他在playing乒乓球!", "研究生命的起源很有意思。", "今天天气不错,我们去公园。"]
TEXT = "\n\n".join(f"第{n}页。" + "".join(SENTENCES[n % 4 :] + SENTENCES[: n % 4]) for n in range(60))


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([TEXT], 120)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("zh") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return TextSource(str(path), eval_fraction=0.2, language="zh", segmented=True)


@pytest.fixture(scope="module")
def folder(source, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zh_store") / "store"
    store.prepare(folder, source, tokenizer, {})
    return folder


def words_of(tokenizer, ids, continues) -> list[str]:
    """The words that the tokens make, pieces joined."""
    words: list[str] = []
    for piece, more in zip(map(tokenizer.id_to_token, ids), continues, strict=True):
        text = piece.removeprefix("##")
        words = [*words[:-1], words[-1] + text] if more else [*words, text]
    return words


@needs_zh
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我们喜欢北京大学。", ["我们", "喜欢", "北京大学", "。"]),
        ("他在playing乒乓球!", ["他", "在", "playing", "乒乓球", "!"]),
        ("研究生命的起源很有意思。", ["研究", "生命", "的", "起源", "很", "有意思", "。"]),
        ("今天天气不错", ["今天天气", "不错"]),
    ],
)
def test_the_words_of_literal_sentences(tokenizer, text, words):
    encoded = tokenizer.encode(text, add_special_tokens=False)
    continues = segmenter.continuations(text, [begin for begin, _ in encoded.offsets])
    assert words_of(tokenizer, encoded.ids, continues) == words
    assert sum(continues) == len(encoded.ids) - len(words)


@needs_zh
def test_places_are_those_of_the_original_text():
    text = "  \u0301我们\t喜欢 𠀀 北京大学"  # spaces, a combining mark, and a character beyond 16 bits
    assert "".join(segmenter.cut(text)) == text
    found = segmenter.continuations(text, [text.index(c) for c in "我们喜欢𠀀北京大学"])
    assert found.tolist() == [False, True, False, True, False, False, True, True, True]
    assert segmenter.continuations("我们", []).tolist() == []


@needs_zh
def test_a_store_has_a_bit_for_each_token(folder, tokenizer):
    split = store.open_split(folder, "train")
    places = np.arange(len(split.tokens))
    continues = split.continues(places)
    assert split.words.nbytes == -(-len(places) // 8)
    words = words_of(tokenizer, split.tokens, continues)
    assert {"北京大学", "playing", "乒乓球", "研究", "生命"} <= set(words)
    begins = split.sentences[:-1]
    assert not continues[begins].any()  # a sentence begins a word
    shuffled = np.random.default_rng(0).permutation(places).reshape(-1, 1)
    np.testing.assert_array_equal(split.continues(shuffled)[:, 0], continues[shuffled[:, 0]])


@needs_zh
def test_workers_and_parts_give_the_same_store(folder, source, tokenizer, tmp_path):
    from bertgpt.data.text import store_shards

    store.prepare(tmp_path / "two", source, tokenizer, {}, workers=2)
    parts = []
    texts = TEXT.split("\n\n")
    for number in range(3):  # each part ends within a byte
        path = tmp_path / f"part{number}.txt"
        path.write_text("\n\n".join(texts[20 * number : 20 * number + 20]), encoding="utf-8")
        parts.append(tmp_path / str(number))
        of_part = TextSource(str(path), eval_fraction=0.2, language="zh", segmented=True)
        store_shards.make_part(parts[-1], of_part, of_part.files(), tokenizer, store_shards.stamps(of_part.files()))
    store_shards.merge(tmp_path / "merged", parts, tokenizer)
    for split in ("train", "eval"):
        for name in ("words.bin", "tokens.bin"):
            expected = (folder / split / name).read_bytes()
            assert (tmp_path / "two" / split / name).read_bytes() == expected
            assert (tmp_path / "merged" / split / name).read_bytes() == expected


@needs_zh
@pytest.mark.parametrize("make", [BertPairs, SentenceRuns])
def test_the_tokens_of_a_word_are_masked_together(folder, tokenizer, make):
    split = store.open_split(folder, "train")
    examples = make(split, tokenizer, 64, 0, MaskRule(0.3, (1, 0, 0), whole_word=True))
    parts = 0
    for row in range(40):
        if make is BertPairs:
            records, shift, _ = examples.plan(0)
            a_start, a, b_start, b, _ = map(int, from_records(records[(row + shift) % len(records)]))
            places = [-1, *range(a_start, a_start + a), -1, *range(b_start, b_start + b), -1]
        else:
            start, end = examples.plan(0)[row : row + 2]
            places = [-1, *range(start, end), -1]
        places = np.array(places)
        starts = ~split.continues(np.maximum(places, 0)) | (np.roll(places, 1) < 0)
        word = np.cumsum(starts | (places < 0))
        batch = examples[row]
        masked = np.zeros(len(places), bool)
        masked[batch["masked_positions"][batch["loss_mask"] > 0]] = True
        for number in np.unique(word[masked]):
            assert masked[word == number].all()
            parts += int((word == number).sum() > 1)
    assert parts > 40  # words of several tokens


@needs_zh
def test_pieces_of_words_in_other_scripts_stay_together(tmp_path):
    text = "\n\n".join(f"他住在Москва,喜欢Pokémon和ボール。第{n}页。" for n in range(40))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"他住在喜欢和第页。,",
        "м",
        "##оск",
        "##ва",
        "po",
        "##kemon",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path / "vocab.txt")
    source = TextSource(str(tmp_path / "text.txt"), eval_fraction=0.2, language="zh", segmented=True)
    store.prepare(tmp_path / "store", source, tokenizer, {})
    split = store.open_split(tmp_path / "store", "train")
    words = words_of(tokenizer, split.tokens, split.continues(np.arange(len(split.tokens))))
    assert {"москва", "pokemon", "喜欢"} <= set(words)


@needs_zh
def test_without_whole_words_the_bits_change_nothing(folder, tokenizer):
    split = store.open_split(folder, "train")
    for rule in (MaskRule(), MaskRule(whole_word=True)):
        with_bits, without = (
            BertPairs(s, tokenizer, 48, 0, rule).batch(np.arange(20)) for s in (split, split._replace(words=None))
        )
        same = all(np.array_equal(with_bits[name], without[name]) for name in with_bits)
        assert same == (not rule.whole_word)


@needs_zh
def test_the_segmenter_is_part_of_the_stores_identity(folder, source, tokenizer, tmp_path, monkeypatch):
    meta = json.loads((folder / "meta.json").read_text())
    wanted = {"sha256": meta["tokenizer"]}
    assert meta["identity"]["segmenter"].keys() == {"name", "version", "words"}
    assert store.stale_reason(folder, source, wanted) is None
    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "identity", lambda: None)  # training does not need it
        assert store.stale_reason(folder, source, wanted) is None
    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "cut", lambda text: list(text))  # another dictionary
        assert store.stale_reason(folder, source, wanted) == "segmenter changed"
    unsegmented = TextSource(source.train, eval_fraction=0.2, language="zh")
    assert store.stale_reason(folder, unsegmented, wanted) is None  # tokens are the same
    assert "segmenter" not in store.identity(unsegmented)
    store.prepare(tmp_path / "store", unsegmented, tokenizer, {})
    assert store.digest(tmp_path / "store", words=False) == store.digest(folder, words=False)
    assert store.digest(tmp_path / "store") != store.digest(folder)  # masks of whole words depend on the segmenter
    for installed in (segmenter.identity, lambda: None):
        monkeypatch.setattr(segmenter, "identity", installed)
        assert store.stale_reason(tmp_path / "store", source, wanted) == "words not found yet"


@needs_zh
def test_a_run_on_whole_words_is_not_resumed_with_other_words(source, plan_settings, tmp_path, monkeypatch):
    overrides = [f"data.train={source.train}", "data.eval_fraction=0.2", "data.language=zh", "data.whole_word=true"]
    overrides += ["train.objective=mlm", "train.steps=2", "train.batch_size=8", "train.eval_examples=8"]
    config = configs.override(plan_settings("bert_tiny")[0], [*overrides, "checkpoint.every=2", "data.workers=1"])
    pretraining.pretrain(config)
    folder = tmp_path / "out" / "store"
    wanted = json.loads((folder / "meta.json").read_text())["wanted"]
    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "cut", lambda text: list(text))  # another run replaces the store with another version
        store.prepare(folder, configs.text_source(config), load_tokenizer(folder), wanted)
    monkeypatch.setattr(segmenter, "identity", lambda: None)  # this machine has none to compare with
    config.train.steps = 4
    with pytest.raises(InputError, match="the data changed since checkpoint 2"):
        pretraining.pretrain(config)


@needs_zh
def test_damaged_words_are_found(folder, source, tokenizer, tmp_path):
    store.prepare(tmp_path / "store", source, tokenizer, {})
    path = tmp_path / "store" / "train" / "words.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"words\.bin: damaged"):
        store.open_split(tmp_path / "store", "train")
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert store.fault(tmp_path / "store") == "train/words.bin is missing or changed"


def test_without_the_extra_one_line_says_what_to_install(source, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rjieba", None)
    segmenter._segmenter.cache_clear()
    with pytest.raises(InputError, match=r"needs a segmenter; pip install 'bertgpt\[zh\]'"):
        store.prepare(tmp_path / "store", source, tokenizer, {})
    assert not (tmp_path / "store").exists()
    segmenter._segmenter.cache_clear()


@pytest.mark.parametrize("language", ["ja", "th", "km", "my", "bo"])
def test_other_languages_without_spaces_are_refused(language, plan_settings):
    config, _ = plan_settings("bert_tiny")
    with pytest.raises(InputError, match=f"data.whole_word: text in data.language={language} has no spaces"):
        configs.override(config, [f"data.language={language}", "data.whole_word=true"])
    configs.override(config, [f"data.language={language}"])


def test_only_chinese_text_with_whole_words_is_segmented(plan_settings):
    config, _ = plan_settings("bert_tiny")
    for overrides, segmented in (
        ([], False),
        (["data.whole_word=true"], False),
        (["data.language=zh"], False),
        (["data.language=zh", "data.whole_word=true"], True),
    ):
        assert configs.text_source(configs.override(config, overrides)).segmented == segmented


@hypothesis.given(parts=st.lists(st.lists(st.booleans(), max_size=20), max_size=8), data=st.data())
def test_bits_are_read_as_they_were_written(tmp_path_factory, parts, data):
    path = tmp_path_factory.getbasetemp() / "bits.bin"
    values = [value for part in parts for value in part]
    with bits.Bits(path) as file:
        for part in parts:
            file.write(np.array(part, bool))
    assert path.stat().st_size == bits.size(len(values))
    count = data.draw(st.integers(0, len(values)))
    assert [value for block in bits.read(path, count) for value in block.tolist()] == values[:count]
