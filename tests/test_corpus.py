"""Files to documents, and documents to sentences."""

import gzip
import json
import os

import pytest

from bertgpt.data import corpus, files
from bertgpt.errors import InputError


@pytest.fixture
def write(tmp_path):
    """Puts bytes or text under a name in the test's folder; a name that ends in .gz is compressed."""

    def write_file(name: str, content: str | bytes):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write_file


def read(path, **options) -> list[list[str]]:
    return list(corpus.read_documents(files.find_files(str(path)), **options))


def test_the_lines_of_a_plain_document_are_joined(write):
    assert read(write("a.txt", "  one two \nthree\r\nfour")) == [["one two three four"]]


@pytest.mark.parametrize("blank", ["\n\n", "\n\n\n\n", "\n \t\n", "\r\n\r\n"])
def test_a_blank_line_ends_a_document(write, blank):
    assert read(write("a.txt", f"\n\none{blank}two\n\n")) == [["one"], ["two"]]


def test_sentence_per_line_keeps_the_lines_apart(write):
    documents = read(write("a.txt", "One went. Two came.\nThree.\n\nFour.\n"), sentence_per_line=True)
    assert documents == [["One went. Two came.", "Three."], ["Four."]]
    assert corpus.split_sentences(documents[0], sentence_per_line=True) == ["One went. Two came.", "Three."]


def test_an_empty_file_has_no_document(write):
    assert read(write("a.txt", "\n \n")) == []


def test_jsonl_holds_a_document_a_line_under_the_key(write):
    path = write("a.jsonl", '{"body": "one\\n\\n two ", "text": "no"}\n\n{"body": "three"}\n"four"\n')
    assert read(path, text_key="body") == [["one", "two"], ["three"], ["four"]]


def test_the_text_key_defaults_to_text(write):
    assert read(write("a.jsonl", '{"text": "one", "body": "no"}\n')) == [["one"]]


@pytest.mark.parametrize(
    "value",
    [
        {"x": "one", "y": {"body": "two\nthree"}},
        ["one", {"body": "two\nthree"}],
    ],
)
def test_json_is_one_object_or_list_of_documents(write, value):
    assert read(write("a.json", json.dumps(value, indent=2)), text_key="body") == [["one"], ["two", "three"]]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.json.gz"])
def test_each_kind_may_be_compressed(write, name):
    content = {"a.txt.gz": "one", "a.jsonl.gz": '{"text": "one"}', "a.json.gz": '["one"]'}[name]
    assert read(write(name, content)) == [["one"]]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_byte_order_mark_is_not_text(write, name):
    content = {"a.txt": "one", "a.jsonl": '{"text": "one"}', "a.json": '["one"]'}[name]
    assert read(write(name, b"\xef\xbb\xbf" + content.encode())) == [["one"]]


def test_a_folder_gives_the_text_files_below_it_sorted(write, tmp_path):
    names = ["d/b.txt", "d/a.jsonl.gz", "d/deep/c.json", "d/A.TXT", "d/z.txt.gz"]
    for name in [*names, "d/no.md", "d/no.gz", "e/no.txt"]:
        write(name, "")
    assert files.find_files(str(tmp_path / "d")) == sorted(tmp_path / name for name in names)


def test_a_glob_gives_its_files_sorted(write, tmp_path):
    for name in ["b.txt", "a.txt", "c.md", "d/e.txt"]:
        write(name, "")
    (tmp_path / "folder.txt").mkdir()
    assert files.find_files(str(tmp_path / "*.txt")) == [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert tmp_path / "d/e.txt" in files.find_files(str(tmp_path / "**/*.txt"))


def test_a_list_keeps_its_order(write):
    paths = [write("b.txt", "one"), write("a.txt", "two")]
    found = files.find_files([str(path) for path in paths])
    assert found == paths
    assert list(corpus.read_documents(found)) == [["one"], ["two"]]


def test_a_single_file_of_any_name_is_plain_text(write):
    assert read(write("notes.md", "one\n\ntwo")) == [["one"], ["two"]]


def test_an_input_that_names_no_file_is_refused(write, tmp_path):
    good, bad = write("a.txt", "one"), tmp_path / "missing.txt"
    with pytest.raises(InputError, match=r"missing\.txt: no such file"):
        files.find_files([str(good), str(bad)])


def test_a_folder_without_text_files_is_refused(write, tmp_path):
    write("d/a.md", "one")
    with pytest.raises(InputError, match="no folder with"):
        files.find_files(str(tmp_path / "d"))


def test_a_package_file_is_found_without_an_import(write, tmp_path, monkeypatch):
    write("somepackage/__init__.py", "raise RuntimeError('imported')")
    path = write("somepackage/data/a.txt", "one")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert files.find_files("package:somepackage/data/a.txt") == [path]


@pytest.mark.parametrize("inner", ["../pyproject.toml", "data/../../pyproject.toml", "/etc/passwd", "missing.txt", ""])
def test_a_path_that_leaves_the_package_or_is_missing_is_refused(inner):
    with pytest.raises(InputError, match="package bertgpt has no such file"):
        files.find_files(f"package:bertgpt/{inner}")


@pytest.mark.parametrize("name", ["no_such_package", "no_such_package.inner", "..", ""])
def test_a_package_that_is_not_installed_is_refused(name):
    with pytest.raises(InputError, match="not installed"):
        files.find_files(f"package:{name}/a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.txt.gz"])
def test_a_byte_that_is_not_utf8_is_named_with_file_and_line(write, name):
    content = b'["one",\n"two",\n"thr\xe9e"]' if name == "a.json" else b'"one"\n"two"\n"thr\xe9e"\n'
    with pytest.raises(InputError, match=rf"{name} line 3: not UTF-8 \(byte 0xe9\)"):
        read(write(name, content))


def test_the_faulty_byte_is_named_after_a_byte_order_mark_too(write):
    with pytest.raises(InputError, match=r"a\.txt line 1: not UTF-8 \(byte 0xe9\)"):
        read(write("a.txt", b"\xef\xbb\xbfone \xe9 two"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_what_is_not_json_is_named_with_file_and_line(write, name):
    content = '["one",\n"two",\n,]' if name == "a.json" else '"one"\n\n{"text": \n'
    with pytest.raises(InputError, match=rf"{name} line 3: not JSON"):
        read(write(name, content))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("value", ["[" * 100_000, "[" + "1" * 5000 + "]"])
def test_json_that_python_cannot_hold_is_named_with_file_and_line(write, name, value):
    with pytest.raises(InputError, match=rf"{name} line 1"):
        read(write(name, value))


def test_a_json_file_of_another_value_is_refused(write):
    with pytest.raises(InputError, match=r"a\.json: holds one int"):
        read(write("a.json", "3"))


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", '{"text": "one"}\n{"body": "two", "id": 3}\n', r"a\.jsonl line 2"),
        ("a.json", '{"x": "one", "y": {"body": "two", "id": 3}}', r"a\.json document 'y'"),
        ("a.json", '["one", {"body": "two", "id": 3}]', r"a\.json document 1"),
    ],
)
def test_a_missing_key_is_named_with_its_place_and_the_keys_found(write, name, content, place):
    with pytest.raises(InputError, match=rf"{place}: no text under 'text' \(found keys body, id\)"):
        read(write(name, content))


def test_a_document_that_is_no_text_is_refused(write):
    with pytest.raises(InputError, match=r"line 1: no text under 'text' \(found list\)"):
        read(write("a.jsonl", "[1]\n"))


def test_half_a_surrogate_pair_is_no_text(write):
    with pytest.raises(InputError, match=r"a\.jsonl line 2"):
        read(write("a.jsonl", '"one"\n{"text": "\\ud800 two"}\n'))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.json.gz"])
def test_a_truncated_gzip_is_refused(write, name):
    path = write(name, json.dumps([os.urandom(3000).hex()]))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"{name}.*cannot be read"):
        read(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.json.gz"])
def test_a_damaged_gzip_is_refused(write, name):
    path = write(name, "one")
    path.write_bytes(path.read_bytes()[:10] + b"\xff" * 30)  # a sound header and then no deflate stream
    with pytest.raises(InputError, match=rf"{name}.*cannot be read"):
        read(path)


def test_a_run_of_lines_over_the_limit_becomes_several_documents(write, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_DOCUMENT", 7)
    path = write("a.txt", "aaaa\nbbbb\ncccc\n\ndd\nee\n")
    assert read(path) == [["aaaa bbbb"], ["cccc"], ["dd ee"]]
    assert read(path, sentence_per_line=True) == [["aaaa", "bbbb"], ["cccc"], ["dd", "ee"]]


def test_a_line_over_the_limit_is_refused(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 10)
    with pytest.raises(InputError, match=r"a\.txt line 2: longer than 10 bytes"):
        read(write("a.txt", "short\nfar too long\n"))


def test_a_json_file_over_the_limit_is_refused(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON", 10)
    with pytest.raises(InputError, match=r"a\.json: over 10 bytes"):
        read(write("a.json", '["far too long"]'))


def test_english_sentences_do_not_end_at_a_title():
    text = " Dr. Smith went home.  He slept! Did he? "
    assert corpus.split_sentences([text]) == ["Dr. Smith went home.", "He slept!", "Did he?"]


def test_chinese_sentences_end_without_a_space():
    assert corpus.split_sentences(["今天天气很好。我们去公园。"], "zh") == ["今天天气很好。", "我们去公园。"]


def test_the_language_decides_where_a_sentence_ends():
    text = "Am 3. Mai kam er. Sie lief."
    assert corpus.split_sentences([text], "de") == ["Am 3. Mai kam er.", "Sie lief."]
    assert corpus.split_sentences([text], "en") == ["Am 3.", "Mai kam er.", "Sie lief."]


def test_a_paragraph_ends_a_sentence():
    assert corpus.split_sentences(["A heading", "", "Some text."]) == ["A heading", "Some text."]
