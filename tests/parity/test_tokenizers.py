"""Equal ids, and for BERT equal offsets, on text of many scripts."""

import json
import shutil

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from bertgpt.errors import InputError
from bertgpt.tokenizers import (
    BERT_SPECIAL,
    export_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
    train_wordpiece,
)

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


def test_openais_clean_up_is_read_as_their_own(tmp_path):
    tokenizer = train_bpe(TEXTS * 3, 700, cleanup="openai")
    (tmp_path / "config.json").write_text('{"model_type": "openai-gpt"}')
    export_tokenizer(tokenizer, tmp_path, 512)
    theirs, usual = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path / "vocab.json")
    assert isinstance(theirs, transformers.OpenAIGPTTokenizer)
    for text in (*TEXTS, ODD, "It's 1990."):
        assert theirs(text)["input_ids"] == usual.encode(text).ids
    assert usual.encode("It's").ids != tokenizer.encode("It's").ids == load_tokenizer(tmp_path).encode("It's").ids


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


PIECES = [*BERT_SPECIAL, *"abex1[]/<>", "##b", "##1", "john", "works", "in", "mask", "ent", "[unused1]"]
V = len(PIECES)
MARKED = [
    "[E1] john [/E1] works in a",
    "x[E1]ab <ent> <Ent> <ENT> [E2] [E3]",
    "John JOHN john [MASK] a [mask] [UNK] [SEP] ab aab ab",
    "[unused1]  [E1]  <Ent>  x",
    " [MASK] <s>",
]
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


def token(content, **properties):
    """A token as added_tokens_decoder has it."""
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False) | {"special": True}
    return {"content": content, **flags, **properties}


MASK = {"content": "[MASK]", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
DECODER = {
    V: token("[E1]", lstrip=True),
    V + 1: token("<Ent>", normalized=True, special=False, rstrip=True),
    V + 2: token("ab", single_word=True, special=False),
}
FOLDERS = {  # of a vocabulary of V tokens: the files beside it
    "plain": {},
    "added": {ADDED: {"[E1]": V, "[/E1]": V + 1}},
    "added in another order": {ADDED: {"[/E1]": V + 1, "[E1]": V}},
    "added from the vocabulary": {ADDED: {"[unused1]": V - 1, "[E1]": V}},
    "added, for normalized text": {ADDED: {"<Ent>": V}},
    "added, named special": {ADDED: {"<Ent>": V}, MAP: {"eos_token": "<Ent>"}},
    "added, listed special": {ADDED: {"<Ent>": V}, MAP: {"additional_special_tokens": ["<Ent>"]}},
    "decoder": {CONFIG: {"added_tokens_decoder": DECODER}},
    "decoder alone": {
        CONFIG: {"added_tokens_decoder": {V: token("[E1]")}},
        ADDED: {"[E2]": V},
        MAP: {"eos_token": "x"},
    },
    "decoder, cased": {
        CONFIG: {"do_lower_case": False, "added_tokens_decoder": {V: token("John", normalized=True, special=False)}}
    },
    "additional": {CONFIG: {"additional_special_tokens": ["[E1]", "<Ent>"]}},
    "extra": {CONFIG: {"extra_special_tokens": ["[E1]", "<Ent>"]}},
    "extra by role": {CONFIG: {"extra_special_tokens": {"image_token": "<Ent>"}, "eos_token": "[E1]"}},
    "extra with properties": {
        CONFIG: {"additional_special_tokens": [{"__type": "AddedToken"} | MASK | {"content": "[E1]"}]}
    },
    "roles": {CONFIG: {"foo_token": "<Ent>", "bos_token": "[E1]"}},
    "roles in the map": {MAP: {"eos_token": "[E1]", "bos_token": MASK | {"content": "<Ent>"}}},
    "mask that strips": {MAP: {"mask_token": MASK}},
    "mask that strips, config": {CONFIG: {"mask_token": {"__type": "AddedToken"} | MASK}},
    "added and additional": {ADDED: {"[E1]": V}, CONFIG: {"additional_special_tokens": ["[E1]", "[E2]"]}},
    "map and config": {
        CONFIG: {"additional_special_tokens": ["[E1]"]},
        MAP: {"additional_special_tokens": ["[E2]"], "extra_special_tokens": ["[E3]"]},
    },
    "Electra": {CONFIG: {"tokenizer_class": "ElectraTokenizerFast"}, ADDED: {"[E1]": V}},
    "class in config.json": {"config.json": {"model_type": "bert", "tokenizer_class": "MobileBertTokenizer"}},
}
REFUSED = {  # where transformers gives an added token another id than its file, or has no such clean-up
    "a hole": {ADDED: {"[E1]": V, "[/E1]": V + 2}},
    "an id that is taken": {ADDED: {"[E1]": 5}},
    "a token twice": {CONFIG: {"added_tokens_decoder": {V: token("[E1]"), V + 1: token("[E1]")}}},
    "another mask": {CONFIG: {"mask_token": "[unused1]"}},
    "no mask": {CONFIG: {"mask_token": None}},
    "another cls": {MAP: {"cls_token": "<s>"}},
}


def write(folder, files, model_type="bert"):
    for name, value in ({"config.json": {"model_type": model_type}} | files).items():
        (folder / name).write_text(json.dumps(value))


def base():
    """A tokenizer of PIECES."""
    tokenizer = train_wordpiece(TEXTS, 60)
    tokenizer.model = models.WordPiece({piece: index for index, piece in enumerate(PIECES)}, unk_token="[UNK]")
    return tokenizer


@pytest.mark.parametrize("vocabulary", ["vocab.txt", "tokenizer.json", "tokenizer.json, no class of BERT's"])
@pytest.mark.parametrize("name", FOLDERS)
def test_added_tokens(vocabulary, name, tmp_path):
    files = dict(FOLDERS[name])
    if "class" not in str(files):
        given = "PreTrainedTokenizerFast" if "no class" in vocabulary else "BertTokenizer"
        files[CONFIG] = {"tokenizer_class": given} | files.get(CONFIG, {})
    write(tmp_path, files)
    if vocabulary == "vocab.txt":
        (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    else:
        save_tokenizer(base(), tmp_path)
    check_alike(tmp_path)


def check_alike(folder, texts=MARKED):
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in texts:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_tokens_decoder() == theirs.added_tokens_decoder


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_have_other_ids_is_refused(name, tmp_path):
    write(tmp_path, REFUSED[name])
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if "mask" in name or "cls" in name:
        assert (theirs.mask_token, theirs.cls_token) != ("[MASK]", "[CLS]")
    else:
        declared = REFUSED[name].get(ADDED) or {"[E1]": V + 1}
        assert any(theirs.convert_tokens_to_ids(content) != index for content, index in declared.items())
    with pytest.raises(InputError, match=r"(tokenizer_config|special_tokens_map|added_tokens)\.json: "):
        load_tokenizer(tmp_path)


LETTERS = ["<unk>", *"johnabxe1[]/", *(f"{letter}</w>" for letter in "abnxe1[]"), "jo", "joh", "john</w>"]
GPT_FOLDERS = {
    "plain": {},
    "added": {ADDED: {"[E1]": len(LETTERS), "[/E1]": len(LETTERS) + 1}},
    "decoder": {
        CONFIG: {
            "added_tokens_decoder": {
                len(LETTERS): token("[E1]", lstrip=True),
                len(LETTERS) + 1: token("<Ent>", normalized=True, special=False),
            }
        }
    },
    "added from the vocabulary": {ADDED: {"john</w>": len(LETTERS) - 1, "[E1]": len(LETTERS)}},
    "another unknown token": {CONFIG: {"unk_token": "x"}},
    "roles": {CONFIG: {"pad_token": "<pad>", "cls_token": "[E1]"}},
}


@pytest.mark.parametrize("name", GPT_FOLDERS)
def test_added_tokens_of_gpt(name, tmp_path):
    write(tmp_path, GPT_FOLDERS[name], "openai-gpt")
    (tmp_path / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(LETTERS)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nj o\njo h\njoh n</w>\n")
    check_alike(tmp_path)


LINES = {
    "outer white space": "a \n a\nb\t\nc\u00a0\n\u3000d\u3000\ne\x0b\nf\u2028\ng\x85\n",
    "separators that are no white space": "a\x1c\nb\u200b\n",
    "blank lines": "a\n\nb\n \n",
    "lines twice": "a\nb\na\nc\n",
    "lines twice but for white space": "a\nb\na \nc\n",
    "CRLF": "a\r\nb\r\n",
    "no line end": "a\nb",
    "CR is no line end": "a\rb\nc\n",
}


@pytest.mark.parametrize("name", LINES)
def test_lines_of_vocab_txt(name, tmp_path):
    write(tmp_path, {})
    end = "\r\n" if name == "CRLF" else "\n"
    (tmp_path / "vocab.txt").write_bytes((end.join(BERT_SPECIAL) + end + LINES[name]).encode())
    check_alike(tmp_path, ["a b c d e f g z", ""])


def test_a_byte_order_mark_hides_the_first_token(tmp_path):
    write(tmp_path, {})
    (tmp_path / "vocab.txt").write_text("\ufeff" + "\n".join(PIECES) + "\n")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.convert_tokens_to_ids("[PAD]") == V  # added at the end
    with pytest.raises(InputError, match=r"vocab\.txt: no \[PAD\]; a byte order mark"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("\ufeffz\n" + "\n".join(PIECES) + "\n")
    check_alike(tmp_path, ["z a"])


@pytest.mark.parametrize("kind", ["bert", "openai-gpt", "other clean-up", "special tokens are text"])
def test_added_tokens_are_exported(kind, tmp_path):
    tokenizer = train_bpe(TEXTS * 3, 300) if kind == "openai-gpt" else base()
    if kind == "other clean-up":
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC()])
    if kind == "special tokens are text":
        plain = Tokenizer(tokenizer.model)
        plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        plain.post_processor, tokenizer = tokenizer.post_processor, plain
    tokenizer.add_tokens([AddedToken("[E1]", lstrip=True, special=True), AddedToken("<Ent>", rstrip=True)])
    tokenizer.add_tokens([AddedToken("ab", single_word=True), AddedToken("[/E1]", special=True, normalized=True)])
    write(tmp_path, {}, "openai-gpt" if kind == "openai-gpt" else "bert")
    export_tokenizer(tokenizer, tmp_path, 512)
    check_exported(tmp_path, tokenizer)
    if kind in ("bert", "openai-gpt"):
        (tmp_path / "tokenizer.json").unlink()
        check_exported(tmp_path, tokenizer)


def check_exported(folder, tokenizer):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (*MARKED, "[/e1]", "[MASK]"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert theirs.get_vocab() == tokenizer.get_vocab()
    check_alike(folder, (*MARKED, "[/e1]", "[MASK]"))
