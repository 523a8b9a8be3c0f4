"""Rows, frames and batches that all tasks share."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertgpt.checkpoints.adapt import add_tokens
from bertgpt.data.tasks.classification import Classification
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import TaskExamples
from bertgpt.data.tasks.templates import GPT_TASK_TOKENS, SequenceTemplate, make_template
from bertgpt.errors import InputError
from bertgpt.tokenizers import train_bpe, train_wordpiece

WORDS = train_wordpiece(["ant bee cow dog"] * 5, 60)
LETTERS = add_tokens(train_bpe(["ant bee cow dog"] * 5, 60), GPT_TASK_TOKENS)
BERT, GPT = make_template(WORDS, 8, bert=True), make_template(LETTERS, 8, bert=False)


def pieces(template: SequenceTemplate, ids) -> list[str]:
    return [template.tokenizer.id_to_token(int(index)) for index in ids]


def test_berts_frame_has_segments():
    feature = BERT.join(WORDS.encode("ant", add_special_tokens=False).ids)
    assert pieces(BERT, feature["input_ids"]) == ["[CLS]", "ant", "[SEP]"]
    assert feature["token_type_ids"].tolist() == [0, 0, 0]
    feature = BERT.join([5, 6], [7])
    assert feature["input_ids"].tolist() == [BERT.start, 5, 6, BERT.middle, 7, BERT.end]
    assert feature["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    assert feature["attention_mask"].tolist() == [1] * 6


def test_gpts_frame_has_start_delimiter_and_extract():
    assert pieces(GPT, GPT.join([5])["input_ids"])[::2] == ["_start_", "_classify_"]
    assert pieces(GPT, GPT.join([5], [6])["input_ids"])[::2] == ["_start_", "_delimiter_", "_classify_"]
    assert "token_type_ids" not in GPT.join([5], [6])


def popped(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """run_classifier.py's way, piece by piece."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


@given(st.lists(st.integers(5, 9), max_size=20), st.lists(st.integers(5, 9), max_size=20), st.integers(4, 30))
def test_the_longer_text_is_cut_piece_by_piece(first, second, length):
    template = make_template(WORDS, length, bert=True)
    a, b = popped(first, second, length - 3)
    assert template.join(first, second)["input_ids"].tolist() == [template.start, *a, template.middle, *b, template.end]
    assert template.overflows(first, second) == (len(first) + len(second) > length - 3)
    assert template.join(first)["input_ids"].tolist() == [template.start, *first[: length - 2], template.end]
    assert template.overflows(first) == (len(first) > length - 2)


@pytest.mark.parametrize("text", ["[SEP] [CLS]", "[MASK]"])
def test_a_text_of_special_tokens_alone_is_refused(text):
    with pytest.raises(InputError, match=r"^a.csv line 2: '\[.* has no tokens except special ones; give a text"):
        BERT.content(Row("a.csv line 2", {}), text)
    assert BERT.content(Row("", {}), "ant [SEP]")
    assert pieces(BERT, BERT.content(Row("", {}), "\u2603")) == ["[UNK]"]  # a word, if an unknown one


def test_a_missing_or_empty_column_is_named_with_the_setting():
    row = Row("a.csv line 2", {"sentence": "ant", "none": None, "blank": " ", "number": 3})
    assert row.text("sentence", "task.text") == "ant"
    columns = r"\(columns: sentence, none, blank, number\); set task.text to another"
    for column, message in {
        "text": f"column 'text' is missing {columns}, or name the columns in the first line",
        "none": f"column 'none' is empty {columns}",
        "blank": "column 'blank' is an empty text; fill it in or remove the row",
        "number": "column 'number' is 3, not a text; set task.text to another",
    }.items():
        with pytest.raises(InputError, match=f"^a.csv line 2: {message}$"):
            row.text(column, "task.text")


def test_a_tokenizer_without_the_tokens_is_refused():
    with pytest.raises(InputError, match="_start_"):
        make_template(train_bpe(["a"], 30), 8, bert=False)


def test_batches_are_padded_to_the_frame_and_repeat_after_the_last_feature():
    task = Classification(BERT, ("no", "yes"))
    rows = [Row("", {"text": text, "label": label}) for text, label in (("ant", "yes"), ("bee cow dog", "no"))]
    source = TaskExamples(task, [task.encode(row) for row in rows])
    assert len(source) == 2
    batch = source.batch(np.array([0, 1, 2]))
    assert {name: value.shape for name, value in batch.items()} == {
        "input_ids": (3, 8),
        "attention_mask": (3, 8),
        "token_type_ids": (3, 8),
        "loss_mask": (3,),
        "labels": (3,),
    }
    assert batch["attention_mask"].sum(1).tolist() == [3, 5, 3]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == BERT.pad).all()
    assert batch["labels"].tolist() == [1, 0, 1]
    np.testing.assert_array_equal(source[2]["input_ids"], source[0]["input_ids"])
    other = Classification(dataclasses.replace(BERT, pad=7), ("no", "yes"))
    batch = TaskExamples(other, [other.encode(rows[0])]).batch(np.array([0]))
    assert batch["input_ids"][0, 3:].tolist() == [7] * 5
    assert batch["token_type_ids"][0, 3:].tolist() == [0] * 5
