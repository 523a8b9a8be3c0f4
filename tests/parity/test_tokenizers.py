"""Equal ids, and for BERT equal offsets, on text of many scripts."""

import json
import shutil

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from bertgpt.tokenizers import export_tokenizer, load_tokenizer, train_bpe, train_wordpiece

TEXTS = [
    "The quick brown Fox jumps over the lazy dog; naïve café, Ångström, İstanbul, STRASSE straße.",
    "Съешь же ещё этих мягких французских булок. Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία.",
    "我能吞下玻璃而不伤身体。 素早い茶色の狐が のろまな犬を飛び越える。 다람쥐 헌 쳇바퀴에 타고파",
    "نص حكيم له سر قاطع  דג סקרן שט בים  ऋषियों को सताने वाले दुष्ट  ประเทศไทย",
    "emoji 😀 👩‍👩‍👧‍👦 🇫🇷 ❤️ and signs: © № € ½ … — “quoted” 'n' a/b #tag @user 3.14 1,000 e.g. can't",
]
ODD = "e\u0301 n\u0303 \u200b\u200d\u200e\ufeff\u00ad \u00a0\u3000\t\r\n \u0000\ufffd \u2028 "
ODD += "\ufb01 \u212b \u1e9e \U0001d4b3 \u0345 \u0130 \U0001f1eb [MASK] [SEP] <unk>"
SETTINGS = {
    "uncased": {"do_lower_case": True},
    "cased": {"do_lower_case": False},
    "Chinese, characters joined": {"do_lower_case": True, "tokenize_chinese_chars": False},
    "accents kept": {"do_lower_case": True, "strip_accents": False},
}
# Words of the training text, code points that a tokenizer treats in a way of their own, and any other.
pieces = st.sampled_from([word for text in TEXTS for word in text.split()]) | st.sampled_from(ODD)
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
texts = st.lists(pieces | anything | st.sampled_from(list("  .,'\n中é")), max_size=30).map("".join)


def examples(test):
    for text in (*TEXTS, ODD, "", " ", "a" * 101, "中" * 101, "\u0301", "[MASK]", "x[MASK]y"):
        test = example(text=text)(test)
    return settings(max_examples=400)(test)


@pytest.fixture(scope="module", params=SETTINGS)
def bert(request, tmp_path_factory):
    """(theirs, ours), both from vocab.txt and settings alone."""
    folder = tmp_path_factory.mktemp("bert")
    export_tokenizer(train_wordpiece(TEXTS * 3, 600, lowercase=False), folder, 512)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    theirs = transformers.BertTokenizer.from_pretrained(folder, **SETTINGS[request.param])
    theirs.save_pretrained(folder / "theirs")
    shutil.copy(folder / "vocab.txt", folder / "theirs")
    (folder / "theirs" / "tokenizer.json").unlink()
    return theirs, load_tokenizer(folder / "theirs")


@given(text=texts)
@examples
def test_bert(bert, text):
    theirs, ours = bert
    expected = theirs(text, return_offsets_mapping=True)
    found = ours.encode(text)
    assert found.ids == expected["input_ids"]
    assert found.offsets == expected["offset_mapping"]
    assert found.type_ids == expected["token_type_ids"]


@given(text=texts)
@examples
def test_bert_pairs(bert, text):
    theirs, ours = bert
    pair = ("one " + text, text + " two")  # theirs takes an empty second text for none
    expected = theirs(*pair, return_offsets_mapping=True)
    found = ours.encode(*pair)
    assert (found.ids, found.type_ids) == (expected["input_ids"], expected["token_type_ids"])
    assert found.offsets == expected["offset_mapping"]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """(theirs, ours), both from vocab.json and merges.txt alone."""
    folder = tmp_path_factory.mktemp("gpt")
    export_tokenizer(train_bpe(TEXTS * 3, 700), folder, 512)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    return transformers.OpenAIGPTTokenizer.from_pretrained(folder), load_tokenizer(folder)


@given(text=texts)
@examples
def test_gpt(gpt, text):
    theirs, ours = gpt
    assert ours.encode(text).ids == theirs(text)["input_ids"]


@given(text=texts)
@examples
def test_gpt_decodes_alike(gpt, text):
    theirs, ours = gpt
    ids = ours.encode(text).ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module", params=["wordpiece, uncased", "wordpiece, cased", "bpe"])
def exported(request, tmp_path_factory):
    """(theirs, ours): a tokenizer of ours that theirs reads from the exported folder through AutoTokenizer."""
    folder = tmp_path_factory.mktemp("exported")
    if request.param == "bpe":
        tokenizer = train_bpe(TEXTS * 3, 700)
        (folder / "config.json").write_text('{"model_type": "openai-gpt"}')
    else:
        tokenizer = train_wordpiece(TEXTS * 3, 600, lowercase="uncased" in request.param)
        (folder / "config.json").write_text('{"model_type": "bert"}')
    export_tokenizer(tokenizer, folder, 512)
    return transformers.AutoTokenizer.from_pretrained(folder), tokenizer


@given(text=texts)
@examples
def test_ours_is_read_by_theirs(exported, text):
    theirs, ours = exported
    assert theirs(text)["input_ids"] == ours.encode(text).ids
    assert theirs.model_max_length == 512


@pytest.fixture(scope="module", params=SETTINGS)
def google(request, tmp_path_factory):
    """(theirs, ours): theirs is the pure Python port of google-research/bert's tokenization.py."""
    folder = tmp_path_factory.mktemp("google")
    export_tokenizer(train_wordpiece(TEXTS * 3, 600, lowercase=False), folder, 512)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS[request.param]))
    theirs = transformers.BertTokenizerLegacy(str(folder / "vocab.txt"), **SETTINGS[request.param])
    return theirs, load_tokenizer(folder)


def nonstandard(kind):
    """Tokenizers that their BertTokenizer and OpenAIGPTTokenizer would build otherwise."""
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        tokenizer.train_from_iterator(TEXTS, trainer)
    elif kind == "cased bpe":
        tokenizer = train_bpe(TEXTS * 3, 700)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    else:
        tokenizer = train_wordpiece(TEXTS * 3, 600, lowercase=False)
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC()])
    return tokenizer


@pytest.mark.parametrize("kind", ["bytes", "cased bpe", "composed wordpiece"])
def test_a_tokenizer_of_another_kind_is_read_by_theirs(kind, tmp_path):
    tokenizer = nonstandard(kind)
    (tmp_path / "config.json").write_text('{"model_type": "%s"}' % ("bert" if "word" in kind else "openai-gpt"))
    export_tokenizer(tokenizer, tmp_path, 512)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, "Hello World"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids


@pytest.mark.parametrize("settings", ['{"tokenizer_class": "BertTokenizer"}', '{"strip_accents": null}', "{}"])
def test_settings_that_are_left_out_are_filled_in_alike(settings, tmp_path):
    tokenizer = train_wordpiece(TEXTS * 3, 600, lowercase=False)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    export_tokenizer(tokenizer, tmp_path, 512)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer_config.json").write_text(settings)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in (*TEXTS, "Café Über"):
        assert ours.encode(text).ids == theirs(text)["input_ids"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_go_over_tokenizer_json_alike(setting, tmp_path):
    export_tokenizer(train_wordpiece(TEXTS * 3, 600, lowercase=False), tmp_path, 512)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | SETTINGS[setting]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in (*TEXTS, ODD):
        assert ours.encode(text).ids == theirs(text)["input_ids"]


WORDS = [word for text in TEXTS for word in text.split()]


@given(text=st.lists(st.sampled_from([*WORDS, " ", " ", ".", "-", "\n", "[MASK]"]), max_size=30).map("".join))
@settings(max_examples=400)
def test_bert_is_as_googles_python_on_ordinary_text(google, text):
    # Their Python composes accents first and has older Unicode tables: rare code points differ (docs/parity.md).
    theirs, ours = google
    assert ours.encode(text).ids == theirs(text)["input_ids"]
