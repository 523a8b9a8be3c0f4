"""Files to documents, and documents to sentences."""

import gzip
import io
import json
import os
import sys
import zipfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed_files import PACK, write_packed

from bertgpt.data.text import documents, files, parquet
from bertgpt.data.text.documents import read_documents, split_sentences
from bertgpt.errors import InputError


@pytest.fixture
def write(tmp_path):
    """Puts bytes or text under a name in the test's folder, compressed where the name says so."""
    return lambda name, content: write_packed(tmp_path / name, content)


def table(**columns) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, row_group_size=2)
    return stream.getvalue()


def read(path, **options) -> list[list[str]]:
    return list(read_documents(files.find_files(str(path)), **options))


def test_the_lines_of_a_plain_document_are_joined(write):
    assert read(write("a.txt", "  one two \nthree\r\nfour")) == [["one two three four"]]


@pytest.mark.parametrize("blank", ["\n\n", "\n\n\n\n", "\n \t\n", "\r\n\r\n"])
def test_a_blank_line_ends_a_document(write, blank):
    assert read(write("a.txt", f"\n\none{blank}two\n\n")) == [["one"], ["two"]]


def test_sentence_per_line_keeps_the_lines_apart(write):
    documents = read(write("a.txt", "One went. Two came.\nThree.\n\nFour.\n"), sentence_per_line=True)
    assert documents == [["One went. Two came.", "Three."], ["Four."]]
    assert split_sentences(documents[0], sentence_per_line=True) == ["One went. Two came.", "Three."]


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


def test_parquet_holds_a_document_a_row_in_the_column(write, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS", 2)
    path = write("a.parquet", table(id=[1, 2, 3], body=["one\n\n two ", "three", "four"]))
    assert read(path, text_key="body") == [["one", "two"], ["three"], ["four"]]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_kind_of_text_column_is_read(write, kind):
    assert read(write("a.parquet", table(text=pa.array(["one", "two"]).cast(kind)))) == [["one"], ["two"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(id=[1], body=["one"]), r"a\.parquet: no column 'text' \(found id, body\); set data\.text_key"),
        (table(text=["one", "two", None]), r"a\.parquet row 3: no text under 'text' \(found NoneType\)"),
        (table(text=[1, 2]), r"a\.parquet row 1: no text under 'text' \(found int\)"),
        (table(text=[b"one"]), r"a\.parquet row 1: no text under 'text' \(found bytes\)"),
        (b'{"text": "one"}', r"a\.parquet: cannot be read as Parquet"),
        (table(text=["one"])[:-9], r"a\.parquet: cannot be read as Parquet"),
    ],
)
def test_parquet_without_text_in_every_row_is_refused(write, content, message):
    with pytest.raises(InputError, match=message):
        read(write("a.parquet", content))


class Shelf(fsspec.AbstractFileSystem):
    """Files that are fetched by ranges, as those of a cloud's store are."""

    protocol = "shelf"
    held: dict[str, bytes] = {}  # noqa: RUF012

    def ls(self, path, detail=True, **_):
        inside = [name for name in self.held if f"{name}/".startswith(f"{path}/".lstrip("/"))]
        found = [{"name": name, "size": len(self.held[name]), "type": "file", "ETag": f"v{name}"} for name in inside]
        return found if detail else inside

    def _open(self, path, mode="rb", **options):
        return Book(self, path, mode, **options)


class Book(fsspec.spec.AbstractBufferedFile):
    def _fetch_range(self, start, end):
        return self.fs.held[self.path][start:end]


@pytest.fixture
def shelf(monkeypatch):
    """The files of shelf://, by name."""
    held = {
        "box/a.jsonl": b'{"text": "one"}\n\n{"text": "two"}\n',
        "box/b.txt.gz": gzip.compress(b"three\nfour\n\nfive"),
        "box/c.parquet": table(text=["six", "seven", "eight"]),
        "box/d.json": b'["nine"]',
        "box/e.md": b"no",
        **{f"tar/{i}.txt{ending}": pack(b"one\ntwo\n\n%d" % i) for i, (ending, pack) in enumerate(PACK.items())},
    }
    monkeypatch.setattr(Shelf, "held", held)
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    return held


def test_every_kind_is_read_from_an_address(shelf):
    found = files.find_files("shelf://box")
    assert found == [f"shelf://{name}" for name in shelf if name.startswith("box") and not name.endswith("md")]
    texts = [["one"], ["two"], ["three four"], ["five"], ["six"], ["seven"], ["eight"], ["nine"]]
    assert list(read_documents(found)) == texts


def test_every_compression_is_read_from_an_address(shelf):
    found = files.find_files("shelf://tar")
    assert found == [f"shelf://tar/{i}.txt{ending}" for i, ending in enumerate(PACK)]
    assert list(read_documents(found)) == [[text] for i in range(4) for text in ("one two", str(i))]
    shelf["tar/4.parquet.zst"] = PACK[".zst"](table(text=["six", "seven"]))
    assert read("shelf://tar/*.parquet.zst") == [["six"], ["seven"]]
    assert files.stamp(found[3]) == (len(shelf["tar/3.txt.zst"]), "vtar/3.txt.zst")  # of the file as it is


def test_an_address_may_be_a_file_or_a_glob(shelf):
    assert files.find_files("shelf://box/e.md") == ["shelf://box/e.md"]
    assert files.find_files(["shelf://box/*.json*", "shelf://box/a*"]) == [
        "shelf://box/a.jsonl",
        "shelf://box/d.json",
        "shelf://box/a.jsonl",
    ]


def test_a_line_of_an_address_is_bounded_too(shelf, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 8)
    with pytest.raises(InputError, match=r"shelf://box/a\.jsonl line 1: longer than 8 bytes"):
        read("shelf://box/a.jsonl")


def test_an_address_has_size_and_tag(shelf):
    assert files.stamp("shelf://box/d.json") == (8, "vbox/d.json")


def test_the_memory_of_fsspec_is_read(request):
    memory = fsspec.filesystem("memory")
    request.addfinalizer(memory.store.clear)
    memory.pipe("/folder/a.txt", b"one\n\ntwo")
    memory.pipe("/folder/b.txt/c.md", b"in a folder whose name is that of a text")
    assert read("memory://folder") == read("memory://folder/*.txt") == [["one"], ["two"]]
    size, first = files.stamp("memory://folder/a.txt")
    memory.pipe("/folder/a.txt", b"one\n\nwto")
    assert (size, first) != files.stamp("memory://folder/a.txt")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("shelf://none", r"shelf://none: no such file, and no folder with \.txt, \.jsonl, \.json, \.parquet files"),
        ("shelf://box/*.csv", r"shelf://box/\*\.csv: no such file"),
        ("shelf://a::box", r"shelf://a::box: chained addresses \(::\) are not supported; unpack the file"),
        ("shelf://*::box", r"shelf://\*::box: chained addresses \(::\) are not supported"),
        ("nowhere://box", "nowhere://box: this file system is not available: Protocol not known: nowhere"),
    ],
)
def test_an_address_without_files_is_refused(shelf, address, message):
    with pytest.raises(InputError, match=message):
        files.find_files(address)


def test_an_address_that_cannot_be_listed_is_refused(shelf, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no credentials")

    monkeypatch.setattr(Shelf, "ls", fail)
    with pytest.raises(InputError, match=r"shelf://box/\*: cannot be listed: no credentials"):
        files.find_files("shelf://box/*")


def test_a_file_in_an_archive_is_refused_by_the_archives_address(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "one")
    for name in ("a.txt", "*.txt", ""):
        with pytest.raises(InputError, match=r"x\.zip: chained addresses \(::\) are not supported"):
            files.find_files(f"zip://{name}::{tmp_path}/x.zip")


@pytest.mark.parametrize("method", ["info", "_open", "fetch"])
@pytest.mark.parametrize("suffix", ["txt", "json", "parquet", "txt.gz"])
def test_a_fault_of_an_addresss_own_kind_is_one_line(shelf, monkeypatch, method, suffix):
    class OwnError(Exception):
        pass

    def fail(*_, **__):
        raise OwnError("no credentials")

    address = f"shelf://box/one.{suffix}"
    shelf[f"box/one.{suffix}"] = b"x" * 100
    monkeypatch.setattr(Book if method == "fetch" else Shelf, "_fetch_range" if method == "fetch" else method, fail)
    with pytest.raises(InputError, match=rf"one\.{suffix}.*: .*no credentials"):
        list(read_documents([address]))
    if method == "info":
        with pytest.raises(InputError, match=rf"one\.{suffix}: cannot be read: no credentials"):
            files.stamp(address)


def test_a_file_system_that_cannot_be_made_is_refused(shelf, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no credentials")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(InputError, match="shelf://box: its file system cannot be used: no credentials"):
        files.find_files("shelf://box")


@pytest.mark.parametrize(
    ("missing", "address", "message"),
    [
        ("fsspec", "memory://a", r"memory://a: reading an address needs fsspec: pip install 'bertgpt\[scale\]'"),
        ("gcsfs", "gs://a/b", "gs://a/b: this file system is not available: .*gcsfs"),
        ("pyarrow.parquet", None, r"a\.parquet: reading Parquet needs pyarrow"),
    ],
)
def test_a_package_that_reading_needs_is_named(write, monkeypatch, missing, address, message):
    path = write("a.parquet", table(text=["one"]))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=message):
        read(address or path)


@pytest.mark.parametrize("ending", [*PACK, ".Gz", ".XZ"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "one"), ("a.jsonl", '{"text": "one"}'), ("a.json", '["one"]'), ("a.parquet", table(text=["one"]))],
)
def test_each_kind_may_be_compressed(write, name, content, ending):
    path = write(name + ending, content)
    assert files.kind(path) == f".{name.split('.')[1]}"
    assert read(path) == [["one"]]


@pytest.mark.parametrize(("ending", "pack"), PACK.items())
def test_compressed_streams_may_follow_each_other(tmp_path, ending, pack):
    """As when compressed files are joined, or compressed on several cores."""
    (tmp_path / f"a.txt{ending}").write_bytes(pack(b"one\n\ntw") + pack(b"") + pack(b"o\n\n" + b"three " * 50_000))
    assert read(tmp_path / f"a.txt{ending}") == [["one"], ["two"], [("three " * 50_000).strip()]]


def test_an_xz_may_be_filled_up_with_zeros(tmp_path):
    packed = PACK[".xz"](b"one\n\n")
    (tmp_path / "a.txt.xz").write_bytes(packed + bytes(8) + packed + bytes(1 << 18) + packed)
    assert read(tmp_path / "a.txt.xz") == [["one"]] * 3


def test_without_its_package_zst_is_refused(write, monkeypatch):
    path = write("a.txt.zst", "one")
    for name in ("backports", "compression"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"a\.txt\.zst: reading \.zst needs backports\.zstd: pip install 'bertgpt\["):
        read(path)
    assert read(write("a.txt.gz", "one")) == [["one"]]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_byte_order_mark_is_not_text(write, name):
    content = {"a.txt": "one", "a.jsonl": '{"text": "one"}', "a.json": '["one"]'}[name]
    assert read(write(name, b"\xef\xbb\xbf" + content.encode())) == [["one"]]


def test_a_folder_gives_the_text_files_below_it_sorted(write, tmp_path):
    names = ["d/b.txt", "d/a.jsonl.gz", "d/deep/c.json", "d/A.TXT", "d/e.parquet", "d/z.txt.gz"]
    names += ["d/f.json.zst", "d/g.txt.bz2", "d/h.parquet.xz"]
    for name in [*names, "d/no.md", "d/no.gz", "d/no.md.zst", "e/no.txt"]:
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
    assert list(read_documents(found)) == [["one"], ["two"]]


def test_a_single_file_of_any_name_is_plain_text(write):
    assert read(write("notes.md", "one\n\ntwo")) == [["one"], ["two"]]


def test_an_input_that_names_no_file_is_refused(write, tmp_path):
    good, bad = write("a.txt", "one"), tmp_path / "missing.txt"
    with pytest.raises(InputError, match=r"missing\.txt: no such file"):
        files.find_files([str(good), str(bad)])


def test_a_folder_without_text_files_is_refused(write, tmp_path):
    write("d/a.md", "one")
    with pytest.raises(InputError, match="the folder has no .txt"):
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


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", *(f"a.txt{ending}" for ending in PACK)])
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
    with pytest.raises(InputError, match=r"a\.json: contains one int"):
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


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("keep", [20, 1000, -1])
def test_a_compressed_file_cut_short_is_refused(write, name, ending, keep):
    path = write(name + ending, json.dumps(os.urandom(3000).hex()))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=rf"{name}{ending}.*cannot be read: \S"):
        read(path)


@pytest.mark.parametrize("name", ["a.txt", "a.json"])
@pytest.mark.parametrize("ending", PACK)
def test_a_damaged_compressed_file_is_refused(write, name, ending):
    path = write(name + ending, "one")
    whole = path.read_bytes()
    for damaged in (whole[:10] + b"\xff" * 30, b"one", whole + b"garbage"):  # a sound header and no stream; no header
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{name}{ending}.*cannot be read: \S"):
            read(path)


def test_a_run_of_lines_over_the_limit_becomes_several_documents(write, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT", 7)
    path = write("a.txt", "aaaa\nbbbb\ncccc\n\ndd\nee\n")
    assert read(path) == [["aaaa bbbb"], ["cccc"], ["dd ee"]]
    assert read(path, sentence_per_line=True) == [["aaaa", "bbbb"], ["cccc"], ["dd", "ee"]]


ROWS = {
    "jsonl": '{"text": "one"}\n{"text": ""}\n{"text": "two\\nthree"}\n',
    "json": '["one", "", "two\\nthree"]',
    "parquet": table(text=["one", "", "two\nthree"]),
}


@pytest.mark.parametrize(
    ("document", "joined", "apart"),
    [
        ("paragraph", [["a. b c."], ["d"]], [["a. b", "c."], ["d"]]),
        ("file", [["a. b c.", "d"]], [["a. b", "c.", "d"]]),
        ("line", [["a. b"], ["c."], ["d"]], [["a. b"], ["c."], ["d"]]),
    ],
)
def test_a_plain_document_is_a_paragraph_a_file_or_a_line(write, document, joined, apart):
    path = write("a.txt", "\na. b\n c. \n\n \nd\n")
    assert read(path, document=document) == joined
    assert read(path, document=document, sentence_per_line=True) == apart


@pytest.mark.parametrize("suffix", ROWS)
@pytest.mark.parametrize("document", ["paragraph", "line"])
def test_a_row_is_a_document_unless_a_file_is_one(write, suffix, document):
    path = write(f"a.{suffix}", ROWS[suffix])
    assert read(path, document=document) == [["one"], [], ["two", "three"]]
    assert read(path, document="file") == [["one", "two", "three"]]


def test_each_file_is_a_document_of_its_own(write, tmp_path):
    for name in ("a.txt", "b.txt"):
        write(name, f"{name}\n\nmore")
    write("c.txt", "\n")
    assert read(tmp_path, document="file") == [["a.txt", "more"], ["b.txt", "more"]]


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_file_over_the_limit_becomes_several_documents(write, monkeypatch, suffix):
    monkeypatch.setattr(documents, "MAX_DOCUMENT", 7)
    text = ["aaaa", "bbbb", "cccc", "dd"]
    content = "\n\n".join(text) if suffix == "txt" else "".join(f'"{item}"\n' for item in text)
    assert read(write(f"a.{suffix}", content), document="file") == [["aaaa", "bbbb"], ["cccc", "dd"]]


def test_a_line_over_the_limit_is_refused(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 10)
    with pytest.raises(InputError, match=r"a\.txt line 2: longer than 10 bytes"):
        read(write("a.txt", "short\nfar too long\n"))
    for line in ("nine char\n", "ten chars!"):
        assert read(write("a.txt", line)) == [[line.strip()]]
    with pytest.raises(InputError, match=r"a\.txt line 1: longer than 10 bytes"):
        read(write("a.txt", "ten chars!\n"))


def test_a_json_file_over_the_limit_is_refused(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON", 10)
    with pytest.raises(InputError, match=r"a\.json: over 10 bytes"):
        read(write("a.json", '["far too long"]'))


def test_a_json_file_of_too_many_values_is_refused(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON", 320)
    assert len(read(write("a.json", json.dumps(["one"] * 10)))) == 10  # nine commas and a bracket
    message = r"a\.json line 1: JSON with over 10 commas, colons and brackets; split it"
    with pytest.raises(InputError, match=message):
        read(write("a.json", json.dumps(["one"] * 11)))


def test_a_compressed_json_file_may_hold_values_as_its_size_allows(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_VALUES", 8)
    assert len(read(write("a.json.gz", json.dumps([os.urandom(8).hex() for _ in range(100)])))) == 100
    message = r"a\.json\.gz line 1: JSON with over [0-9]+ commas, colons and brackets; split it"
    with pytest.raises(InputError, match=message):
        read(write("a.json.gz", json.dumps([""] * 1000)))


def test_english_sentences_do_not_end_at_a_title():
    text = " Dr. Smith went home.  He slept! Did he? "
    assert split_sentences([text]) == ["Dr. Smith went home.", "He slept!", "Did he?"]


def test_chinese_sentences_end_without_a_space():
    assert split_sentences(["今天天气很好。我们去公园。"], "zh") == ["今天天气很好。", "我们去公园。"]


def test_the_language_decides_where_a_sentence_ends():
    text = "Am 3. Mai kam er. Sie lief."
    assert split_sentences([text], "de") == ["Am 3. Mai kam er.", "Sie lief."]
    assert split_sentences([text], "en") == ["Am 3.", "Mai kam er.", "Sie lief."]


def test_a_paragraph_ends_a_sentence():
    assert split_sentences(["A heading", "", "Some text."]) == ["A heading", "Some text."]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz"])
def test_a_table_is_no_text(write, name):
    with pytest.raises(InputError, match=r"a table is not read as text; write the column of texts to .txt or .jsonl"):
        list(documents.read_documents([write(name, "text,label\na,b\n")]))
