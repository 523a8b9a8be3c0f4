"""Metrics of predictions on held-out labels, computed by scikit-learn and SciPy (the extra `tasks`)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertgpt.data.tasks.classification import Classification
from bertgpt.data.tasks.squad import Answers, squad_scores
from bertgpt.data.tasks.tagging import Tagging, entity_spans, mark_entities
from bertgpt.data.tasks.task import Example, TaskData
from bertgpt.errors import InputError

from ..job import Best

BEST = {  # the metric that selects the best checkpoint
    "classification": Best("accuracy", higher=True),
    "multi_label": Best("f1", higher=True),
    "regression": Best("spearman", higher=True),
    "multiple_choice": Best("accuracy", higher=True),
    "question_answering": Best("f1", higher=True),
    "tagging": Best("f1", higher=True),
    "sft": Best("perplexity", higher=False),
}


def check_libraries() -> None:
    """
    Raises:
        InputError: the extra `tasks` is not installed.
    """
    try:
        import scipy  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'bertgpt[tasks]'") from error


def score(data: TaskData, examples: Sequence[Example], predictions: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The metrics of a task; the gold labels come from the examples' rows."""
    golds = [data.gold(example.row) for example in examples]  # type: ignore[attr-defined]
    if isinstance(data, Answers):
        return squad_scores([prediction["answer"] for prediction in predictions], golds)
    if isinstance(data, Tagging):
        return tag_scores(golds, [prediction["tags"] for prediction in predictions], data.labels)
    if isinstance(data, Classification) and data.problem == "regression":
        return number_scores(golds, [prediction["score"] for prediction in predictions])
    if isinstance(data, Classification) and data.problem == "multi_label_classification":
        return several_scores(data.labels, golds, [prediction["labels"] for prediction in predictions])
    names = data.labels if isinstance(data, Classification) else ()
    return class_scores(golds, [prediction["label"] for prediction in predictions], names)


def score_types(
    data: TaskData, examples: Sequence[Example], predictions: Sequence[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """`type_scores` of a task whose tags mark entities; empty for other tasks."""
    if not isinstance(data, Tagging) or not mark_entities(data.labels):
        return {}
    golds = [data.gold(example.row) for example in examples]
    return type_scores(golds, [prediction["tags"] for prediction in predictions])


def class_scores(golds: Sequence[Any], labels: Sequence[Any], names: Sequence[str] = ()) -> dict[str, float]:
    """Accuracy, macro F1 and Matthews correlation; for two classes also the F1 of the second."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    varied = len({*golds, *labels}) > 1  # scikit-learn warns of a single class
    second = {"f1": float(f1_score(golds, labels, pos_label=names[1], zero_division=0))} if len(names) == 2 else {}
    return second | {
        "accuracy": float(accuracy_score(golds, labels)),
        "macro_f1": float(f1_score(golds, labels, average="macro", zero_division=0)),
        "matthews": float(matthews_corrcoef(golds, labels)) if varied else 0.0,
    }


def several_scores(names: Sequence[str], golds: Sequence[list[str]], labels: Sequence[list[str]]) -> dict[str, float]:
    """Micro F1 over (row, label) pairs, macro F1 over labels, and the share of rows with every label correct."""
    from sklearn.metrics import f1_score

    gold, found = (np.array([[name in row for name in names] for row in rows]) for rows in (golds, labels))
    return {
        "f1": float(f1_score(gold.ravel(), found.ravel(), zero_division=0)),
        "macro_f1": float(
            np.mean([f1_score(*column, zero_division=0) for column in zip(gold.T, found.T, strict=True)])
        ),
        "exact_match": float((gold == found).all(1).mean()),
    }


def number_scores(golds: Sequence[float], numbers: Sequence[float]) -> dict[str, float]:
    """Pearson and Spearman correlation, 0 if either side is constant, and the mean squared error."""
    from scipy.stats import pearsonr, spearmanr

    error = float(np.mean((np.array(golds) - np.array(numbers)) ** 2))
    if len(golds) < 2 or np.ptp(golds) == 0 or np.ptp(numbers) == 0:
        return {"pearson": 0.0, "spearman": 0.0, "mean_squared_error": error}
    found = {"pearson": pearsonr(golds, numbers).statistic, "spearman": spearmanr(golds, numbers).statistic}
    return {name: float(value) for name, value in found.items()} | {"mean_squared_error": error}


def tag_scores(golds: Sequence[list[str]], tags: Sequence[list[str]], labels: Iterable[str] = ()) -> dict[str, float]:
    """Accuracy over words, and F1.

    For tags that mark entities: precision, recall and F1 of `entity_spans`, as in conlleval. For other tags: macro F1.

    Args:
        golds: the gold tags of each sentence.
        tags: the predicted tags of each sentence.
        labels: all tags of the model, which decide whether tags mark entities; if empty, the tags that occur.
    """
    from sklearn.metrics import f1_score

    flat_gold, flat = ([tag for row in rows for tag in row] for rows in (golds, tags))
    accuracy = {"accuracy": float(np.mean(np.array(flat_gold, object) == np.array(flat, object)))}
    if not mark_entities(labels or {*flat_gold, *flat}):
        return accuracy | {"f1": float(f1_score(flat_gold, flat, average="macro", zero_division=0))}
    return accuracy | _rates(*(sum(counts.values()) for counts in _count_entities(golds, tags)))


def type_scores(golds: Sequence[list[str]], tags: Sequence[list[str]]) -> dict[str, dict[str, float]]:
    """For each entity label, sorted: `f1`, `precision`, `recall`, and `support`, the number of gold entities."""
    right, found, gold = _count_entities(golds, tags)
    return {
        label: _rates(right[label], found[label], gold[label]) | {"support": gold[label]}
        for label in sorted(found | gold)
    }


def _count_entities(golds: Sequence[list[str]], tags: Sequence[list[str]]) -> tuple[Counter[str], ...]:
    """The number of correctly found, found and gold entities of each label."""
    right, found, gold = Counter[str](), Counter[str](), Counter[str]()
    for pair in zip(golds, tags, strict=True):
        there, said = (set(entity_spans(sentence)) for sentence in pair)
        for counter, spans in ((right, there & said), (found, said), (gold, there)):
            counter.update(label for label, _, _ in spans)
    return right, found, gold


def _rates(right: int, found: int, gold: int) -> dict[str, float]:
    """F1, precision and recall; 0 if the denominator is 0."""
    return {"f1": 2 * right / max(found + gold, 1), "precision": right / max(found, 1), "recall": right / max(gold, 1)}


def draw_confusion(golds: Sequence[str], labels: Sequence[str], names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix: counts in the cells, colors by the share of the true class."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(golds, labels, labels=list(names))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = max(3.0, 1.2 + 0.6 * len(names))
    figure, axis = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*matrix.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted", ylabel="true")
    figure.savefig(path, dpi=120)
    plt.close(figure)
