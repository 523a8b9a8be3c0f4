"""Baselines without a neural network, to compare fine-tuned models with. Needs scikit-learn."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold

Text = str | tuple[str, str]  # a text, or a pair of texts
F1 = Callable[[str, list[str]], float]  # (prediction, accepted answers) -> score
Sentence = Sequence[tuple[str, str]]  # (word, tag)
CS = (0.3, 1.0, 3.0, 10.0)  # candidates for the inverse regularization strength
MAX_SPAN = 24  # the longest answer, in words


def majority(train_labels: Sequence[Hashable], eval_labels: Sequence[Hashable]) -> float:
    """Return the accuracy of always predicting the most frequent label of the training split."""
    label = Counter(train_labels).most_common(1)[0][0]
    return sum(other == label for other in eval_labels) / len(eval_labels)


def tfidf(
    train_texts: Sequence[Text],
    train_labels: Sequence[Hashable],
    eval_texts: Sequence[Text],
    eval_labels: Sequence[Hashable],
    seed: int,
) -> float:
    """Return the accuracy of logistic regression on TF-IDF of words and bigrams; 5-fold cross-validation chooses C."""
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
    """Find the fixed span of words that answers the training questions best, and score it on eval.

    Args:
        train: rows with `context` and `answers`, a list of texts.
        eval: rows of the same form.
        f1: the function that scores a prediction.
        max_start: the number of words at the start of a passage where the span may begin.

    Returns:
        `span` (i, j), words i to j - 1; and on eval `f1` and `exact_match`, the share of answers with an F1 of 1.
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
    """Return the most frequent training tag of each word; for an unseen word, the most frequent tag overall."""
    counts: dict[str, Counter[str]] = {}
    for word, tag in (pair for sentence in train_sentences for pair in sentence):
        counts.setdefault(word, Counter())[tag] += 1
    overall = sum(counts.values(), Counter()).most_common(1)[0][0]
    best = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [[best.get(word, overall) for word, _ in sentence] for sentence in eval_sentences]


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _features(vectorizer: TfidfVectorizer, texts: Sequence[Text]) -> sparse.csr_matrix:
    """Return the vectors of texts. For pairs: both vectors, their elementwise product, and its sum (the cosine)."""
    sides = [vectorizer.transform(side) for side in zip(*map(_parts, texts), strict=True)]
    if len(sides) == 1:
        return sides[0]
    product = sides[0].multiply(sides[1])
    return sparse.hstack([*sides, product, sparse.csr_matrix(product.sum(axis=1))], format="csr")


def _span_scores(rows: list[tuple[list[str], list[str]]], span: tuple[int, int], f1: F1) -> list[float]:
    return [f1(" ".join(words[slice(*span)]), answers) for words, answers in rows]
