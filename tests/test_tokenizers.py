"""Tokenizers loaded, saved and exported."""

import json

import pytest
from tokenizers.normalizers import NFC, Sequence
from tokenizers.pre_tokenizers import Whitespace

from bertgpt import tokenizers
from bertgpt.errors import InputError
from bertgpt.tokenizers import checks

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "cafe", "Café", "中", "文"]
VOCAB = {"<unk>": 0, "l": 1, "o": 2, "w</w>": 3, "lo": 4, "low</w>": 5}
MERGES = "#version: 0.2\nl o\nlo w</w>\n"


def pieces(tokenizer, text: str) -> list[str]:
    return tokenizer.encode(text, add_special_tokens=False).tokens


@pytest.fixture
def vocab_txt(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return tmp_path / "vocab.txt"


@pytest.fixture
def vocab_json(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    (tmp_path / "merges.txt").write_text(MERGES)
    return tmp_path / "vocab.json"


def test_a_trained_wordpiece_survives_saving(tmp_path, wordpiece, documents):
    tokenizers.save_tokenizer(wordpiece, tmp_path)
    loaded = tokenizers.load_tokenizer(tmp_path)
    assert [loaded.encode(text).ids for text in documents] == [wordpiece.encode(text).ids for text in documents]


def test_a_trained_bpe_survives_saving(tmp_path, bpe, documents):
    tokenizers.save_tokenizer(bpe, tmp_path)
    loaded = tokenizers.load_tokenizer(tmp_path / "tokenizer.json")
    assert [loaded.encode(text).ids for text in documents] == [bpe.encode(text).ids for text in documents]


@pytest.mark.parametrize("place", ["file", "folder"])
def test_vocab_txt_is_loaded_uncased_unless_told(vocab_txt, place):
    tokenizer = tokenizers.load_tokenizer(vocab_txt if place == "file" else str(vocab_txt.parent))
    expected = ["[CLS]", "cafe", "play", "##ing", "中", "文", "[MASK]", "[SEP]"]
    assert tokenizer.encode("Café PLAYING中文 [MASK]").tokens == expected
    assert tokenizer.encode("Café").ids == [2, 7, 3]
    assert tokenizer.get_vocab_size() == 11


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"do_lower_case": False}, "Café"), ({"do_lower_case": True}, "cafe"), ({}, "cafe")],
)
def test_the_case_in_tokenizer_config_is_followed(vocab_txt, settings, expected):
    vocab_txt.with_name("tokenizer_config.json").write_text(json.dumps(settings))
    assert pieces(tokenizers.load_tokenizer(vocab_txt), "Café") == [expected]


def test_tokenizer_config_goes_over_tokenizer_json_as_with_hugging_face(tmp_path, wordpiece):
    tokenizers.save_tokenizer(wordpiece, tmp_path)
    assert tokenizers.load_tokenizer(tmp_path).to_str() == wordpiece.to_str()
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "strip_accents": null}')
    normalizer = json.loads(tokenizers.load_tokenizer(tmp_path).to_str())["normalizer"]
    assert (normalizer["lowercase"], normalizer["strip_accents"], normalizer["clean_text"]) == (False, None, True)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert tokenizers.load_tokenizer(tmp_path).to_str() == wordpiece.to_str()
    cased = tokenizers.train_wordpiece(["Café cafe"] * 3, 100, lowercase=False)
    tokenizers.save_tokenizer(cased, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert pieces(tokenizers.load_tokenizer(tmp_path), "CAFÉ") == ["cafe"]


@pytest.mark.parametrize(
    ("config", "model", "expected"),
    [
        ({"model_max_length": 512}, None, "Hello"),
        ({"do_lower_case": None, "strip_accents": None}, None, "Hello"),
        ({"do_lower_case": True}, None, "hello"),
        ({"model_max_length": 512}, {"model_type": "bert"}, "hello"),
        ({"model_max_length": 512}, {"model_type": "roberta"}, "Hello"),
    ],
)
def test_only_what_a_config_says_goes_over_a_tokenizer_json_of_no_known_model(tmp_path, config, model, expected):
    cased = tokenizers.train_wordpiece(["Hello hello"] * 3, 100, lowercase=False)
    tokenizers.save_tokenizer(cased, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if model:
        (tmp_path / "config.json").write_text(json.dumps(model))
    assert pieces(tokenizers.load_tokenizer(tmp_path), "Hello") == [expected]


@pytest.mark.parametrize("value", ["no", 1, []])
def test_a_setting_that_is_no_truth_is_named(vocab_txt, value):
    vocab_txt.with_name("tokenizer_config.json").write_text(json.dumps({"do_lower_case": value}))
    with pytest.raises(InputError, match=r"tokenizer_config\.json: do_lower_case is .*; it must be true or false"):
        tokenizers.load_tokenizer(vocab_txt)


def test_a_line_twice_in_vocab_txt_keeps_every_id_through_export(tmp_path, vocab_txt):
    vocab_txt.write_text("\n".join([*PIECES, "play", "last"]) + "\n", encoding="utf-8")
    tokenizer = tokenizers.load_tokenizer(vocab_txt)
    assert (tokenizer.token_to_id("play"), tokenizers.vocabulary_size(tokenizer)) == (11, 13)
    assert len(tokenizers.continuation_table(tokenizer)) == 13
    (tmp_path / "out").mkdir()
    tokenizers.export_tokenizer(tokenizer, tmp_path / "out", 512)
    (tmp_path / "out" / "tokenizer.json").unlink()
    again = tokenizers.load_tokenizer(tmp_path / "out")
    assert again.encode("play last").ids == tokenizer.encode("play last").ids == [2, 11, 12, 3]


@pytest.mark.parametrize("change", ["normalizer", "pre_tokenizer", "piece"])
def test_a_clean_up_of_another_kind_is_left_to_tokenizer_json(tmp_path, wordpiece, change):
    tokenizer = wordpiece.from_str(wordpiece.to_str())
    if change == "normalizer":
        tokenizer.normalizer = Sequence([NFC()])
    elif change == "pre_tokenizer":
        tokenizer.pre_tokenizer = Whitespace()
    else:
        tokenizer.model.continuing_subword_prefix = "@@"
    tokenizers.export_tokenizer(tokenizer, tmp_path, 512)
    assert {file.name for file in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (settings["tokenizer_class"], settings["mask_token"]) == ("PreTrainedTokenizerFast", "[MASK]")


@pytest.mark.parametrize("place", ["file", "folder"])
def test_vocab_json_and_merges_are_loaded(vocab_json, place):
    tokenizer = tokenizers.load_tokenizer(vocab_json if place == "file" else vocab_json.parent)
    assert tokenizer.encode("LOW lo").ids == [5, 1, 0]  # "o</w>" is unknown
    assert tokenizer.decode([5, 5]) == "low low"
    assert tokenizer.get_vocab_size() == 6


def test_tokenizer_json_goes_before_vocab_txt(vocab_txt, bpe):
    tokenizers.save_tokenizer(bpe, vocab_txt.parent)
    assert tokenizers.load_tokenizer(vocab_txt.parent).to_str() == bpe.to_str()


def test_a_loaded_tokenizer_neither_pads_nor_cuts(tmp_path, wordpiece, documents):
    expected = wordpiece.encode(documents[0]).ids
    altered = wordpiece.from_str(wordpiece.to_str())
    altered.enable_padding(length=500)
    altered.enable_truncation(4)
    tokenizers.save_tokenizer(altered, tmp_path)
    assert tokenizers.load_tokenizer(tmp_path).encode(documents[0]).ids == expected


def test_vocab_json_needs_its_merges(vocab_json):
    vocab_json.with_name("merges.txt").unlink()
    with pytest.raises(InputError, match=r"vocab\.json: needs merges\.txt in the same folder"):
        tokenizers.load_tokenizer(vocab_json.parent)


@pytest.mark.parametrize("missing", ["[MASK]", "[PAD]", "[UNK]", "[CLS]", "[SEP]"])
def test_vocab_txt_needs_every_special_token(vocab_txt, missing):
    vocab_txt.write_text("\n".join(piece for piece in PIECES if piece != missing), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        tokenizers.load_tokenizer(vocab_txt)
    assert f"no {missing}" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("", r"no tokenizer\.json, vocab\.txt"),
        ("tokenizer.json", "no such file or folder"),
        ("missing/vocab.txt", "no such file or folder"),
    ],
)
def test_a_place_without_a_tokenizer_is_named(tmp_path, path, fault):
    with pytest.raises(InputError, match=rf"{tmp_path / path}: {fault}"):
        tokenizers.load_tokenizer(tmp_path / path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
def test_a_corrupt_file_is_named(vocab_txt, vocab_json, name):
    vocab_txt.with_name(name).write_text("{")
    file = "vocab.txt" if name == "tokenizer_config.json" else name
    with pytest.raises(InputError, match=rf"{name}: not (a tokenizer|JSON)"):
        tokenizers.load_tokenizer(vocab_txt.with_name(file))


def test_a_file_too_large_for_a_tokenizer_is_refused(vocab_txt, monkeypatch):
    monkeypatch.setattr(checks, "MAX_FILE", 10)
    with pytest.raises(InputError, match=r"vocab\.txt: over 10 bytes"):
        tokenizers.load_tokenizer(vocab_txt)


def test_a_special_token_that_is_missing_is_named(bpe):
    with pytest.raises(InputError, match=r"no \[MASK\]; BERT needs"):
        tokenizers.special_id(bpe, "[MASK]")


def test_the_continuation_table_marks_pieces_that_go_on_a_word(vocab_txt):
    assert tokenizers.continuation_table(tokenizers.load_tokenizer(vocab_txt)) == [False] * 6 + [True] + [False] * 4
