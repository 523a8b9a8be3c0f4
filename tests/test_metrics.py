"""Scores of predictions against literal values."""

import json
import sys
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from bertgpt.data.tasks.tagging import entity_spans
from bertgpt.errors import InputError
from train.job import Best
from train.jobs import task_metrics


def test_classes():
    found = task_metrics.class_scores(["a", "a", "b", "b"], ["a", "b", "b", "b"])
    assert found == pytest.approx({"accuracy": 0.75, "macro_f1": (2 / 3 + 0.8) / 2, "matthews": 0.57735}, abs=1e-5)
    assert task_metrics.class_scores(["a", "b"], ["a", "a"])["matthews"] == 0
    assert task_metrics.class_scores(["a", "a", "b", "b"], ["a", "b", "b", "b"], ("a", "b"))["f1"] == pytest.approx(0.8)


def test_several_labels():
    found = task_metrics.several_scores(("x", "y"), [["x"], ["x", "y"], []], [["x"], ["y"], ["y"]])
    assert found == pytest.approx({"f1": 2 / 3, "macro_f1": (2 / 3 + 2 / 3) / 2, "exact_match": 1 / 3})


def test_one_label_of_several_is_not_two_classes():
    assert task_metrics.several_scores(("x",), [["x"], [], []], [[], [], []])["f1"] == 0


def test_numbers():
    found = task_metrics.number_scores([1.0, 2.0, 3.0], [1.0, 2.0, 9.0])
    assert found == pytest.approx({"pearson": 0.917663, "spearman": 1.0, "mean_squared_error": 12.0}, abs=1e-5)
    assert task_metrics.number_scores([1.0, 2.0], [3.0, 3.0]) == {
        "pearson": 0,
        "spearman": 0,
        "mean_squared_error": 2.5,
    }


def test_entities_count_whole():
    golds = [["B-P", "I-P", "O", "B-L"]]
    found = task_metrics.tag_scores(golds, [["B-P", "O", "O", "B-L"]])
    assert found == pytest.approx({"accuracy": 0.75, "f1": 0.5, "precision": 0.5, "recall": 0.5})
    assert task_metrics.tag_scores(golds, [["O"] * 4])["f1"] == 0


def test_a_missed_entity_of_one_word_counts():
    golds, tags = [["U-LOC", "O", "U-PER", "U-PER"]], [["U-LOC", "O", "U-PER", "O"]]
    assert task_metrics.tag_scores(golds, tags) == pytest.approx(
        {"accuracy": 0.75, "f1": 0.8, "precision": 1.0, "recall": 2 / 3}
    )
    assert task_metrics.type_scores(golds, tags) == {
        "LOC": {"f1": 1.0, "precision": 1.0, "recall": 1.0, "support": 1},
        "PER": {"f1": pytest.approx(2 / 3), "precision": 1.0, "recall": 0.5, "support": 2},
    }


def test_a_type_that_is_only_predicted_has_no_support():
    found = task_metrics.type_scores([["O", "B-P"]], [["B-L", "O"]])
    assert found == {label: {"f1": 0, "precision": 0, "recall": 0, "support": n} for label, n in (("L", 0), ("P", 1))}
    assert task_metrics.type_scores([["O"]], [["O"]]) == {}


def test_the_models_labels_say_whether_tags_mark_entities():
    golds, tags = [["O", "X"]], [["O", "X"]]
    assert task_metrics.tag_scores(golds, tags, ["O", "B-PER", "X"])["precision"] == 0
    assert task_metrics.tag_scores(golds, tags, ["O", "N", "X"]) == {"accuracy": 1, "f1": 1}


ENTITIES = json.loads((Path(__file__).parent / "goldens" / "entities.json").read_text())["schemes"]


@pytest.mark.parametrize("scheme", ENTITIES)
def test_scores_of_entities_are_those_of_seqeval_and_conlleval(scheme):
    golden = ENTITIES[scheme]
    golds, tags = ([row[side].split() for row in golden["sentences"]] for side in ("gold", "predicted"))
    scores = task_metrics.tag_scores(golds, tags)
    assert [scores[name] for name in ("precision", "recall", "f1")] == pytest.approx(golden["precision, recall, f1"])
    assert [sum(counts.values()) for counts in task_metrics._count_entities(golds, tags)] == golden[
        "correct, found, gold"
    ]
    by_type = task_metrics.type_scores(golds, tags)
    assert list(by_type) == list(golden["types"])
    for label, expected in golden["types"].items():
        figures = [by_type[label][name] for name in ("precision", "recall", "f1", "support")]
        assert figures == pytest.approx(expected), label


def sentences(letters):
    tag = st.one_of(st.just("O"), st.builds("{}-{}".format, st.sampled_from(letters), st.sampled_from(["P", "L-x"])))
    return st.lists(st.lists(st.tuples(tag, tag), min_size=1, max_size=8), min_size=1, max_size=4)


@pytest.mark.parametrize("letters", ["BI", "IE", "BIES", "BILU", "BMES", "BMEW"])
@hypothesis.given(st.data())
def test_scores_are_those_of_the_lists_of_entities(letters, data):
    pairs = data.draw(sentences(letters))
    golds, tags = ([[pair[side] for pair in sentence] for sentence in pairs] for side in (0, 1))
    gold, found = (
        [(number, *span) for number, sentence in enumerate(rows) for span in entity_spans(sentence)]
        for rows in (golds, tags)
    )
    right = len([entity for entity in found if entity in gold])
    scores = task_metrics.tag_scores(golds, tags, [f"{letter}-P" for letter in letters])
    assert scores["precision"] == (right / len(found) if found else 0)
    assert scores["recall"] == (right / len(gold) if gold else 0)
    assert scores["f1"] == (2 * right / (len(found) + len(gold)) if found or gold else 0)
    by_type = task_metrics.type_scores(golds, tags)
    assert sum(figures["support"] for figures in by_type.values()) == len(gold)
    for label, figures in by_type.items():
        of_type = [[entity for entity in rows if entity[1] == label] for rows in (gold, found)]
        right = len([entity for entity in of_type[1] if entity in of_type[0]])
        assert figures["f1"] == 2 * right / (len(of_type[0]) + len(of_type[1]))


def test_parts_of_speech_are_classes():
    found = task_metrics.tag_scores([["N", "V"], ["N"]], [["N", "N"], ["N"]])
    assert found == pytest.approx({"accuracy": 2 / 3, "f1": (0.8 + 0) / 2})


def test_better_is_lower_or_higher():
    assert Best("loss").selection_loss({"loss": 2.0}) == 2.0
    assert Best("f1", higher=True).selection_loss({"f1": 2.0}) == -2.0


def test_a_missing_library_is_one_line(monkeypatch):
    task_metrics.check_libraries()
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(InputError, match=r"scipy is not installed; pip install 'bertgpt\[tasks\]'"):
        task_metrics.check_libraries()


def test_a_picture_of_confusions(tmp_path):
    task_metrics.draw_confusion(["a", "b"], ["a", "a"], ("a", "b"), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
