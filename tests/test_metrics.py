"""Scores of predictions against literal values."""

import sys

import pytest

from bertgpt.errors import InputError
from train import metrics
from train.loop import Best


def test_classes():
    found = metrics.class_scores(["a", "a", "b", "b"], ["a", "b", "b", "b"])
    assert found == pytest.approx({"accuracy": 0.75, "macro_f1": (2 / 3 + 0.8) / 2, "matthews": 0.57735}, abs=1e-5)
    assert metrics.class_scores(["a", "b"], ["a", "a"])["matthews"] == 0
    assert metrics.class_scores(["a", "a", "b", "b"], ["a", "b", "b", "b"], ("a", "b"))["f1"] == pytest.approx(0.8)


def test_several_labels():
    found = metrics.several_scores(("x", "y"), [["x"], ["x", "y"], []], [["x"], ["y"], ["y"]])
    assert found == pytest.approx({"f1": 2 / 3, "macro_f1": (2 / 3 + 2 / 3) / 2, "exact_match": 1 / 3})


def test_one_label_of_several_is_not_two_classes():
    assert metrics.several_scores(("x",), [["x"], [], []], [[], [], []])["f1"] == 0


def test_numbers():
    found = metrics.number_scores([1.0, 2.0, 3.0], [1.0, 2.0, 9.0])
    assert found == pytest.approx({"pearson": 0.917663, "spearman": 1.0, "mean_squared_error": 12.0}, abs=1e-5)
    assert metrics.number_scores([1.0, 2.0], [3.0, 3.0]) == {"pearson": 0, "spearman": 0, "mean_squared_error": 2.5}


def test_entities_count_whole():
    golds = [["B-P", "I-P", "O", "B-L"]]
    found = metrics.tag_scores(golds, [["B-P", "O", "O", "B-L"]])
    assert found == pytest.approx({"accuracy": 0.75, "f1": 0.5, "precision": 0.5, "recall": 0.5})
    assert metrics.tag_scores(golds, [["O"] * 4])["f1"] == 0


def test_parts_of_speech_are_classes():
    found = metrics.tag_scores([["N", "V"], ["N"]], [["N", "N"], ["N"]])
    assert found == pytest.approx({"accuracy": 2 / 3, "f1": (0.8 + 0) / 2})


def test_better_is_lower_or_higher():
    assert Best("loss").badness({"loss": 2.0}) == 2.0
    assert Best("f1", higher=True).badness({"f1": 2.0}) == -2.0


def test_a_missing_library_is_one_line(monkeypatch):
    metrics.check_libraries()
    monkeypatch.setitem(sys.modules, "seqeval", None)
    with pytest.raises(InputError, match=r"seqeval is not installed; pip install 'bertgpt\[tasks\]'"):
        metrics.check_libraries()


def test_a_picture_of_confusions(tmp_path):
    metrics.draw_confusion(["a", "b"], ["a", "a"], ("a", "b"), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
