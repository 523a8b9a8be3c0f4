"""Classes, several labels, numbers and choices: from rows to features, and from logits to predictions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertgpt.checkpoints.adapt import add_tokens
from bertgpt.data.tasks.classification import Choice, Classification, find_labels, most_choices
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import TaskExamples
from bertgpt.data.tasks.templates import GPT_TASK_TOKENS, make_template
from bertgpt.errors import InputError
from bertgpt.tokenizers import train_bpe, train_wordpiece

WORDS = train_wordpiece(["ant bee cow dog"] * 5, 60)
LETTERS = add_tokens(train_bpe(["ant bee cow dog"] * 5, 60), GPT_TASK_TOKENS)
BERT, GPT = make_template(WORDS, 8, bert=True), make_template(LETTERS, 8, bert=False)
SEVERAL, NUMBER = "multi_label_classification", "regression"


def row(**values):
    return Row("a.csv line 2", {"text": "ant", **values})


def ids(tokenizer, *texts):
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def test_a_class_is_its_place_among_the_labels():
    task = Classification(BERT, ("no", "yes"))
    (feature,) = task.encode(row(label="yes")).features
    assert (feature["labels"], feature["labels"].dtype, feature["loss_mask"]) == (1, np.int32, 1)
    assert "labels" not in task.encode(row(), labelled=False).features[0]
    assert "lm_labels" not in feature


def test_several_labels_are_zeros_and_ones():
    task = Classification(BERT, ("a", "b", "c"), SEVERAL)
    for value in (["c", "a"], "c|a", "c | a"):
        np.testing.assert_array_equal(task.encode(row(label=value)).features[0]["labels"], np.float32([1, 0, 1]))
    for value in ([], ""):
        np.testing.assert_array_equal(task.encode(row(label=value)).features[0]["labels"], np.float32([0, 0, 0]))


@pytest.mark.parametrize("value", [2.5, "2.5"])
def test_a_number_is_itself(value):
    label = Classification(BERT, (), NUMBER).encode(row(label=value)).features[0]["labels"]
    assert (label, label.dtype) == (2.5, np.float32)


def test_a_pair_is_cut_together_and_told_so():
    task = Classification(BERT, ("no", "yes"), pair="b")
    example = task.encode(row(b="bee cow dog ant bee", label="no"))
    (a,), b = ids(WORDS, "ant", "bee cow dog ant")
    assert example.features[0]["input_ids"].tolist() == [BERT.start, a, BERT.middle, *b, BERT.end]
    assert example.cut
    assert not task.encode(row(b="bee", label="no")).cut


def test_gpt_learns_the_next_tokens_of_its_texts_too():
    (feature,) = Classification(GPT, ("no", "yes")).encode(row(label="no")).features
    text = feature["input_ids"]
    np.testing.assert_array_equal(feature["lm_labels"][:-1], text[1:])
    np.testing.assert_allclose(feature["lm_loss_mask"], [1 / (len(text) - 1)] * (len(text) - 1) + [0])


def test_a_pair_in_both_orders():
    task = Classification(GPT, ("no", "yes"), pair="b", both_orders=True)
    feature = task.encode(row(b="bee cow", label="no")).features[0]
    a, b = ids(LETTERS, "ant", "bee cow")
    for order, (first, second) in enumerate([(a, b), (b, a)]):
        expected = [GPT.start, *first, GPT.middle, *second, GPT.end]
        assert feature["input_ids"][order].tolist() == expected
    np.testing.assert_allclose(feature["lm_loss_mask"].sum(1), [1, 1], rtol=1e-6)
    batch = TaskExamples(task, [task.encode(row(b="bee cow", label="no"))]).batch(np.array([0]))
    assert batch["input_ids"].shape == batch["lm_loss_mask"].shape == (1, 2, 8)


def test_choices_are_filled_up_under_a_mask():
    task = Choice(GPT, 3)
    feature = task.encode(row(choices=["bee", "cow dog"], label="1")).features[0]
    a, b, c = ids(LETTERS, "ant", "bee", "cow dog")
    assert feature["input_ids"][1].tolist() == [GPT.start, *a, GPT.middle, *c, GPT.end]
    first = [GPT.start, *a, GPT.middle, *b, GPT.end]
    width = len(feature["input_ids"][1])
    assert feature["input_ids"][0].tolist() == first + [GPT.pad] * (width - len(first))
    assert feature["attention_mask"][0].tolist() == [1] * len(first) + [0] * (width - len(first))
    assert feature["attention_mask"][2].tolist() == [1] + [0] * (width - 1)  # a softmax needs something
    assert feature["choice_mask"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(feature["lm_loss_mask"].sum(1), [1, 1, 0], rtol=1e-6)
    assert feature["labels"] == 1
    columns = Choice(BERT, 2, choices=["x", "y"]).encode(row(x="bee", y="cow", label=0)).features[0]
    assert columns["input_ids"].shape == columns["token_type_ids"].shape == (2, 5)


def test_predictions():
    example = Classification(BERT, ("no", "yes")).encode(row(), labelled=False)
    found = Classification(BERT, ("no", "yes")).decode(example, [{"logits": np.array([0.0, np.log(3)])}])
    assert (found["label"], round(found["probability"], 6)) == ("yes", 0.75)
    assert found["probabilities"] == pytest.approx({"no": 0.25, "yes": 0.75})
    found = Classification(BERT, ("a", "b"), SEVERAL).decode(example, [{"logits": np.array([1e-3, -np.log(3)])}])
    assert found["labels"] == ["a"]
    assert found["probabilities"] == pytest.approx({"a": 0.5, "b": 0.25}, abs=1e-3)
    assert Classification(BERT, (), NUMBER).decode(example, [{"logits": np.array([1.5])}]) == {"score": 1.5}
    task = Choice(BERT, 3)
    example = task.encode(row(choices=["bee", "cow"]), labelled=False)
    found = task.decode(example, [{"mc_logits": np.array([0.0, np.log(3), 9.0])}])
    assert (found["label"], found["choice"], len(found["probabilities"])) == (1, "cow", 2)
    assert found["probability"] == pytest.approx(0.75)


@given(st.permutations(["10", "9", "1"]), st.permutations(["b", "a", "10"]))
def test_labels_are_sorted_whatever_their_order(numbers, names):
    assert find_labels([Row("", {"label": int(name)}) for name in numbers], "label", False) == ("1", "9", "10")
    assert find_labels([Row("", {"label": f" {name}"}) for name in names], "label", False) == ("10", "a", "b")
    assert find_labels([Row("", {"label": [name, "a"]}) for name in names], "label", True) == ("10", "a", "b")
    assert find_labels([Row("", {"label": name}) for name in ("01", "2", "1")], "label", False) == ("01", "1", "2")
    assert find_labels([Row("", {"label": value}) for value in (True, False)], "label", False) == ("false", "true")


def test_the_most_choices():
    rows = [Row("", {"choices": ["a"] * count}) for count in (2, 5, 3)]
    assert most_choices(rows, "choices") == 5
    assert most_choices(rows, ["x", "y", "z"]) == 3
    assert most_choices([Row("", {})], "choices") == 2


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        (Classification(BERT, ("no", "yes")), {}, "column 'label' is missing .*; set task.label to another"),
        (Classification(BERT, ("no", "yes")), {"label": "y"}, "label 'y' is not among those of the training data"),
        (
            Classification(BERT, ("no", "yes")),
            {"label": 1.5},
            "label 1.5 is not a class name; .* set task.kind to regression",
        ),
        (Classification(BERT, ("no", "yes"), pair="b"), {"label": "no"}, "column 'b' is missing .*; set task.pair"),
        (Classification(BERT, ("a", "b"), SEVERAL), {"label": ["a", "z"]}, "label 'z' is not among"),
        (Classification(BERT, ("a", "b"), SEVERAL), {"label": 3}, "labels 3 must be a list, or a text separated by"),
        (Classification(BERT, (), NUMBER), {"label": "x"}, "column 'label' is 'x'; a regression needs a number"),
        (Classification(BERT, (), NUMBER), {"label": "nan"}, "column 'label' is 'nan'; a regression needs"),
        (Classification(BERT, (), NUMBER), {"label": 10**400}, "column 'label' is 1000000.*; a regression needs"),
        (Classification(BERT, (), NUMBER), {"label": 1e39}, "column 'label' is 1e\\+39; a regression needs"),
        (Classification(BERT, (), NUMBER), {"label": True}, "column 'label' is True; a regression needs"),
        (Choice(BERT, 2), {"label": 0}, "column 'choices' is missing .*; set task.choices to another"),
        (Choice(BERT, 2), {"label": 0, "choices": ["a"]}, "task.choices must give two texts or more, not"),
        (Choice(BERT, 2), {"label": 0, "choices": ["a", " "]}, "task.choices must give two texts or more"),
        (Choice(BERT, 2), {"label": 0, "choices": ["a", "b", "c"]}, "3 choices; the maximum here is 2"),
        (Choice(BERT, 2), {"label": 2, "choices": ["a", "b"]}, "label 2 is out of range: the choices are 0 to 1"),
        (Choice(BERT, 2), {"label": "9" * 5000, "choices": ["a", "b"]}, "label '999.* is not the number of a choice"),
        (Choice(BERT, 2), {"label": -1, "choices": ["a", "b"]}, "label -1 is not the number of a choice, from 0 to 1"),
        (Choice(BERT, 2), {"label": True, "choices": ["a", "b"]}, "label True is not the number of a choice"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(task, values, message):
    with pytest.raises(InputError, match=f"^a.csv line 2: {message}"):
        task.encode(row(**values))


def test_training_rows_of_one_label_are_refused():
    with pytest.raises(InputError, match=r"the training rows have only the labels \['a'\]; give at least two"):
        find_labels([Row("", {"label": "a"})], "label", False)
    rows = [Row("", {"label": str(number)}) for number in range(10_001)]
    with pytest.raises(InputError, match="data.train has 10,001 labels in column 'label', over the maximum of 10,000"):
        find_labels(rows, "label", False)
    with pytest.raises(InputError, match="give at least one"):
        find_labels([Row("", {"label": []})], "label", True)


def test_a_column_in_other_capitals_is_offered():
    with pytest.raises(InputError, match=r"column 'text' is missing \(columns: Text, label\); set task.text=Text$"):
        Row("a.jsonl line 1", {"Text": "a", "label": "b"}).text("text", "task.text")
