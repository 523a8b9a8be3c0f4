"""Files of tokenizers that were made to do harm, or that are none."""

import base64
import json
import os
import re
import subprocess
import sys

import pytest
from tokenizer_folders import ADDED, CONFIG, LETTERS, MAP, PIECES, ids, token, write, write_berts, write_gpts
from tokenizers import Tokenizer, models

from bertgpt import tokenizers
from bertgpt.errors import InputError
from bertgpt.tokenizers import checks, loading


@pytest.fixture
def folder(tmp_path):
    return write_berts(tmp_path)


@pytest.fixture
def gpt_folder(tmp_path):
    return write_gpts(tmp_path)


def described(**changes) -> dict:
    """A tokenizer.json of PIECES with some of it changed."""
    vocabulary = {piece: index for index, piece in enumerate(PIECES)}
    return json.loads(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")).to_str()) | changes


def model_of(kind: str, **changes) -> dict:
    return described(model=json.loads(Tokenizer(getattr(models, kind)()).to_str())["model"] | changes)


def sequence(key: str, *steps: dict) -> dict:
    return {"type": "Sequence", key: list(steps)}


def template(*pieces: dict, **special: list[int]) -> dict:
    tokens = {name: {"id": name, "ids": numbers, "tokens": [name] * len(numbers)} for name, numbers in special.items()}
    return {"type": "TemplateProcessing", "single": list(pieces), "pair": [TEXT_A, TEXT_B], "special_tokens": tokens}


TEXT_A, TEXT_B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BETWEEN = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a"}
PREPEND = {"type": "Prepend", "prepend": "a" * 200}
LONG = base64.b64encode(b"\x08\0\0\0" + bytes(8) + b"x" * 100_000 + b"\0").decode()
HARMFUL = {  # each asks the library for gigabytes, or makes it abort: while it is read, encodes, decodes or is written
    "an id of the model": (model_of("WordPiece", vocab={"[UNK]": 0, "a": 2**31}), r"'a' has the id 2147483648"),
    "an id of BPE": (model_of("BPE", vocab={"a": 0, "b": 2**31}), r"'b' has the id 2147483648"),
    "an id of WordLevel": (model_of("WordLevel", vocab={"a": 2**32 - 1}), r"'a' has the id 4294967295"),
    "a large id": (model_of("WordPiece", vocab={"[UNK]": 0, "a": 100_000}), r"must be from 0 to 99999"),
    "a negative id": (model_of("WordPiece", vocab={"a": -1}), r"'a' has the id -1"),
    "an id that is none": (model_of("WordPiece", vocab={"a": 1.5}), r"'a' has the id 1.5"),
    "an id twice": (model_of("WordPiece", vocab={"a": 1, "b": 1}), r"'a' and 'b' both have the id 1"),
    "an added id": (
        described(added_tokens=[token("[E]") | {"id": 2**31}]),
        r"'\[E\]' has the id 2147483648, expected 11",
    ),
    "an added hole": (described(added_tokens=[token("[E]") | {"id": 12}]), r"'\[E\]' has the id 12, expected 11"),
    "a long added token": (described(added_tokens=[token("é" * 2049) | {"id": 11}]), r"up to 4098 bytes"),
    "many added tokens": (
        described(added_tokens=[token(f"{number:4000}") | {"id": 11 + number} for number in range(1100)]),
        r"4400000 together",
    ),
    "a long piece": (model_of("Unigram", vocab=[["u", 0.0], ["x" * 100_000, 0.0]], unk_id=0), r"over 4096 characters"),
    "an id of a frame": (
        described(post_processor={"type": "BertProcessing", "sep": ["[SEP]", 2**31], "cls": ["[CLS]", 2]}),
        r"post_processor gives the id 2147483648",
    ),
    "an id of a template": (
        described(post_processor=template({"SpecialToken": {"id": "a", "type_id": 0}}, a=[2**32 - 1])),
        r"post_processor gives the id 4294967295",
    ),
    "a text many times": (described(post_processor=template(*[TEXT_A] * 20_000)), r"2e\+04 times as long"),
    "an id many times": (
        described(post_processor=template(*[{"SpecialToken": {"id": "a", "type_id": 0}}] * 300, a=[5] * 300)),
        r"times as long",
    ),
    "templates of templates": (
        described(post_processor=sequence("processors", *[template(TEXT_A, TEXT_A)] * 40)),
        r"post_processor may make a text",
    ),
    "doubled 40 times": (described(normalizer=sequence("normalizers", *[DOUBLED] * 40)), r"1.1e\+12 times as long"),
    "doubled, nested": (
        described(normalizer=sequence("normalizers", sequence("normalizers", *[DOUBLED] * 20), *[DOUBLED] * 20)),
        r"times as long",
    ),
    "doubled, without a type": (
        described(normalizer={"normalizers": [{"pattern": {"String": "a"}, "content": "aa"}] * 40}),
        r"times as long",
    ),
    "doubled while decoding": (described(decoder=sequence("decoders", *[DOUBLED] * 40)), r"decoder may make a text"),
    "put between": (described(normalizer=sequence("normalizers", *[BETWEEN] * 40)), r"times as long"),
    "prepended": (described(normalizer=sequence("normalizers", *[PREPEND] * 2)), r"4.04e\+04 times as long"),
    "a long replacement": (
        described(normalizer={"type": "Precompiled", "precompiled_charsmap": LONG}),
        r"1e\+05 times",
    ),
    "compatibility there and back": (
        described(normalizer=sequence("normalizers", *[{"type": "NFKD"}, DOUBLED | {"content": "b"}] * 20)),
        r"times as long",
    ),
    "bytes of bytes": (
        described(
            pre_tokenizer=sequence(
                "pretokenizers",
                *[{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}] * 40,
            )
        ),
        r"normalizer and pre_tokenizer may make a text",
    ),
    "many steps": (described(normalizer=sequence("normalizers", *[{"type": "Nmt"}] * 200)), r"of 200 steps"),
}
CHILD = """
import json, resource, sys
from bertgpt import tokenizers
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
for name in json.load(sys.stdin):
    try:
        tokenizer = tokenizers.load_tokenizer(name)
        tokenizer.decode(tokenizer.encode("a é b").ids), tokenizer.to_str(), tokenizers.vocabulary_size(tokenizer)
        print(json.dumps("read"), flush=True)
    except tokenizers.loading.InputError as error:
        print(json.dumps(str(error)), flush=True)
"""


def test_files_that_ask_for_gigabytes_are_refused_in_one_line(tmp_path):
    files = []
    for name, (description, _) in HARMFUL.items():
        files.append(
            str(write(tmp_path, {f"{name.replace(' ', '_')}.json": description}) / f"{name.replace(' ', '_')}.json")
        )
    child = subprocess.run([sys.executable, "-c", CHILD], input=json.dumps(files), capture_output=True, text=True)
    found = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(found) == len(files), f"{files[len(found)]}: {child.stderr[-2000:]}"
    for file, (_, message), line in zip(files, HARMFUL.values(), found, strict=True):
        assert line.startswith(file), line
        assert re.search(message, line), line


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (LETTERS | {"x": 2**31}, r"vocab\.json: 'x' has the id 2147483648; it must be from 0 to 99999"),
        (LETTERS | {"x": 2**32}, r"vocab\.json: 'x' has the id 4294967296"),
        (LETTERS | {"x": 1}, r"vocab\.json: 'l' and 'x' both have the id 1"),
        (LETTERS | {"x": "7"}, r"vocab\.json: 'x' has the id '7'"),
        (LETTERS | {"x": [1] * 1000}, r"vocab\.json: 'x' has the id \[1, 1.{90,120}$"),
        ([], r"vocab\.json: not a JSON object"),
        ({"a": 0}, r"vocab\.json: no <unk>, which GPT-1 needs"),
    ],
)
def test_ids_of_vocab_json_are_checked_before_the_library_reads_them(gpt_folder, vocabulary, message):
    with pytest.raises(InputError, match=message):
        tokenizers.load_tokenizer(write(gpt_folder, {"vocab.json": vocabulary}))


def test_many_ids_may_be_as_sparse_as_generous_bounds_allow():
    checks.check_ids("here", {"a": 99_999})
    many = {str(index): index for index in range(20_000)}
    checks.check_ids("here", many | {"a": 160_007})
    with pytest.raises(InputError, match="'a' has the id 160008; it must be from 0 to 160007"):
        checks.check_ids("here", many | {"a": 160_008})


def test_lines_are_counted_before_the_library_makes_maps_of_them(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("it was read")

    monkeypatch.setattr(models, "WordPiece", type("WordPiece", (), {"read_file": fail}))
    monkeypatch.setattr(models, "BPE", type("BPE", (), {"from_file": fail}))
    monkeypatch.setattr(checks, "MAX_LINES", 10)
    with pytest.raises(InputError, match=r"vocab\.txt: over 10 lines; not a tokenizer"):
        tokenizers.load_tokenizer(write_berts(tmp_path) / "vocab.txt")
    (write_gpts(tmp_path) / "merges.txt").write_text("l o\n" * 11)
    with pytest.raises(InputError, match=r"merges\.txt: over 10 lines; not a tokenizer"):
        tokenizers.load_tokenizer(tmp_path / "vocab.json")


def test_values_of_tokenizer_json_are_counted_before_it_is_parsed(tmp_path, monkeypatch):
    text = json.dumps(described())
    count = sum(map(text.count, ",:[{"))
    monkeypatch.setattr(loading, "MAX_VALUES", count)
    tokenizers.parse_tokenizer(text, "here")
    monkeypatch.setattr(loading, "MAX_VALUES", count - 1)
    with pytest.raises(InputError, match=f"here: over {count - 1} commas, colons and brackets; not a tokenizer"):
        tokenizers.parse_tokenizer(text, "here")


NAMES = ["tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", CONFIG, MAP, ADDED, "config.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "broken link"])
def test_only_regular_files_are_read(folder, gpt_folder, name, kind):
    if name in ("vocab.json", "merges.txt"):
        (folder / "vocab.txt").unlink()
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("/dev/zero" if kind == "device" else "gone")
    with pytest.raises(InputError, match=rf"{re.escape(name)}: not a regular file"):
        tokenizers.load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", CONFIG, MAP, ADDED])
def test_huge_files_are_refused_unread(folder, gpt_folder, name):
    if name in ("vocab.json", "merges.txt"):
        (folder / "vocab.txt").unlink()
    with (folder / name).open("ab") as file:
        file.truncate(300_000_000)
    with pytest.raises(InputError, match=rf"{re.escape(name)}: over \d+ bytes"):
        tokenizers.load_tokenizer(folder)


@pytest.mark.parametrize(
    "data", [b"\xff\xfea\0\n\0", b"[PAD]\n\x80\n", b"a\n\0\n", b""], ids=["UTF-16", "bytes", "NUL", ""]
)
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "merges.txt"])
def test_what_is_no_text_is_refused_in_one_line(folder, gpt_folder, name, data):
    if name == "merges.txt":
        (folder / "vocab.txt").unlink()
    (folder / name).write_bytes(data)
    if (name, data) == ("merges.txt", b""):
        assert ids(folder, "lo") == [1, 0]  # a vocabulary of single characters needs no merges
        return
    with pytest.raises(InputError, match=rf"{re.escape(name)}: (not|no) ") as caught:
        tokenizers.load_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"model": 3}', "not a tokenizer"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "contains no tokens"),
        ('{"model": {"type": "WordPiece", "vocab": {"\\ud800": 0}}}', "not a tokenizer"),
        ("9" * 10_000, "not JSON"),
    ],
)
def test_a_tokenizer_json_of_another_form_is_one_line(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=rf"tokenizer\.json: .*{message}"):
        tokenizers.load_tokenizer(tmp_path)


def test_the_library_reads_what_was_checked_where_a_key_stands_twice():
    good, bad = json.dumps(described()), json.dumps(HARMFUL["doubled 40 times"][0]["normalizer"])
    twice = f'{{"normalizer": {bad}, {good[1:]}'
    assert tokenizers.parse_tokenizer(twice, "here").normalizer is None


def test_lengths_in_tokenizer_json_are_not_taken(tmp_path):
    padding = {"strategy": {"Fixed": 500}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    truncation = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 8}
    text = json.dumps(described(padding=padding | {"pad_to_multiple_of": 64}, truncation=truncation))
    (tmp_path / "tokenizer.json").write_text(text)
    tokenizer = tokenizers.load_tokenizer(tmp_path)
    assert (tokenizer.padding, tokenizer.truncation, tokenizer.encode("a").ids) == (None, None, [5])


CHARSMAP = base64.b64encode(b"\x08\0\0\0" + bytes(8) + "صلى الله عليه وسلم".encode() + b"\0").decode()
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
SANE = {
    "ALBERT's": described(
        model=model_of("Unigram", vocab=[["<unk>", 0.0], ["▁", -1.0], ["a", -1.0]], unk_id=0)["model"],
        normalizer=sequence(
            "normalizers",
            {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
            {"type": "Replace", "pattern": {"String": "''"}, "content": '"'},
            {"type": "NFKD"},
            {"type": "StripAccents"},
            {"type": "Lowercase"},
            {"type": "Precompiled", "precompiled_charsmap": CHARSMAP},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ),
        pre_tokenizer=METASPACE,
        decoder=METASPACE,
    ),
    "Llama's": described(
        model=model_of("BPE", vocab={"▁": 0, "a": 1, "▁a": 2}, merges=["▁ a"], byte_fallback=True)["model"],
        normalizer=sequence(
            "normalizers",
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ),
        decoder=sequence(
            "decoders",
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ),
        post_processor=template({"SpecialToken": {"id": "a", "type_id": 0}}, TEXT_A, a=[1]),
    ),
    "WordLevel": model_of("WordLevel", vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    | {"pre_tokenizer": {"type": "Whitespace"}},
}


@pytest.mark.parametrize("name", SANE)
def test_tokenizers_of_other_models_are_read(tmp_path, name):
    text = json.dumps(SANE[name])
    (tmp_path / "tokenizer.json").write_text(text)
    expected = Tokenizer.from_str(text)
    tokenizer = tokenizers.load_tokenizer(tmp_path)
    assert tokenizer.to_str() == expected.to_str()
    if name != "ALBERT's":  # whose map of characters is made up
        assert tokenizer.encode("a a").ids == expected.encode("a a").ids
        assert tokenizer.decode([0, 1]) == expected.decode([0, 1])


def test_a_panic_in_the_librarys_rust_is_one_line(tmp_path):
    broken = {"type": "Precompiled", "precompiled_charsmap": ""}
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer: Precompiled"):
        tokenizers.load_tokenizer(write(tmp_path, {"tokenizer.json": described(normalizer=broken)}))


def test_a_tokenizer_in_a_checkpoint_is_checked_too():
    text = json.dumps(HARMFUL["an id of the model"][0])
    with pytest.raises(InputError, match=r"^checkpoint 3: 'a' has the id 2147483648"):
        tokenizers.parse_tokenizer(text, "checkpoint 3")
