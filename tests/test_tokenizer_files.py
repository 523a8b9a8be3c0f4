"""Folders of tokenizers as transformers reads them: added tokens, roles, classes, lines of vocab.txt."""

import json

import pytest
from tokenizer_folders import ADDED, CONFIG, LETTERS, MAP, PIECES, ids, token, write, write_berts, write_gpts
from tokenizers import AddedToken, Tokenizer, models

from bertgpt import tokenizers
from bertgpt.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return write_berts(tmp_path)


@pytest.fixture
def gpt_folder(tmp_path):
    return write_gpts(tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, [9, 8, 10, 5]),
        ({ADDED: {"[/E1]": 12, "[E1]": 11}}, [11, 5]),
        ({ADDED: {"[E1]": 11}, MAP: {"eos_token": "[E1]"}}, [11, 5]),
        ({CONFIG: {"added_tokens_decoder": {"11": token("[E1]")}}}, [11, 5]),
        ({CONFIG: {"additional_special_tokens": ["[E1]"]}}, [11, 5]),
        ({CONFIG: {"extra_special_tokens": ["<x>", "[E1]"]}}, [12, 5]),
        ({MAP: {"additional_special_tokens": [token("[E1]")]}}, [11, 5]),
        ({CONFIG: {"extra_special_tokens": {"entity_token": "[E1]"}}}, [11, 5]),
        ({CONFIG: {"eos_token": "[E1]"}}, [11, 5]),
        ({CONFIG: {"added_tokens_decoder": {}}, ADDED: {"[E1]": 11}, MAP: {"eos_token": "[E1]"}}, [9, 8, 10, 5]),
    ],
)
def test_added_tokens_have_ids_after_the_vocabulary(folder, files, expected):
    assert ids(write(folder, files), "[E1] a") == expected


def test_added_tokens_keep_their_properties(folder):
    decoder = {
        "11": token("[E1]", lstrip=True),
        "12": token("ab", single_word=True, special=False, normalized=True),
    }
    tokenizer = tokenizers.load_tokenizer(write(folder, {CONFIG: {"added_tokens_decoder": decoder}}))
    assert tokenizer.encode("AB aab a  [E1]", add_special_tokens=False).ids == [12, 1, 5, 11]
    assert tokenizer.get_added_tokens_decoder()[11] == AddedToken("[E1]", lstrip=True, special=True, normalized=False)
    assert tokenizer.get_added_tokens_decoder()[4] == AddedToken("[MASK]", special=True)


def test_the_token_of_a_role_is_special_whatever_its_properties(folder):
    decoder = {"11": token("[E1]", special=False), "12": token("[E2]", special=False)}
    write(folder, {CONFIG: {"added_tokens_decoder": decoder, "eos_token": "[E1]"}})
    added = tokenizers.load_tokenizer(folder).get_added_tokens_decoder()
    assert (added[11].special, added[12].special) == (True, False)


def test_unknown_words_need_a_place_in_the_vocabulary_itself(folder):
    (folder / "vocab.txt").write_text("\n".join(piece for piece in PIECES if piece != "[UNK]"))
    with pytest.raises(InputError, match=r"vocab\.txt: no \[UNK\]; BERT needs it"):
        tokenizers.load_tokenizer(write(folder, {ADDED: {"[UNK]": 10}}))
    (folder / "vocab.txt").write_text("\n".join(piece for piece in PIECES if piece != "[MASK]"))
    assert ids(write(folder, {ADDED: {"[MASK]": 10}}), "a [MASK]") == [4, 10]


def test_added_tokens_of_gpt_come_after_its_vocabulary(gpt_folder):
    assert ids(write(gpt_folder, {ADDED: {"[E1]": 6}, MAP: {"cls_token": "[E1]"}}), "low [E1]") == [5, 6]
    write(gpt_folder, {"vocab.json": LETTERS | {"[U]": 6}, CONFIG: {"unk_token": "[U]"}, ADDED: {}})
    assert ids(gpt_folder, "low z") == [5, 6]
    with pytest.raises(InputError, match=r"vocab\.json: no <pad>, which"):
        tokenizers.load_tokenizer(write(gpt_folder, {CONFIG: {"unk_token": "<pad>"}}))


def test_added_tokens_go_with_tokenizer_json(tmp_path, wordpiece):
    size = tokenizers.vocabulary_size(wordpiece)
    tokenizers.save_tokenizer(wordpiece, write(tmp_path, {ADDED: {"[E1]": size}, MAP: {"eos_token": "[E1]"}}))
    assert ids(tmp_path, "[E1]") == [size]


def test_properties_in_the_config_go_over_those_of_tokenizer_json(tmp_path, wordpiece):
    size = tokenizers.vocabulary_size(wordpiece)
    tokenizer = Tokenizer.from_str(wordpiece.to_str())
    tokenizer.add_tokens([AddedToken("[E1]", lstrip=True, special=True)])
    tokenizers.save_tokenizer(tokenizer, tmp_path)
    for files, lstrip in (
        ({ADDED: {"[E1]": size}}, True),
        ({CONFIG: {"added_tokens_decoder": {str(size): token("[E1]")}}}, False),
    ):
        loaded = tokenizers.load_tokenizer(write(tmp_path, files))
        assert loaded.get_added_tokens_decoder()[size].lstrip is lstrip


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({ADDED: {"[E1]": 12}}, r"added_tokens\.json: added token '\[E1\]' has the id 12, expected 11"),
        ({ADDED: {"[E1]": 5}}, r"added_tokens\.json: added token '\[E1\]' has the id 5, expected 11"),
        ({ADDED: {"a": 11}}, r"added_tokens\.json: added token 'a' has the id 11, expected 5"),
        ({ADDED: {"[E1]": 2**31}}, r"added_tokens\.json: added token '\[E1\]' has the id 2147483648"),
        ({ADDED: {"[E1]": -1}}, r"added_tokens\.json: added token '\[E1\]' has the id -1"),
        (
            {ADDED: {"[E1]": 11, "[E2]": 11}},
            r"added_tokens\.json: '\[E2\]' has the id 11; it must be a unique integer",
        ),
        ({ADDED: {"[E1]": 11.0}}, r"added_tokens\.json: '\[E1\]' has the id 11\.0; it must be a unique integer"),
        ({ADDED: {"[E1]": True}}, r"added_tokens\.json: '\[E1\]' has the id True"),
        ({ADDED: {"": 11}}, r"added_tokens\.json: .* not a token"),
        ({ADDED: []}, r"added_tokens\.json: not a JSON object"),
        ({MAP: []}, r"special_tokens_map\.json: not a JSON object"),
        ({CONFIG: {"added_tokens_decoder": {"13": token("[E1]")}}}, r"tokenizer_config\.json: added token '\[E1\]'"),
        ({CONFIG: {"added_tokens_decoder": {"x": token("[E1]")}}}, r"tokenizer_config\.json: added_tokens_decoder is"),
        (
            {CONFIG: {"added_tokens_decoder": {"1" * 5000: token("x")}}},
            r"added_tokens_decoder is .* from ids to tokens",
        ),
        ({CONFIG: {"added_tokens_decoder": {"2147483648": token("x")}}}, r"added token 'x' has the id 2147483648"),
        ({CONFIG: {"added_tokens_decoder": ["[E1]"]}}, r"tokenizer_config\.json: added_tokens_decoder is"),
        ({CONFIG: {"added_tokens_decoder": {"11": {"content": 3}}}}, r"added_tokens_decoder has .* not a token"),
        ({CONFIG: {"added_tokens_decoder": {"11": token("x", lstrip=1)}}}, r"added_tokens_decoder has .* not a token"),
        ({CONFIG: {"additional_special_tokens": "[E1]"}}, r"must be a list of tokens"),
        ({CONFIG: {"additional_special_tokens": [3]}}, r"tokenizer_config\.json: .* has 3, which is not a token"),
        ({CONFIG: {"mask_token": 3}}, r"tokenizer_config\.json: mask_token has 3, which is not a token"),
        ({CONFIG: {"mask_token": "<mask>"}}, r"tokenizer_config\.json: mask_token is '<mask>'; it must be '\[MASK\]'"),
        ({CONFIG: {"unk_token": "a"}}, r"tokenizer_config\.json: unk_token is 'a'; it must be '\[UNK\]'"),
        ({CONFIG: {"pad_token": None}}, r"tokenizer_config\.json: pad_token is null; it must be '\[PAD\]'"),
        ({MAP: {"cls_token": token("<s>")}}, r"special_tokens_map\.json: cls_token is '<s>'; it must be '\[CLS\]'"),
        ({CONFIG: {"eos_token": "x" * 5000}}, r"added tokens of up to 5000 bytes"),
    ],
)
def test_added_tokens_that_transformers_would_number_otherwise_are_refused(folder, files, message):
    with pytest.raises(InputError, match=message):
        tokenizers.load_tokenizer(write(folder, files))


def test_an_added_token_beside_ids_with_holes_is_refused(folder):
    (folder / "vocab.txt").write_text("\n".join([*PIECES, "a", "last"]))
    assert ids(folder, "a last") == [11, 12]
    with pytest.raises(InputError, match=r"added_tokens\.json: '\[E1\]' and 'last' both have the id 12"):
        tokenizers.load_tokenizer(write(folder, {ADDED: {"[E1]": 12}}))


def test_another_mask_beside_tokenizer_json_is_refused_where_berts_would_be_used_instead(tmp_path, wordpiece, bpe):
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<mask>"}
    tokenizers.save_tokenizer(bpe, write(tmp_path, {CONFIG: config}))
    assert ids(tmp_path, "<mask>") == [tokenizers.vocabulary_size(bpe)]
    tokenizers.save_tokenizer(wordpiece, tmp_path)
    with pytest.raises(InputError, match=r"tokenizer_config\.json: mask_token is '<mask>'"):
        tokenizers.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "DistilBertTokenizer",
        "ElectraTokenizerFast",
        "RetriBertTokenizer",
        "ConvBertTokenizer",
        "DPRReaderTokenizerFast",
    ],
)
def test_classes_with_berts_clean_up_are_read_from_vocab_txt(folder, name):
    write(folder, {CONFIG: {"tokenizer_class": name, "do_lower_case": False}})
    assert ids(folder, "a A") == [5, 1]


OTHERS = ["BertJapaneseTokenizer", "BertGenerationTokenizer", "RobertaTokenizer", "RoCBertTokenizer"]
OTHERS += [
    "CamembertTokenizerFast",
    "HerbertTokenizer",
    "BertweetTokenizer",
    "PhobertTokenizer",
    "PreTrainedTokenizerFast",
]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("file", [CONFIG, "config.json"])
def test_other_classes_are_refused_with_vocabulary_files(folder, name, file):
    write(folder, {CONFIG: {"do_lower_case": False}, file: {"tokenizer_class": name}})
    with pytest.raises(InputError, match=rf"{file}: tokenizer_class '{name}' is not supported with vocab\.txt: "):
        tokenizers.load_tokenizer(folder)


def test_a_model_of_another_type_is_refused_with_vocabulary_files(gpt_folder):
    write(gpt_folder, {"config.json": {"model_type": "gpt2"}})
    with pytest.raises(InputError, match=r"config\.json: model_type 'gpt2' is not supported with vocab\.json"):
        tokenizers.load_tokenizer(gpt_folder)


def test_the_class_decides_between_two_vocabularies(folder, gpt_folder):
    assert ids(write(folder, {"config.json": {"model_type": "bert"}}), "low") == [1]
    assert ids(write(folder, {"config.json": {"model_type": "openai-gpt"}}), "low") == [5]
    with pytest.raises(InputError, match="'OpenAIGPTTokenizer' is not supported with vocab.txt"):
        tokenizers.load_tokenizer(write(folder, {CONFIG: {"tokenizer_class": "OpenAIGPTTokenizer"}}) / "vocab.txt")


def test_a_tokenizer_json_may_have_any_name(folder, bpe):
    write(folder, {CONFIG: {"tokenizer_class": "BertTokenizer"}})
    tokenizers.save_tokenizer(bpe, folder)
    (folder / "tokenizer.json").rename(folder / "mine.json")
    assert tokenizers.load_tokenizer(folder / "mine.json").to_str() == bpe.to_str()


@pytest.mark.parametrize(("name", "reads"), [("RobertaTokenizer", True), ("BertJapaneseTokenizer", False)])
def test_tokenizer_json_describes_itself_unless_its_class_ignores_it(tmp_path, bpe, name, reads):
    tokenizers.save_tokenizer(bpe, write(tmp_path, {CONFIG: {"tokenizer_class": name}}))
    if reads:
        assert tokenizers.load_tokenizer(tmp_path).to_str() == bpe.to_str()
    else:
        with pytest.raises(
            InputError, match=r"'BertJapaneseTokenizer' is not supported: it does not encode with tokenizer\.json"
        ):
            tokenizers.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("x \n y\nz\u00a0\nw\u3000\n", {"x": 5, " y": 6, "z": 7, "w": 8}),
        ("x\x1c\ny\u200b\nz\x85\n", {"x\x1c": 5, "y\u200b": 6, "z": 7}),
        ("x\n\ny\n \n", {"x": 5, "y": 7, "": 8}),
        ("x\ny\nx\nz", {"x": 7, "y": 6, "z": 8}),
        ("x\r\ny\rz\r\n", {"x": 5, "y\rz": 6}),
    ],
)
def test_vocab_txt_is_read_line_by_line_as_transformers_does(tmp_path, lines, expected):
    (tmp_path / "vocab.txt").write_bytes(("\n".join(tokenizers.BERT_SPECIAL) + "\n" + lines).encode())
    vocabulary = tokenizers.load_tokenizer(tmp_path).get_vocab()
    assert vocabulary == {piece: index for index, piece in enumerate(tokenizers.BERT_SPECIAL)} | expected


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_an_exported_folder_keeps_added_tokens(tmp_path, kind, wordpiece, bpe):
    tokenizer = Tokenizer.from_str((wordpiece if kind == "bert" else bpe).to_str())
    tokenizer.add_tokens([AddedToken("[E1]", lstrip=True, special=True), AddedToken("<X>", single_word=True)])
    tokenizers.export_tokenizer(tokenizer, tmp_path, 512)
    assert tokenizers.load_tokenizer(tmp_path).to_str() == tokenizer.to_str()
    (tmp_path / "tokenizer.json").unlink()
    again = tokenizers.load_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.get_added_tokens_decoder() == tokenizer.get_added_tokens_decoder()


def without_special(wordpiece: Tokenizer) -> Tokenizer:
    description = json.loads(wordpiece.to_str())
    description["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(description))


@pytest.mark.parametrize("change", ["special tokens are text", "a hole", "white space", "an added token before"])
def test_a_tokenizer_that_berts_class_would_read_otherwise_is_left_to_tokenizer_json(tmp_path, wordpiece, change):
    tokenizer = without_special(wordpiece) if change == "special tokens are text" else wordpiece
    vocabulary = dict(wordpiece.get_vocab())
    if change == "a hole":
        vocabulary["last"] = 202
        tokenizer = tokenizers.parse_tokenizer(wordpiece.to_str(), "here")
        tokenizer.model = models.WordPiece(vocabulary, unk_token="[UNK]")
        tokenizer.add_tokens(["[E1]"])
    elif change == "white space":
        tokenizer = tokenizers.parse_tokenizer(wordpiece.to_str(), "here")
        tokenizer.model = models.WordPiece(vocabulary | {"x ": 200}, unk_token="[UNK]")
    elif change == "an added token before":
        tokenizer = tokenizers.parse_tokenizer(wordpiece.to_str(), "here")
        tokenizer.add_tokens(["[E1]"])
        tokenizer.model = models.WordPiece(vocabulary | {"last": 201}, unk_token="[UNK]")
    tokenizers.export_tokenizer(tokenizer, tmp_path, 512)
    assert not (tmp_path / "vocab.txt").exists()
    settings = json.loads((tmp_path / CONFIG).read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert ("mask_token" in settings) == (change != "special tokens are text")
