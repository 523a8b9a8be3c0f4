"""What is reached without a neural network, so that a fine-tuned model's numbers mean something. Needs scikit-learn."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold

Text = str | tuple[str, str]  # a text, or a pair of texts
F1 = Callable[[str, list[str]], float]  # of a prediction against the answers
Sentence = Sequence[tuple[str, str]]  # (word, tag)
CS = (0.3, 1.0, 3.0, 10.0)  # inverse strengths of regularization, chosen among by cross-validation
MAX_SPAN = 24  # words of an answer


def majority(train_labels: Sequence[Hashable], eval_labels: Sequence[Hashable]) -> float:
    """Accuracy of always saying the training split's most frequent label."""
    label = Counter(train_labels).most_common(1)[0][0]
    return sum(other == label for other in eval_labels) / len(eval_labels)


def tfidf(
    train_texts: Sequence[Text],
    train_labels: Sequence[Hashable],
    eval_texts: Sequence[Text],
    eval_labels: Sequence[Hashable],
    seed: int,
) -> float:
    """Accuracy of logistic regression on TF-IDF of words and pairs of words; C by 5-fold cross-validation."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    vectorizer.fit([part for text in train_texts for part in _parts(text)])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    regression = LogisticRegression(max_iter=2000, random_state=seed)
    search = GridSearchCV(regression, {"C": CS}, cv=folds).fit(_features(vectorizer, train_texts), train_labels)
    return float(search.score(_features(vectorizer, eval_texts), eval_labels))


def best_fixed_span(
    train: Sequence[dict[str, Any]],
    eval: Sequence[dict[str, Any]],
    f1: F1,
    max_start: int = 60,
) -> dict[str, Any]:
    """The one place in a passage, as words i to j, that answers the training questions best.

    Args:
        train: rows with `context` and `answers`, a list of texts; `eval` likewise.
        max_start: words of a passage at which the answer may begin.

    Returns:
        `span` (i, j), words i to j - 1; on eval `f1`, and `exact_match`, the share of answers met entirely.
    """
    held_out = [(row["context"].split(), row["answers"]) for row in eval]
    rows = [(row["context"].split(), row["answers"]) for row in train]
    longest = max(len(words) for words, _ in rows)
    starts = range(min(max_start, longest))
    spans = [(i, j) for i in starts for j in range(i + 1, min(i + MAX_SPAN, longest) + 1)]
    span = max(spans, key=lambda span: float(np.mean(_span_scores(rows, span, f1))))
    scores = _span_scores(held_out, span, f1)
    return {"span": span, "f1": float(np.mean(scores)), "exact_match": float(np.mean([score == 1 for score in scores]))}


def most_frequent_tag(train_sentences: Sequence[Sentence], eval_sentences: Sequence[Sentence]) -> list[list[str]]:
    """Each word's most frequent tag in training; of a word that is not there, the most frequent tag of all."""
    counts: dict[str, Counter[str]] = {}
    for word, tag in (pair for sentence in train_sentences for pair in sentence):
        counts.setdefault(word, Counter())[tag] += 1
    overall = sum(counts.values(), Counter()).most_common(1)[0][0]
    best = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [[best.get(word, overall) for word, _ in sentence] for sentence in eval_sentences]


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _features(vectorizer: TfidfVectorizer, texts: Sequence[Text]) -> sparse.csr_matrix:
    """A text's vector; for a pair both vectors, their product word by word, and its sum, the cosine."""
    sides = [vectorizer.transform(side) for side in zip(*map(_parts, texts), strict=True)]
    if len(sides) == 1:
        return sides[0]
    product = sides[0].multiply(sides[1])
    return sparse.hstack([*sides, product, sparse.csr_matrix(product.sum(axis=1))], format="csr")


def _span_scores(rows: list[tuple[list[str], list[str]]], span: tuple[int, int], f1: F1) -> list[float]:
    return [f1(" ".join(words[slice(*span)]), answers) for words, answers in rows]
