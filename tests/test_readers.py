"""Labelled data files to rows."""

import csv
import io
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_files import PACK, write_packed

from bertgpt.data.tasks import readers
from bertgpt.data.text import files, parquet
from bertgpt.errors import InputError

SUFFIXES = ".jsonl, .json, .csv, .tsv, .parquet, .conll, .conllu, .iob, .iob2, .bio, .txt"
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
CONLL = "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP B-NP B-PER\n"
CONLLU = (
    "# text = vámonos al mar\n1-2\tvámonos\t_\tX\n1\tvamos\tir\tVERB\n2\tnos\tnosotros\tPRON\n2.1\tya\tya\tADV\n"
    "3\tal mar\tmar\tNOUN\n\n#\n1\tSí\tsí\tINTJ\n"
)
ANSWERED = {"id": "a1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}


@pytest.fixture
def write(tmp_path):
    """Puts bytes or text under a name in the test's folder, compressed where the name says so."""
    return lambda name, content: write_packed(tmp_path / name, content)


def read(path, **options) -> list[tuple]:
    """The rows, each (place without the folder, values)."""
    return [(row.place.removeprefix(f"{path.parent}/"), row.values) for row in readers.read_rows(str(path), **options)]


def values(path, **options) -> list[dict]:
    return [row for _, row in read(path, **options)]


def refusal(path, **options) -> str:
    """The message of the error, without the folder."""
    with pytest.raises(InputError) as error:
        read(path, **options)
    return str(error.value).removeprefix(f"{path.parent}/")


def squad(*questions, context="Ada wrote it.", **extra) -> str:
    paragraphs = [{"context": context, "qas": list(questions)}]
    return json.dumps({"version": "1.1", "data": [{"title": "Ada", "paragraphs": paragraphs}], **extra})


def table(**columns) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def test_jsonl_holds_an_object_a_line(write):
    path = write("a.jsonl", '{"text": "one", "label": 1}\n\n {"text": "two\\n", "label": null}')
    assert read(path) == [
        ("a.jsonl line 1", {"text": "one", "label": 1}),
        ("a.jsonl line 3", {"text": "two\n", "label": None}),
    ]


def test_json_holds_a_list_of_objects(write):
    path = write("a.json", '[{"text": "one"},\n{"text": ["two"]}]')
    assert read(path) == [("a.json row 1", {"text": "one"}), ("a.json row 2", {"text": ["two"]})]


def test_csv_has_quotes_line_breaks_and_texts_alone(write):
    path = write("a.csv", 'text,label\r\n"one, ""two""\r\nthree",1\r\n\r\n four ,\r\n')
    assert read(path) == [
        ("a.csv line 2", {"text": 'one, "two"\r\nthree', "label": "1"}),
        ("a.csv line 5", {"text": " four ", "label": ""}),
    ]


def test_tsv_has_no_quotes(write):
    path = write("a.tsv", 'text\tlabel\n"one\t1\n\t"two" three\n')
    assert read(path) == [
        ("a.tsv line 2", {"text": '"one', "label": "1"}),
        ("a.tsv line 3", {"text": "", "label": '"two" three'}),
    ]


def test_a_header_alone_has_no_rows(write):
    assert read(write("a.csv", "text,label\n")) == []


def test_squad_gives_a_row_a_question(write):
    twice = {**ANSWERED, "id": "a2", "answers": [*ANSWERED["answers"], {"text": "it", "answer_start": 10}]}
    expected = {"id": "a1", "question": "Who?", "context": "Ada wrote it."}
    assert read(write("dev.json", squad(ANSWERED, twice))) == [
        ("dev.json question a1", {**expected, "answers": {"text": ["Ada"], "answer_start": [0]}}),
        ("dev.json question a2", {**expected, "id": "a2", "answers": {"text": ["Ada", "it"], "answer_start": [0, 10]}}),
    ]


@pytest.mark.parametrize(
    "question",
    [
        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": ["Ada"]},
        {**ANSWERED, "is_impossible": True},
        {"id": "b", "question": "Why?"},
    ],
)
def test_a_question_without_an_answer_has_empty_lists(write, question):
    assert values(write("dev.json", squad(question)))[0]["answers"] == {"text": [], "answer_start": []}


def test_a_possible_question_of_squad_2_keeps_its_answers(write):
    path = write("dev.json", squad({**ANSWERED, "is_impossible": False}))
    assert values(path)[0]["answers"] == {"text": ["Ada"], "answer_start": [0]}


@pytest.mark.parametrize("suffix", ["conll", "txt", "iob", "iob2", "bio"])
def test_conll_columns_give_a_row_a_sentence(write, suffix):
    assert read(write(f"a.{suffix}", CONLL)) == [
        (f"a.{suffix} line 3", {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]}),
        (f"a.{suffix} line 7", {"words": ["Peter"], "tags": ["B-PER"]}),
    ]


def test_conll_columns_may_be_chosen(write):
    options = {"word_column": -4, "tag_column": 1}
    assert values(write("a.conll", CONLL), **options)[0] == {"words": ["EU", "rejects"], "tags": ["NNP", "VBZ"]}


def test_docstart_ends_a_sentence_without_a_blank_line(write):
    path = write("a.conll", "one A\n-DOCSTART- O\ntwo B\r\n \t\r\nthree C")
    assert [row["words"] for row in values(path)] == [["one"], ["two"], ["three"]]


def test_words_keep_spaces_between_tabs_and_no_break_spaces(write):
    path = write("a.conll", "New York\tB-LOC \r\n20\xa0000  O\r\n# O\n1-2 O\n")
    assert values(path) == [{"words": ["New York", "20\xa0000", "#", "1-2"], "tags": ["B-LOC", "O", "O", "O"]}]


def test_conllu_leaves_out_comments_multi_word_tokens_and_empty_nodes(write):
    assert read(write("a.conllu", CONLLU)) == [
        ("a.conllu line 3", {"words": ["vamos", "nos", "al mar"], "tags": ["VERB", "PRON", "NOUN"]}),
        ("a.conllu line 9", {"words": ["Sí"], "tags": ["INTJ"]}),
    ]


def test_the_columns_of_conllu_are_form_and_upos_unless_others_are_given(write):
    path = write("a.conllu", "1\tdas\tder\tDET\tART\t_\t2\tdet\t_\tMisc\n")
    assert values(path) == [{"words": ["das"], "tags": ["DET"]}]
    assert values(path, tag_column=4) == [{"words": ["das"], "tags": ["ART"]}]
    assert values(path, word_column=2) == [{"words": ["der"], "tags": ["DET"]}]
    assert values(path, word_column=0, tag_column=-1) == [{"words": ["1"], "tags": ["Misc"]}]
    assert refusal(write("b.conllu", "das\tDET\n")).startswith(
        "b.conllu line 1: columns: 2, too few for the word in column 1 and the tag in column 3"
    )


def test_a_word_that_begins_as_a_number_is_kept_in_conllu(write):
    path = write("a.conllu", "3.5kg\tA\n#text = no word\nof\tB\n")
    assert values(path, word_column=0, tag_column=-1) == [{"words": ["3.5kg", "of"], "tags": ["A", "B"]}]


def test_parquet_rows_are_counted_over_batches(write, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS", 2)
    monkeypatch.setattr(parquet, "NESTED_ROWS", 2)
    answers = [{"text": ["x"], "answer_start": [0]}, {"text": [], "answer_start": []}, None]
    path = write("a.parquet", table(text=["one", "two", None], label=[0, 1, 2], answers=answers))
    assert read(path) == [
        ("a.parquet row 1", {"text": "one", "label": 0, "answers": answers[0]}),
        ("a.parquet row 2", {"text": "two", "label": 1, "answers": answers[1]}),
        ("a.parquet row 3", {"text": None, "label": 2, "answers": None}),
    ]


SAME = {
    "a.jsonl": '{"words": "one", "tags": "A"}\n',
    "a.json": '[{"words": "one", "tags": "A"}]',
    "a.csv": "words,tags\none,A\n",
    "a.tsv": "words\ttags\none\tA\n",
    "a.conll": "one A\n",
    "a.conllu": "1\tone\tone\tA\t_\t_\t0\troot\t_\t_\n",
    "a.parquet": table(words=["one"], tags=["A"]),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("ending", ["", *PACK, ".GZ"])
def test_each_format_in_capitals_or_compressed(write, name, ending):
    stem, _, suffix = name.partition(".")
    expected = {"words": ["one"], "tags": ["A"]} if "conll" in name else {"words": "one", "tags": "A"}
    assert values(write(f"{stem}.{suffix.upper()}{ending}", SAME[name])) == [expected]


@pytest.mark.parametrize("name", [name for name in SAME if name != "a.parquet"])
def test_a_byte_order_mark_is_no_content(write, name):
    assert values(write(name, b"\xef\xbb\xbf" + SAME[name].encode())) == values(write(f"b/{name}", SAME[name]))


def test_files_are_read_in_order_and_folders_sorted(write, tmp_path):
    for name in ["d/b.csv", "d/deep/a.tsv", "d/z.conll.gz", "c.csv"]:
        write(name, f"t\n{name}\n" if "conll" not in name else f"{name} O")
    write("d/no.md", "")
    write("d/no.gz", "")
    rows = list(readers.read_rows([str(tmp_path / "c.*"), str(tmp_path / "d")]))
    assert [row.values.get("t", row.values.get("words")) for row in rows] == [
        "c.csv",
        "d/b.csv",
        "d/deep/a.tsv",
        ["d/z.conll.gz"],
    ]


def test_a_file_of_a_package_is_read(write, tmp_path, monkeypatch):
    write("labelledpackage/__init__.py", "")
    write("labelledpackage/data/a.csv", "t\none\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [row.values for row in readers.read_rows("package:labelledpackage/data/a.csv")] == [{"t": "one"}]


def test_rows_are_read_when_they_are_asked_for(write):
    rows = readers.read_rows(str(write("a.jsonl", '{"a": 1}\nno\n')))
    assert next(rows).values == {"a": 1}
    with pytest.raises(InputError, match="line 2: not JSON"):
        next(rows)


def test_another_suffix_is_refused_before_anything_is_read(write):
    good, bad = write("a.csv", "t\n1\n"), write("a.xml.gz", "")
    with pytest.raises(InputError) as error:
        readers.read_rows([str(good), str(bad)])
    choices = f"one of {SUFFIXES}, optionally with .gz, .bz2, .xz, .zst"
    assert str(error.value) == f"{bad}: unknown file format; give {choices}"


def test_a_folder_without_data_is_refused(write, tmp_path):
    write("d/a.md", "one")
    with pytest.raises(InputError) as error:
        readers.read_rows(str(tmp_path / "d"))
    assert str(error.value) == f"{tmp_path}/d: the folder has no {SUFFIXES} files"


@pytest.mark.parametrize("load", [readers.read_rows, readers.data_digest])
def test_a_missing_file_is_refused(tmp_path, load):
    with pytest.raises(InputError, match=r"missing\.csv: no such file"):
        load(str(tmp_path / "missing.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b\n1,2\n\n1\n", "a.csv line 4: 1 cells, but the header has 2; fill in the missing ones"),
        ("a.csv", 'a,b\n"1\n2",3,4\n', "a.csv line 2: 3 cells, but the header has 2; quote cells that contain commas"),
        ("a.tsv", "a\tb\n1\t2\t3\n", "a.tsv line 2: 3 cells, but the header has 2; remove tabs from the cells"),
        ("a.csv", "a,b,a\n", "a.csv line 1: two columns are named 'a'; rename one"),
        ("a.csv", "a, \n", "a.csv line 1: column 2 has no name; name it or remove it"),
        ("a.csv", "\n", "a.csv: empty; name the columns in the first line"),
        ("a.csv", "a\n1\n\0\n", "a.csv line 3: contains a NUL byte; convert the file to UTF-8 text"),
        (
            "a.csv",
            'a\n1\n"2\n3\n',
            "a.csv line 3: unexpected end of data; correct it, or convert the file to JSONL",
        ),
        (
            "a.csv",
            'a\n"1" 2\n',
            "a.csv line 2: ',' expected after '\"'; correct it, or convert the file to JSONL",
        ),
        ("a.jsonl", '{"a": 1}\n[2]\n', "a.jsonl line 2: is a list; give an object with one value per column"),
        ("a.json", '[{"a": 1}, "b"]', "a.json row 2: is a str; give an object with one value per column"),
        *(
            (
                "a.json",
                content,
                "a.json: must contain a list of objects, or SQuAD's object with a list under 'data'",
            )
            for content in ("3", "{}", '{"data": {"a": 1}}')
        ),
        (
            "a.conll",
            "a A\n\nb B\nc\n",
            "a.conll line 4: columns: 1, too few for the word in column 0 and the tag in column -1; "
            "correct the line or set other columns",
        ),
        ("a.conll", "a\tA\nb\t \n", "a.conll line 2: an empty tag; fill it in or remove the line"),
        ("a.conll", "a\tA\n\tB\n", "a.conll line 2: an empty word; fill it in or remove the line"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(write, name, content, message):
    assert refusal(write(name, content)) == message


@pytest.mark.parametrize("columns", [(3, 0), (0, 3), (-3, 0), (0, -3), (1, 1), (1, -1)])
def test_a_column_beyond_the_line_is_refused(write, columns):
    message = refusal(write("a.conll", "a A\n"), word_column=columns[0], tag_column=columns[1])
    assert f"the word in column {columns[0]} and the tag in column {columns[1]}" in message


def test_a_file_without_blank_lines_is_no_sentence(write, monkeypatch):
    monkeypatch.setattr(readers, "MAX_WORDS", 2)
    assert len(read(write("a.conll", "a A\nb B\n\nc C\n"))) == 2
    message = "a.conll line 3: a sentence of over 2 words; end it with a blank line"
    assert refusal(write("a.conll", "a A\nb B\nc C\n")) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [{}]}', "article 1: no list under 'paragraphs'"),
        ('{"data": [3]}', "article 1: no list under 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "article 1 paragraph 1: no str under 'context'"),
        ('{"data": [{"paragraphs": [{"context": ""}]}]}', "article 1 paragraph 1: no list under 'qas'"),
        (squad({"question": "Who?"}), "article 1 paragraph 1: no str under 'id'"),
        (squad({"id": "a1"}), "question a1: no str under 'question'"),
        (squad({**ANSWERED, "answers": "Ada"}), "question a1: no list under 'answers'"),
        (squad({**ANSWERED, "answers": [{"text": 3, "answer_start": 0}]}), "question a1: no str under 'text'"),
        (squad({**ANSWERED, "answers": [{"text": "Ada"}]}), "question a1: no int under 'answer_start'"),
        (
            squad({**ANSWERED, "answers": [{"text": "Ada", "answer_start": True}]}),
            "question a1: no int under 'answer_start'",
        ),
    ],
)
def test_what_squad_lacks_is_named(write, content, message):
    more = "; for labelled rows give the list alone" if "paragraphs" in message else ""
    assert refusal(write("a.json", content)) == f"a.json {message}; use the format of SQuAD{more}"


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", '{"a": "b"}\n{"a": ["\\ud800"]}', "a.jsonl line 2"),
        ("a.json", '[{"a": "b"}, {"\\ud800": 1}]', "a.json row 2"),
        ("a.json", squad(ANSWERED, context="\ud800"), "a.json article 1 paragraph 1"),
    ],
)
def test_half_a_surrogate_pair_is_no_text(write, name, content, place):
    assert refusal(write(name, content)) == f"{place}: an unpaired surrogate, which UTF-8 cannot encode; remove it"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_of_any_depth_is_read_or_refused(write, name):
    texts = ['{"a": ' + "[" * depth + "]" * depth + "}" for depth in (10, *range(800, 1100))]
    for text in texts:
        path = write(name, text if name == "a.jsonl" else f"[{text}]")
        try:
            assert len(read(path)) == 1
        except InputError as error:
            assert "recursion" in str(error)  # noqa: PT017 - both outcomes are right at the border


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.conll", "a.csv.gz", "a.json.gz"])
def test_a_byte_that_is_not_utf8_is_named_with_file_and_line(write, name):
    content = b'[{"a": 1},\n{"a": "\xe9"}]' if ".json" in name else b"a\tb\nc\t\xe9\n"
    content = b'{"a": 1}\n{"a": "\xe9"}' if name == "a.jsonl" else content
    content = content.replace(b"\t", b",") if ".csv" in name else content
    assert refusal(write(name, content)).startswith(f"{name} line 2: not UTF-8 (byte 0xe9)")


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.conll", "a.parquet"])
@pytest.mark.parametrize("ending", PACK)
def test_a_compressed_file_cut_short_is_refused(write, name, ending):
    path = write(name + ending, "a,b\n" + os.urandom(3000).hex())
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(path).startswith(name + ending)


def test_the_line_where_a_damaged_gzip_ends_is_named(write):
    path = write("a.csv.gz", "a\n1\n")
    path.write_bytes(path.read_bytes()[:-2])
    assert refusal(path).startswith("a.csv.gz line 3: cannot be read: ")


@pytest.mark.parametrize("name", [name for name in SAME if name != "a.parquet"])
def test_files_as_large_as_their_rows_are_held_whatever_they_take(write, monkeypatch, name):
    monkeypatch.setattr(readers, "unpacked_limit", lambda packed: 0)
    assert len(readers.read_all_rows(str(write(name, SAME[name])))) == 1


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "a.parquet.zst"])
def test_rows_of_several_small_files_are_bounded_together(write, tmp_path, monkeypatch, name):
    for number in range(5):
        write(f"{number}/{name}", SAME[name.removesuffix(".gz").removesuffix(".zst")])
    paths = [str(tmp_path / str(number) / name) for number in range(5)]
    row = readers._memory(next(readers.read_rows(paths)))
    monkeypatch.setattr(readers, "unpacked_limit", lambda packed: 3 * row)
    assert readers.read_all_rows(paths[:3]) == list(readers.read_rows(paths[:3]))
    with pytest.raises(InputError, match=rf"/3/{name} .* 1: up to here rows take {4 * row} bytes in memory, over 100"):
        readers.read_all_rows(paths)


@pytest.mark.parametrize(
    "value", ["x" * 5000, b"x" * 5000, ["x" * 5000], {"k": {"l": ["x" * 5000]}}, {"k" * 5000: 1}, [("x" * 5000, None)]]
)
def test_every_text_of_a_row_counts(value):
    assert 5000 < readers._memory(readers.Row("a.jsonl line 1", {"a": value})) < 6000


def test_a_line_over_the_limit_is_refused(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 10)
    assert refusal(write("a.csv", "a\nfar too long\n")) == "a.csv line 2: longer than 10 bytes; split it into lines"


def test_a_json_file_over_the_limit_is_refused(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON", 10)
    message = "a.json: over 10 bytes; convert it to JSONL, which is read line by line"
    assert refusal(write("a.json", '[{"far": 1}]')) == message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "text;label\na;b\n",
            "a.csv line 1: one column, 'text;label'; if semicolons separate the columns, replace",
        ),
        (
            "a.tsv",
            "text;label\na;b\n",
            "a.tsv line 1: one column, 'text;label'; if semicolons separate the columns, replace",
        ),
        ("a.csv", "text\tlabel\na\tb\n", "a.csv line 1: one column, whose name contains tabs; rename the file to .tsv"),
        (
            "a.jsonl",
            '[\n{"a": 1}\n]',
            "a.jsonl line 1: not JSON: Expecting value; if the file is one list, rename it to .json",
        ),
        (
            "a.json",
            '{"a": 1}\n{"a": 2}\n',
            "a.json line 2: not JSON: Extra data; if each line is an object, rename the ",
        ),
    ],
)
def test_a_file_of_another_format_is_told_its_name(write, name, content, message):
    assert refusal(write(name, content)).startswith(message)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet", "a.json", "a.conll"])
def test_a_git_lfs_pointer_is_called_one(write, name):
    path = write("pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n")
    path = path.rename(path.with_name(name))
    assert refusal(path).startswith(f"{name}: is a git-lfs pointer")
    with pytest.raises(InputError, match=f"{name}: is a git-lfs pointer"):
        list(readers.read_rows(str(path.parent)))  # in a folder


def test_a_cell_may_be_as_long_as_a_line(write):
    long = "b" * (1 << 18)  # over the default of Python's csv
    csv.field_size_limit(1 << 17)
    assert values(write("a.csv", f'a\n"{long}\n{long}"\n')) == [{"a": f"{long}\n{long}"}]
    assert values(write("a.tsv", f"a\n{long}\n")) == [{"a": long}]
    assert csv.field_size_limit() == files.MAX_LINE


@pytest.mark.parametrize("content", [b"", b"text,label", table(a=[1])[:-9], b"PAR1" + b"\xff" * 40 + b"PAR1"])
def test_parquet_that_cannot_be_read_is_refused(write, content):
    assert refusal(write("a.parquet", content)).startswith("a.parquet: cannot be read as Parquet: ")


def test_a_damaged_page_of_parquet_is_refused(write):
    raw = bytearray(table(text=[os.urandom(20).hex() for _ in range(2000)]))
    raw[4:3000] = b"\xff" * 2996  # the footer is sound
    assert refusal(write("a.parquet", bytes(raw))).startswith("a.parquet: cannot be read as Parquet: ")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1], pa.timestamp("ns")), "timestamp[ns]"),
        (pa.array([[1]], pa.list_(pa.time64("ns"))), "list<element: time64[ns]>"),
        (pa.array([2**62], pa.timestamp("us")), "timestamp[us]"),
        (pa.array([2**31 - 1], pa.date32()), "date32[day]"),
        (pa.array([b"\xff"]).view(pa.string()), "string"),
    ],
)
def test_a_parquet_column_of_values_that_python_lacks_is_named(write, column, kind):
    message = refusal(write("a.parquet", table(a=["one"], ts=column)))
    problem = (
        f"a.parquet: column 'ts' of type {kind} has a value that Python cannot represent; convert or drop the column ("
    )
    assert message.startswith(problem)


MAPS = [
    (pa.map_(pa.string(), pa.int32()), [("k", 1), ("l", None)]),
    (pa.map_(pa.int32(), pa.list_(pa.string())), [(1, ["x", "y"]), (2, [])]),
    (pa.list_(pa.map_(pa.string(), pa.string())), [[("k", "v")], None, []]),
    (pa.struct([("a", pa.map_(pa.string(), pa.string()))]), {"a": [("k", "v")]}),
]


@pytest.mark.parametrize(("kind", "value"), MAPS, ids=[str(kind) for kind, _ in MAPS])
def test_maps_in_parquet_are_pairs(write, kind, value):
    column = pa.array([value, None] * 20, kind)
    assert values(write("a.parquet", table(a=column))) == [{"a": value}, {"a": None}] * 20


@pytest.mark.parametrize("value", [[("k" * 90, "v")], [("k", "v" * 90)], [("k", "v")] * 46])
def test_a_map_is_as_large_as_its_own_keys_and_values(write, monkeypatch, value):
    monkeypatch.setattr(parquet, "MAX_LINE", 90)
    kind = pa.map_(pa.string(), pa.string())
    small = [[("k" * 10, "v" * 10)]] * 9
    path = write("a.parquet", table(a=pa.array([*small, value], kind)))
    assert refusal(path) == "a.parquet row 10: over 90 bytes; split it into rows"
    assert len(values(write("b.parquet", table(a=pa.array(small * 3, kind))))) == 27


def test_parquet_columns_of_one_name_are_refused(write):
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), stream)
    assert refusal(write("a.parquet", stream.getvalue())) == "a.parquet: two columns are named 'a'; rename one"


def test_parquet_needs_pyarrow(write, monkeypatch):
    path = write("a.parquet", table(a=[1]))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert refusal(path) == "a.parquet: reading Parquet needs pyarrow: pip install 'bertgpt[tasks]'"


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5), st.sampled_from(["\n", "\r\n"]))
def test_csv_that_python_writes_is_read_back(tmp_path_factory, rows, ending):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator=ending).writerows([("text", "label"), *rows])
    assert values(path) == [{"text": text, "label": label} for text, label in rows]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(CELLS, JSON_VALUES, max_size=4), max_size=5), st.booleans())
def test_json_that_python_writes_is_read_back(tmp_path_factory, rows, ascii_only):
    folder = tmp_path_factory.mktemp("json")
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    (folder / "a.jsonl").write_bytes("\n".join(lines).encode())
    (folder / "a.json").write_bytes(f"[{', '.join(lines)}]".encode())
    assert values(folder / "a.jsonl") == values(folder / "a.json") == rows


def test_the_digest_is_of_contents_in_order_and_not_of_names(write):
    paths = {name: str(write(name, text)) for name, text in [("a.csv", "ab"), ("b.csv", "c"), ("c.tsv", "ab")]}
    digest = readers.data_digest
    assert len(bytes.fromhex(digest(paths["a.csv"]))) == 64
    assert digest(paths["a.csv"]) == digest([paths["a.csv"]]) == digest(paths["c.tsv"])
    assert digest([paths["a.csv"], paths["b.csv"]]) != digest([paths["b.csv"], paths["a.csv"]])
    assert digest(paths["a.csv"]) != digest([paths["a.csv"], paths["a.csv"]])


def test_the_digest_knows_where_a_file_ends(write):
    one = [str(write("a.csv", "ab")), str(write("b.csv", "c"))]
    two = [str(write("d/a.csv", "a")), str(write("d/b.csv", "bc"))]
    assert readers.data_digest(one) != readers.data_digest(two)


def test_a_file_that_goes_away_before_its_digest_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "find_files", lambda *_: [tmp_path / "gone.csv"])
    with pytest.raises(InputError, match=r"gone\.csv: cannot be read"):
        readers.data_digest("gone.csv")
