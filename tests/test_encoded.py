"""Rows that are encoded together, or read from the files of an earlier start, are those that are encoded alone."""

import dataclasses

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import bertgpt
from bertgpt.data.tasks import task as tasks
from bertgpt.data.tasks.classification import Choice, Classification
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.sft import Responses
from bertgpt.data.tasks.squad import Answers
from bertgpt.data.tasks.tagging import Tagging
from bertgpt.data.tasks.task import Example, TaskData, encode_rows
from bertgpt.data.tasks.templates import END, GPT_TASK_TOKENS, make_template
from bertgpt.tokenizers import train_bpe, train_wordpiece
from train import hosts
from train.folders import encoded

TEXT = "ant bee cow dog elk fox hen café who is near . "
WORDPIECE = train_wordpiece([TEXT] * 9, 90)
BERT = make_template(WORDPIECE, 12, bert=True)
BPE = bertgpt.add_tokens(train_bpe([TEXT] * 9, 90), (*GPT_TASK_TOKENS, END))
GPT, TALK = make_template(BPE, 24, bert=False), make_template(BPE, 24, bert=False, end=END)
CHAT = [{"role": "user", "content": "ant"}, {"role": "assistant", "content": "bee cow"}]
CASES: dict[str, tuple[TaskData, list[dict]]] = {
    "classification": (
        Classification(BERT, ("no", "yes")),
        [{"text": "ant bee", "label": "no"}, {"text": "cow " * 20, "label": "yes"}],
    ),
    "pairs in both orders": (
        Classification(GPT, ("no", "yes"), pair="pair", both_orders=True),
        [{"text": "ant bee", "pair": "cow", "label": "no"}, {"text": "cow", "pair": "ant bee", "label": "yes"}],
    ),
    "several labels": (
        Classification(BERT, ("a", "b", "c"), "multi_label_classification"),
        [{"text": "ant", "label": ["a", "c"]}, {"text": "bee", "label": []}],
    ),
    "numbers": (
        Classification(BERT, (), "regression"),
        [{"text": "ant", "label": 0.1}, {"text": "bee", "label": -3}],
    ),
    "choices": (
        Choice(BERT, 3),
        [
            {"text": "who", "choices": ["ant", "bee"], "label": 1},
            {"text": "is", "choices": ["a", "b", "c"], "label": 0},
        ],
    ),
    "choices of GPT-1": (Choice(GPT, 2), [{"text": "who", "choices": ["ant", "bee cow"], "label": 1}]),
    "windows of a context": (
        Answers(BERT, stride=2),
        [
            {"question": "who", "context": "ant bee cow dog elk fox hen cafe\u0301 ant bee", "answers": "fox hen"},
            {"question": "who is near", "context": "café dog", "answers": {"text": ["dog"], "answer_start": [5]}},
        ],
    ),
    "windows of words": (
        Tagging(BERT, ("O", "B-X"), stride=2),
        [
            {"words": ["ant", "bee", "", "xyz", *["cow"] * 9], "tags": ["O", "B-X"] + ["O"] * 11},
            {"words": "ant  bee\tcow", "tags": "O B-X O"},
        ],
    ),
    "responses, one too long": (
        Responses(TALK, cut=False),
        [
            {"prompt": "ant", "response": "bee cow"},
            {"prompt": "ant " * 30, "response": "bee"},
            {"messages": CHAT},
        ],
    ),
}


def rows_of(name: str) -> list[Row]:
    """More rows than are tokenized together, or than are in a file."""
    return [Row(f"row {number}", values) for number, values in enumerate(CASES[name][1] * 3)]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(tasks, "TOGETHER", 2)
    monkeypatch.setattr(encoded, "PART", 4)


def plain(values):
    """Arrays as (dtype, shape, bytes), in nested values."""
    if isinstance(values, np.ndarray | np.generic | int):
        array = np.asarray(values)
        return array.dtype.name, array.shape, array.tobytes()
    if isinstance(values, dict):
        return {name: plain(value) for name, value in values.items()}
    return type(values).__name__ if not len(values) else [plain(value) for value in values]


def assert_equal(found: list[Example], expected: list[Example]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.row == other.row
        assert one.cut is other.cut
        assert plain(one.features) == plain(other.features)
        assert [type(info) for info in one.decode_info] == [type(info) for info in other.decode_info]
        infos = ([info._asdict() for info in example.decode_info] for example in (one, other))
        assert plain(next(infos)) == plain(next(infos))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_rows_are_encoded_together_as_alone(name, labelled):
    data, rows = CASES[name][0], rows_of(name)
    assert_equal(list(encode_rows(data, rows, labelled)), [data.encode(row, labelled) for row in rows])


@hypothesis.given(
    st.lists(st.text(st.sampled_from("aé\u0301 xß中.B"), min_size=1, max_size=30), min_size=1, max_size=5)
)
def test_any_texts_are_encoded_together_as_alone(texts):
    rows = [Row("row", {"text": text, "question": "who", "context": text, "words": text}) for text in texts]
    for data in (Classification(BERT, ("no",)), Answers(BERT, stride=3), Tagging(BERT, ("O",))):
        used = []
        for row in rows:
            try:
                used.append((row, data.encode(row, labelled=False)))
            except bertgpt.InputError:
                continue
        assert_equal(list(encode_rows(data, [row for row, _ in used], False)), [example for _, example in used])


def test_texts_are_tokenized_once_and_together(monkeypatch):
    data, rows = Answers(BERT), rows_of("windows of a context")
    batches, knowing = [], type(BERT).knowing
    monkeypatch.setattr(
        type(BERT), "knowing", lambda self, texts: (batches.append(texts := list(texts)), knowing(self, texts))[1]
    )
    list(encode_rows(data, rows))
    assert data.template.known == {}
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert len(knowing(BERT, batches[0] * 2).known) == 4


def test_a_tokenizer_that_pads_is_not_given_many_texts():
    tokenizer = type(WORDPIECE).from_str(WORDPIECE.to_str())
    tokenizer.enable_padding()
    data = Classification(make_template(tokenizer, 12, bert=True), ("no", "yes"))
    rows = rows_of("classification")
    assert_equal(list(encode_rows(data, rows)), [data.encode(row) for row in rows])


@pytest.mark.parametrize("folder", ["", "files"])
def test_the_error_is_that_of_the_first_row_that_cannot_be_used(folder, tmp_path):
    good = {"text": "ant", "label": "no"}
    values = [good] * 4 + [good, {"text": "bee", "label": "what"}, {"label": "no"}, {"text": ""}]
    rows = [Row(f"row {number}", value) for number, value in enumerate(values)]
    data = Classification(BERT, ("no", "yes"))
    with pytest.raises(bertgpt.InputError, match="^row 5: label 'what' is not among"):
        encoded.encode_splits(data, {"train": rows}, tmp_path) if folder else list(encode_rows(data, rows))


# On disk


def test_an_error_removes_a_new_folder_alone(tmp_path):
    data = Classification(BERT, ("no", "yes"))
    good, bad = Row("row 1", {"text": "ant", "label": "no"}), Row("row 2", {"text": "ant", "label": "what"})
    with pytest.raises(bertgpt.InputError, match="row 2: label 'what'"):
        encoded.encode_splits(data, {"train": [good], "eval": [bad]}, tmp_path / "encoded")
    assert not list(tmp_path.iterdir())
    encoded.encode_splits(data, {"train": [good]}, tmp_path / "encoded")
    with pytest.raises(bertgpt.InputError, match="row 2: label 'what'"):
        encoded.encode_splits(data, {"train": [good], "eval": [bad]}, tmp_path / "encoded")
    assert len(list((tmp_path / "encoded").iterdir())) == 1


def encode(name: str, folder, splits=("train", "eval")) -> dict[str, list[Example]]:
    return encoded.encode_splits(CASES[name][0], {split: rows_of(name) for split in splits}, folder)


def forbidden(*_):
    raise AssertionError("encoded again")


@pytest.mark.parametrize("name", CASES)
def test_a_second_start_reads_what_the_first_one_encoded(name, tmp_path, monkeypatch):
    data, rows = CASES[name][0], rows_of(name)
    expected = [data.encode(row) for row in rows]
    for _ in range(2):
        found = encoded.encode_splits(data, {"train": rows, "eval": rows[:3]}, tmp_path / "encoded")
        assert_equal(found["train"], expected)
        assert_equal(found["eval"], expected[:3])
        monkeypatch.setattr(encoded, "encode_rows", forbidden)
    assert all(file.suffix == ".examples" for file in (tmp_path / "encoded").iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
    ],
)
def test_a_damaged_file_is_made_again(damage, tmp_path):
    encode("windows of words", tmp_path, ["train"])
    files = sorted(tmp_path.iterdir())
    whole = [file.read_bytes() for file in files]
    files[0].write_bytes(damage(whole[0]))
    data, rows = CASES["windows of words"][0], rows_of("windows of words")
    assert_equal(encode("windows of words", tmp_path, ["train"])["train"], [data.encode(row) for row in rows])
    assert [file.read_bytes() for file in files] == whole


@pytest.mark.parametrize("change", ["rows", "missing", "values", "shapes", "infos"])
def test_a_file_whose_arrays_do_not_fit_is_made_again(change, tmp_path):
    data, rows = CASES["windows of a context"][0], rows_of("windows of a context")[:4]
    expected = [data.encode(row) for row in rows]
    (file,) = (tmp_path / f"{encoded.key(data, rows)}.examples",)
    arrays = encoded._to_arrays(expected)
    if change == "rows":
        arrays["features"] = arrays["features"][:-1]
    elif change == "missing":
        del arrays["cut"]
    elif change == "infos":
        arrays = {name: value for name, value in arrays.items() if name != "info.begin.values"}
    else:
        arrays[f"feature.input_ids.{change}"] = arrays[f"feature.input_ids.{change}"][:-1]
    content = encoded.save(arrays)
    file.write_bytes(encoded.hashlib.blake2b(content).digest() + content)
    assert encoded._read(data, rows, file) is None
    assert_equal(encoded.encode_splits(data, {"train": rows}, tmp_path)["train"], expected)
    assert encoded._read(data, rows, file) is not None


def test_the_key_is_of_all_that_decides_the_examples(monkeypatch, tmp_path):
    data, rows = CASES["classification"][0], rows_of("classification")[:2]
    key = encoded.key(data, rows)
    assert encoded.key(data, [row._replace(place="elsewhere") for row in rows]) == key
    assert encoded.key(Classification(make_template(WORDPIECE, 12, True), ("no", "yes")), rows) == key
    assert encoded.key(dataclasses.replace(data, template=BERT.knowing(["ant"])), rows) == key
    other = train_wordpiece([TEXT] * 9, 91)
    others = [
        encoded.key(data, rows[::-1]),
        encoded.key(data, rows[:1]),
        encoded.key(data, [rows[0], rows[1]._replace(values={**rows[1].values, "label": "no"})]),
        encoded.key(dataclasses.replace(data, labels=("yes", "no")), rows),
        encoded.key(dataclasses.replace(data, text="label"), rows),
        encoded.key(dataclasses.replace(data, template=make_template(WORDPIECE, 13, True)), rows),
        encoded.key(dataclasses.replace(data, template=make_template(other, 12, True)), rows),
    ]
    (tmp_path / "task.py").write_text("another encoding")
    monkeypatch.setattr(tasks, "__file__", str(tmp_path / "task.py"))
    others.append(encoded.key(data, rows))
    assert len({key, *others}) == 9


def test_files_of_other_settings_are_removed(tmp_path):
    encode("classification", tmp_path)
    before = {file.name for file in tmp_path.iterdir()}
    encode("several labels", tmp_path)
    assert before.isdisjoint(file.name for file in tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "encoded").write_text("a file")
    data, rows = CASES["classification"][0], rows_of("classification")
    found = encoded.encode_splits(data, {"train": rows}, tmp_path / "encoded")
    assert_equal(found["train"], [data.encode(row) for row in rows])


def test_each_process_encodes_its_share(tmp_path, monkeypatch):
    name, counted, process = "classification", {0: 0, 1: 0}, [0]

    def counting(data, rows):
        counted[process[0]] += len(rows)
        return encode_rows(data, rows)

    def both(folder, work, waiting):
        for process[0] in (1, 0):
            work()

    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "after_all", both)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: process[0])
    monkeypatch.setattr(encoded, "encode_rows", counting)
    rows = rows_of(name) + [Row("more", {"text": "dog", "label": "no"})] * 4  # parts of 4, 4 and 2 rows
    found = encoded.encode_splits(CASES[name][0], {"train": rows}, tmp_path)
    assert counted == {0: 6, 1: 4}
    assert_equal(found["train"], [CASES[name][0].encode(row) for row in rows])


def test_processes_without_a_shared_folder_encode_all_and_wait_for_no_one(tmp_path, monkeypatch):
    data, rows = CASES["classification"][0], rows_of("classification")
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "after_all", lambda *_: pytest.fail("it waits for a file that no other process sees"))
    found = encoded.encode_splits(data, {"train": rows}, tmp_path, shared=False)["train"]
    assert_equal(found, list(encode_rows(data, rows)))


def test_integers_take_few_bytes_in_a_file():
    data = CASES["classification"][0]
    arrays = encoded._to_arrays([data.encode(row) for row in rows_of("classification")])
    assert {name: value.dtype.name for name, value in arrays.items() if name.endswith("values")} == {
        "feature.input_ids.values": "uint8",
        "feature.attention_mask.values": "uint8",
        "feature.token_type_ids.values": "uint8",
        "feature.loss_mask.values": "float32",
        "feature.labels.values": "uint8",
    }
    assert encoded._narrowed(np.array([-1, 300])).tolist() == [-1, 300]
