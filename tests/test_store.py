"""The token store: a corpus as memory-mapped token ids."""

import dataclasses
import gzip
import itertools
import json
import os

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from bertgpt.data.text import documents, integrity, store, workers
from bertgpt.data.text.documents import split_sentences
from bertgpt.data.text.text_source import TextSource
from bertgpt.errors import InputError
from bertgpt.tokenizers import load_tokenizer, train_bpe, train_wordpiece

WANTED = {"kind": "wordpiece", "vocab_size": 200}
SIZES = ("tokens.bin", "sentences.bin", "documents.bin", "counts.bin")


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def held_out(path, **options) -> set[str]:
    return {" ".join(text) for text in TextSource(str(path), **options).documents("eval")}


def write_lines(path, texts) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


@pytest.fixture
def source(tmp_path):
    """A training and an evaluation file of few documents."""
    (tmp_path / "train.txt").write_text("Ab cd. Ef gh ij.\n\nKl mn op.\n")
    (tmp_path / "eval.txt").write_text("Mn op ab.\n")
    return TextSource(str(tmp_path / "train.txt"), str(tmp_path / "eval.txt"))


@pytest.fixture
def folder(source, wordpiece, tmp_path):
    """The store of `source`."""
    store.prepare(tmp_path / "store", source, wordpiece, WANTED)
    return tmp_path / "store"


def test_neither_workers_nor_pieces_change_a_byte(corpus_file, wordpiece, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "TASK_BYTES", 1000)  # many pieces, more than may be under way at once
    text = TextSource(str(corpus_file), eval_fraction=0.1)
    assert len(list(workers.pieces(text.documents("train")))) > 8
    for count in (1, 2):
        store.prepare(tmp_path / str(count), text, wordpiece, WANTED, count)
    monkeypatch.undo()
    store.prepare(tmp_path / "whole", text, wordpiece, WANTED)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "whole")


def test_sentences_are_encoded_a_few_at_a_time(corpus_file, wordpiece, bert_split, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "BATCH", 3)
    store.prepare(tmp_path / "store", TextSource(str(corpus_file), eval_fraction=0.1), wordpiece, WANTED)
    split = store.open_split(tmp_path / "store", "train")
    for found, expected in zip(split, bert_split, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_each_document_holds_the_tokens_of_its_sentences(bert_split, wordpiece, corpus_file):
    texts = list(TextSource(str(corpus_file), eval_fraction=0.1).documents("train"))
    assert len(bert_split.documents) == len(texts) + 1
    for index, document in enumerate(texts):
        first, last = bert_split.documents[index : index + 2]
        ends = bert_split.sentences[first : last + 1]
        found = [bert_split.tokens[start:end].tolist() for start, end in itertools.pairwise(ends)]
        sentences = split_sentences(document)
        assert found == [wordpiece.encode(text, add_special_tokens=False).ids for text in sentences]


def test_bounds_run_from_0_to_the_end_without_an_empty_piece(bert_split):
    last = {"sentences": len(bert_split.tokens), "documents": len(bert_split.sentences) - 1}
    for name in last:
        bounds = getattr(bert_split, name)
        assert (bounds[0], bounds[-1]) == (0, last[name])
        assert (np.diff(bounds) > 0).all()
        assert bounds.dtype == np.dtype("<i8")


def test_the_bounds_of_a_small_corpus(folder, wordpiece):
    split = store.open_split(folder, "train")
    lengths = [len(wordpiece.encode(text, add_special_tokens=False)) for text in ("Ab cd.", "Ef gh ij.", "Kl mn op.")]
    assert split.sentences.tolist() == [0, *np.cumsum(lengths)]
    assert split.documents.tolist() == [0, 2, 3]


def test_text_bytes_counts_utf8_without_the_space_between_sentences(wordpiece, tmp_path):
    (tmp_path / "a.txt").write_text("Ab é.   Cd.\n\n中。\n", encoding="utf-8")
    store.prepare(tmp_path / "store", TextSource(*[str(tmp_path / "a.txt")] * 2), wordpiece, WANTED)
    assert store.open_split(tmp_path / "store", "train").text_bytes == len("Ab é.".encode()) + 3 + len("中。".encode())


def test_counts_say_how_often_each_id_occurs(bert_split, wordpiece):
    expected = np.bincount(bert_split.tokens, minlength=wordpiece.get_vocab_size())
    np.testing.assert_array_equal(bert_split.counts, expected)


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_an_id_is_as_wide_as_the_vocabulary_needs(source, wordpiece, tmp_path, size, dtype):
    wide = wordpiece.from_str(wordpiece.to_str())
    wide.add_tokens([f"extra{index}" for index in range(size - 1 - wide.get_vocab_size())] + ["Kl mn op"])
    store.prepare(tmp_path / "store", source, wide, WANTED)
    split = store.open_split(tmp_path / "store", "train")
    assert split.tokens.dtype == dtype
    assert split.tokens.max() == size - 1


@pytest.mark.parametrize(("train", "special"), [(train_wordpiece, 5), (train_bpe, 1)])
def test_a_special_token_spelt_in_the_text_is_text(source, tmp_path, train, special):
    spelt = "Ab [SEP] cd [MASK] [CLS][PAD] [UNK] <unk> ef."
    (tmp_path / "train.txt").write_text(spelt)
    tokenizer = train([spelt.lower()], 100)
    store.prepare(tmp_path / "store", source, tokenizer, WANTED)
    tokens = store.open_split(tmp_path / "store", "train").tokens.tolist()
    assert min(tokens) >= special
    assert tokenizer.decode(tokens).replace(" ", "") == spelt.lower().replace(" ", "")


def test_padding_and_truncation_of_a_tokenizer_do_not_reach_the_store(source, wordpiece, folder, tmp_path):
    altered = wordpiece.from_str(wordpiece.to_str())
    altered.enable_padding(length=50)
    altered.enable_truncation(3)
    store.prepare(tmp_path / "altered", source, altered, WANTED)
    assert contents(tmp_path / "altered/train") == contents(folder / "train")


def test_a_sentence_that_cleans_up_to_nothing_leaves_no_trace(source, wordpiece, folder, tmp_path):
    (tmp_path / "train.txt").write_text("Ab cd. Ef gh ij.\n\n\x01\n\nKl mn op.\n")
    store.prepare(tmp_path / "other", source, wordpiece, WANTED)
    for name in SIZES:
        assert (tmp_path / "other/train" / name).read_bytes() == (folder / "train" / name).read_bytes()


def test_the_held_out_documents_and_the_others_make_the_corpus(tmp_path):
    texts = [f"document {number}" for number in range(4000)]
    write_lines(tmp_path / "a.jsonl", texts)
    train = {" ".join(text) for text in TextSource(str(tmp_path / "a.jsonl"), eval_fraction=0.1).documents("train")}
    evaluation = held_out(tmp_path / "a.jsonl", eval_fraction=0.1)
    assert not train & evaluation
    assert train | evaluation == set(texts)
    assert abs(len(evaluation) - 400) < 80  # four standard deviations


def test_one_document_in_a_hundred_is_held_out_by_default(tmp_path):
    write_lines(tmp_path / "a.jsonl", [f"document {number}" for number in range(10_000)])
    assert abs(len(held_out(tmp_path / "a.jsonl")) - 100) < 40


def test_order_and_files_do_not_change_what_is_held_out(tmp_path):
    texts = [f"document {number}" for number in range(300)]
    write_lines(tmp_path / "a.jsonl", texts)
    write_lines(tmp_path / "b.jsonl", texts[200:] + texts[100:200])
    (tmp_path / "c.txt").write_text("\n\n".join(texts[:100]))
    expected = held_out(tmp_path / "a.jsonl", eval_fraction=0.2)
    assert held_out(tmp_path / "[bc].*", eval_fraction=0.2) == expected


TEXTS = st.lists(st.text("ab .\n", max_size=40), min_size=1, max_size=6)


@given(TEXTS, st.sampled_from([3, 1000]))
def test_whatever_a_document_is_the_tokens_are_those_of_the_files(tmp_path_factory, wordpiece, texts, most):
    folder = write_texts(tmp_path_factory, texts)
    worker = workers.Worker(wordpiece.to_str(), "en", True, False, "<u2")
    expected = np.array(wordpiece.encode("\n".join(texts), add_special_tokens=False).ids, "<u2").tobytes()
    for document in ("paragraph", "file", "line"):
        source = TextSource(str(folder), eval=str(folder), document=document)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(documents, "MAX_DOCUMENT", most)
            assert worker(list(source.documents("train"))).tokens == expected


@given(TEXTS)
@example(["a. b.\n\nb b b b. a a", "a. b.\n\nb a", "a", "b", "a\na", "a a"])
def test_no_file_is_on_both_sides_and_equal_files_are_on_one(tmp_path_factory, texts):
    folder = write_texts(tmp_path_factory, [*texts, *texts])
    source = TextSource(str(folder), eval_fraction=0.5, document="file")
    files = source.files().train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "MAX_DOCUMENT", 3)  # most files become several documents
        sides = [[split for split in ("train", "eval") if list(source._split_file(path, split))] for path in files]
        whole = [text for path in files for text in source._read([path])]
        found = [text for split in ("train", "eval") for text in source.documents(split)]
    assert all(len(side) == bool(text.split()) for side, text in zip(sides, [*texts, *texts], strict=True))
    assert sides[: len(texts)] == sides[len(texts) :]
    assert sorted(found) == sorted(whole)


def write_texts(tmp_path_factory, texts):
    """A folder with one file for each text."""
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(texts):
        (folder / f"{number:02d}.txt").write_text(text)
    return folder


def test_files_are_held_out_by_the_text_they_begin_with(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT", 3)
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"{number} x y\n\nz\n")
        (tmp_path / f"{number}.txt.gz").write_bytes(gzip.compress(f"{number} x y\n\nanother end".encode()))
    evaluation = held_out(tmp_path, eval_fraction=0.3, document="file")
    begun = {text for text in evaluation if text.endswith("y")}
    assert 4 < len(begun) < 24
    found = list(TextSource(str(tmp_path), eval_fraction=0.3, document="file").documents("eval"))
    assert found.count(["z"]) == found.count(["another end"]) == len(begun)


def test_a_given_evaluation_text_takes_nothing_from_training(source):
    assert list(source.documents("train")) == [["Ab cd. Ef gh ij."], ["Kl mn op."]]
    assert list(source.documents("eval")) == [["Mn op ab."]]


def test_a_missing_store_is_named(source, tmp_path):
    assert store.stale_reason(tmp_path / "none", source, WANTED) == "not found"
    with pytest.raises(InputError, match=r"meta\.json: not a token store"):
        store.open_split(tmp_path / "none", "train")


def test_the_same_text_settings_and_tokenizer_are_no_change(source, folder):
    assert store.stale_reason(folder, source, dict(WANTED)) is None
    listed = TextSource((source.train,), (source.eval,))
    store.prepare(folder, listed, load_tokenizer(folder), WANTED)
    assert store.stale_reason(folder, listed, WANTED) is None  # a tuple is read back as a list


def test_a_touched_file_is_no_change(source, folder):
    os.utime(source.train, ns=(1, 1))
    assert store.stale_reason(folder, source, WANTED) is None


@pytest.mark.parametrize("name", ["train", "eval"])
@pytest.mark.parametrize("text", ["Another and longer text than before.\n", None])
def test_changed_content_is_named(source, folder, tmp_path, name, text):
    path = tmp_path / f"{name}.txt"
    path.write_text(text or path.read_text().replace("op", "po"))  # None: as many bytes as before
    os.utime(path, ns=(1, 1))
    assert store.stale_reason(folder, source, WANTED) == f"{path} changed"


def test_a_file_that_goes_away_after_it_was_listed_is_named(source, folder, wordpiece, tmp_path, monkeypatch):
    listed = source.files()
    monkeypatch.setattr(TextSource, "files", lambda self: listed)
    listed.eval[0].unlink()
    with pytest.raises(InputError, match=r"eval\.txt: cannot be read: .*No such file"):
        store.stale_reason(folder, source, WANTED)
    with pytest.raises(InputError, match=r"eval\.txt: cannot be read: .*No such file"):
        store.prepare(tmp_path / "new", source, wordpiece, WANTED)
    monkeypatch.setattr(store, "stamp", lambda path: (1, 1))  # it goes between its size and its content
    with pytest.raises(InputError, match=r"eval\.txt: cannot be read: .*No such file"):
        store.prepare(tmp_path / "new", source, wordpiece, WANTED)


def test_the_changed_content_of_an_address_is_named(source, wordpiece, tmp_path):
    address = dataclasses.replace(source, train=f"file://{source.train}")
    store.prepare(tmp_path / "store", address, wordpiece, WANTED)
    assert store.stale_reason(tmp_path / "store", address, WANTED) is None
    raw = (tmp_path / "train.txt").read_text()
    os.utime(source.train, ns=(1, 1))
    assert store.stale_reason(tmp_path / "store", address, WANTED) is None
    (tmp_path / "train.txt").write_text(raw.replace("op", "po"))
    os.utime(source.train, ns=(2, 2))
    assert store.stale_reason(tmp_path / "store", address, WANTED) == f"{address.train} changed"


def test_an_address_without_a_tag_is_read_to_see_whether_it_changed(source, wordpiece, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "stamp", lambda path: (path.stat().st_size, None))
    store.prepare(folder, source, wordpiece, WANTED)
    assert store.stale_reason(folder, source, WANTED) is None
    path = tmp_path / "train.txt"
    path.write_text(path.read_text().replace("op", "po"))
    assert store.stale_reason(folder, source, WANTED) == f"{path} changed"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_key", "body"),
        ("language", "zh"),
        ("sentence_per_line", True),
        ("document", "line"),
        ("eval_fraction", 0.5),
        ("eval", None),
    ],
)
def test_a_changed_setting_is_named(source, folder, key, value):
    assert store.stale_reason(folder, dataclasses.replace(source, **{key: value}), WANTED) == f"{key} changed"


def test_a_store_without_the_key_document_is_of_paragraphs(source, folder, wordpiece, tmp_path):
    assert "document" not in json.loads((folder / "meta.json").read_text())["identity"]
    for document in ("file", "line"):
        other = dataclasses.replace(source, document=document)
        store.prepare(tmp_path / document, other, wordpiece, WANTED)
        assert store.stale_reason(tmp_path / document, other, WANTED) is None
        assert store.stale_reason(tmp_path / document, source, WANTED) == "document changed"


def test_another_tokenizer_is_named(source, folder):
    assert store.stale_reason(folder, source, {**WANTED, "vocab_size": 201}) == "tokenizer changed"


def test_another_format_is_named(source, folder, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    assert store.stale_reason(folder, source, WANTED) == "format changed"


def test_a_new_file_under_the_same_glob_is_named(source, wordpiece, tmp_path):
    globbed = dataclasses.replace(source, train=str(tmp_path / "t*.txt"))
    store.prepare(tmp_path / "store", globbed, wordpiece, WANTED)
    (tmp_path / "two.txt").write_text("more")
    assert store.stale_reason(tmp_path / "store", globbed, WANTED) == "the list of input files changed"


@pytest.mark.parametrize("name", SIZES)
def test_hashes_see_a_changed_bit(folder, name):
    assert store.fault(folder) is None
    path = folder / "eval" / name
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert store.fault(folder) == f"eval/{name} is missing or changed"


@pytest.mark.parametrize(
    ("name", "ends"), [("sentences", [1, 5]), ("sentences", [0, 4]), ("documents", [0, 5]), ("documents", [0, -1])]
)
def test_bounds_that_do_not_rise_to_the_end_are_named(folder, name, ends):
    (folder / "eval" / f"{name}.bin").write_bytes(np.array(ends, "<i8").tobytes())
    with pytest.raises(InputError, match=rf"eval/{name}\.bin: damaged \(bounds must rise from 0 to [17]\)"):
        store.open_split(folder, "eval")


def test_bounds_that_fall_between_two_blocks_are_named(folder, monkeypatch):
    monkeypatch.setattr(integrity, "BLOCK", 1)
    split = store.open_split(folder, "train")
    assert len(split.sentences) == 4
    (folder / "train/sentences.bin").write_bytes(np.array([0, 9, 9, split.sentences[-1]], "<i8").tobytes())
    with pytest.raises(InputError, match=r"train/sentences\.bin: damaged"):
        store.open_split(folder, "train")


def test_counts_that_are_not_those_of_the_tokens_are_named(folder):
    path = folder / "train" / "counts.bin"
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(InputError, match=r"train/counts\.bin: damaged"):
        store.open_split(folder, "train")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("identity", None),
        ("tokenizer", 3),
        ("files", [{"path": "a"}]),
        ("files", "abc"),
        ("dtype", "object"),
        ("vocab_size", 2**40),
        ("vocab_size", True),
        ("splits", {"train": {}}),
        ("splits", {"train": {"tokens": "9"}}),
        ("hashes", {"../secret": ""}),
        ("hashes", []),
    ],
)
def test_a_meta_file_of_other_types_is_named(source, folder, key, value):
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=rf"meta\.json: damaged \(.*({key}|train).*\); delete the folder"):
        store.stale_reason(folder, source, WANTED)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("change", ["cut", "long", "missing"])
def test_a_damaged_file_is_named(folder, name, change):
    found = "missing" if change == "missing" else r"damaged \([0-9]+ bytes, expected [0-9]+\)"
    path = folder / "train" / name
    raw = path.read_bytes()
    path.unlink() if change == "missing" else path.write_bytes(raw[:-2] if change == "cut" else raw + b"\0\0")
    with pytest.raises(InputError, match=rf"train/{name}: {found}; delete its store"):
        store.open_split(folder, "train")


def test_a_damaged_meta_file_is_named(source, folder):
    (folder / "meta.json").write_text("{")
    with pytest.raises(InputError, match=r"meta\.json: not a token store"):
        store.stale_reason(folder, source, WANTED)


@pytest.mark.parametrize(("name", "key"), [("train", r"data\.train"), ("eval", r"data\.eval")])
def test_a_corpus_without_text_is_refused_and_leaves_nothing(source, wordpiece, tmp_path, name, key):
    (tmp_path / f"{name}.txt").write_text("\n \x01\n")
    with pytest.raises(InputError, match=rf"{key}: .*{name}\.txt contains no text"):
        store.prepare(tmp_path / "out/store", source, wordpiece, WANTED)
    assert list((tmp_path / "out").iterdir()) == []


def test_too_few_documents_to_hold_out_are_refused(source, wordpiece, tmp_path):
    with pytest.raises(InputError, match=r"too few documents to hold 1\.00% out"):
        store.prepare(tmp_path / "out/store", dataclasses.replace(source, eval=None), wordpiece, WANTED)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("document", "advice"),
    [
        ("paragraph", "or separate the documents with blank lines"),
        ("file", r"or set data\.document=paragraph, since with data\.document=file each file is one document"),
        ("line", "or give more text"),
    ],
)
def test_too_few_documents_are_refused_with_what_helps(source, wordpiece, tmp_path, document, advice):
    few = dataclasses.replace(source, eval=None, document=document)
    with pytest.raises(InputError, match=rf"give data\.eval, raise data\.eval_fraction, {advice}$"):
        store.prepare(tmp_path / "store", few, wordpiece, WANTED)


def test_holding_everything_out_is_refused(source, wordpiece, tmp_path):
    whole = dataclasses.replace(source, eval=None, eval_fraction=0.9999, document="file")
    with pytest.raises(InputError, match=r"data\.eval_fraction: holding 99\.99% out leaves no document to train on"):
        store.prepare(tmp_path / "store", whole, wordpiece, WANTED)


def test_a_failure_keeps_the_old_store(source, wordpiece, folder, tmp_path):
    before = contents(folder)
    (tmp_path / "eval.txt").write_text("")
    with pytest.raises(InputError):
        store.prepare(folder, source, wordpiece, WANTED)
    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.txt", "store", "train.txt"]


def test_a_new_store_replaces_the_old_one(source, wordpiece, folder, tmp_path):
    (folder / "stale").write_text("")
    (tmp_path / "train.txt").write_text("Kl mn.")
    store.prepare(folder, source, wordpiece, WANTED)
    assert store.open_split(folder, "train").documents.tolist() == [0, 1]
    assert sorted(path.name for path in folder.iterdir()) == ["eval", "meta.json", "tokenizer.json", "train"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.txt", "store", "train.txt"]


def test_the_digest_follows_the_content_alone(source, wordpiece, folder, tmp_path):
    before = store.digest(folder)
    os.utime(source.train, ns=(1, 1))
    store.prepare(folder, source, wordpiece, WANTED)
    assert store.digest(folder) == before
    (tmp_path / "train.txt").write_text("Kl mn op.\n\nAb cd. Ef gh ij.\n")
    store.prepare(folder, source, wordpiece, WANTED)
    assert store.digest(folder) != before


def test_the_tokenizer_is_kept_with_the_store(folder, wordpiece):
    assert (folder / "tokenizer.json").read_text(encoding="utf-8") == wordpiece.to_str(pretty=True)
