"""curves.png: the losses and accuracies of one run, or of several over each other."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .atomic_files import whole_file

UNITS = {  # what is drawn: the title of its panel, and the unit of its axis
    "mlm_loss": ("MLM loss", "nats per masked token"),
    "nsp_loss": ("NSP loss", "nats per pair"),
    "task_loss": ("task loss", "loss"),
    "start_loss": ("start loss", "nats per question"),
    "end_loss": ("end loss", "nats per question"),
    "lm_loss": ("LM loss", "nats per token"),
    "mlm_accuracy": ("MLM accuracy", "share of masked tokens"),
    "nsp_balanced_accuracy": ("NSP balanced accuracy", "share of pairs"),
    "bits_per_byte": ("bits per byte", "bits per byte of text"),
    "accuracy": ("accuracy", "share"),
    "f1": ("F1", "F1"),
    "spearman": ("Spearman's correlation", "correlation"),
}
BASELINES = {  # figure -> the name of its baseline, and the figure that has its value
    "mlm_loss": ("unigram", "unigram_cross_entropy"),
    "lm_loss": ("unigram", "unigram_cross_entropy"),
    "nsp_balanced_accuracy": ("segment lengths", "nsp_length_baseline"),
}
COLUMNS = 3  # most panels in a row
WIDTH = 10.0  # inches; at 100 dots per inch, 1000 pixels
HEIGHT = 3.0  # of a panel
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
BASELINE = "#555555"
SMOOTHED = 25  # a smoothed curve averages one part in so many of its points; of few points, up to five
BEGINNING = 0.05  # share of the steps whose training losses may lie above the panel


class Curve(NamedTuple):
    """Some values over the steps; `steps` and `values` are [N] float64."""

    steps: np.ndarray
    values: np.ndarray


def draw(runs: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Draw the rows of metrics of runs, by their names, to a PNG file.

    Each figure has a panel: the smoothed training curve (of one run, also the raw one), a point for each evaluation
    with the last value next to it, and its baseline.

    Raises:
        InputError: the file's folder does not exist.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in UNITS if any(name in row for rows in runs.values() for row in rows)]
    columns = _columns(len(names))
    lines = -(-len(names) // columns)
    legend = 0.25 * (1 + len(runs))  # inches
    size = (WIDTH if columns > 1 else 0.62 * WIDTH, HEIGHT * lines + legend)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        _panel(axis, name, runs)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    handles = {label: line for axis in figure.axes for line, label in zip(*_legend(axis), strict=True)}
    several = len(runs) > 1
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower left",
        ncols=1 if several else 2,
        fontsize=9,
        title="points: held out; faint lines: training" if several else None,
        alignment="left",
        title_fontsize=9,
    )
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=100)
    plt.close(figure)


def _columns(panels: int) -> int:
    return 2 if panels in (2, 4) else min(COLUMNS, panels)


def _legend(axis: Any) -> tuple[list[Any], list[str]]:
    return axis.get_legend_handles_labels()


def curve(rows: Iterable[dict[str, Any]], split: str, name: str) -> Curve:
    """The values of a figure in the rows of a split."""
    points = [(row["step"], row[name]) for row in rows if row["split"] == split and name in row]
    return Curve(*np.array(points, float).reshape(-1, 2).T)


def smoothed(values: np.ndarray) -> np.ndarray:
    """A centred moving average [N], over fewer values near both ends."""
    half = max(len(values) // (2 * SMOOTHED), min(len(values) // 10, 2))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    place = np.arange(len(values))
    reach = np.minimum(half, np.minimum(place, place[::-1]))  # as many on both sides, so that a slope stays unchanged
    return (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)


def _panel(axis: Any, name: str, runs: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Draw one figure of all runs."""
    title, unit = UNITS[name]
    ends = []
    for number, (label, rows) in enumerate(runs.items()):
        colour, alone = COLOURS[number % len(COLOURS)], len(runs) == 1
        train, scored = curve(rows, "train", name), curve(rows, "eval", name)
        if alone and len(train.values) >= 10:
            axis.plot(*train, color=colour, alpha=0.25, linewidth=0.8)
        if len(train.values):
            text = "training" if alone else None
            style = {"color": colour, "linewidth": 1.2, "alpha": 1 if alone else 0.5}
            axis.plot(train.steps, smoothed(train.values), **style, label=text)
        if len(scored.values):
            if alone:
                colour = COLOURS[1]
            text = "held out" if alone else label
            axis.plot(*scored, "o-", color=colour, markersize=4, linewidth=1.5, label=text)
            ends.append((scored.steps[-1], scored.values[-1], colour))
    _limit(axis, name, runs)
    _baseline(axis, name, runs)
    _write_ends(axis, ends)
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("step")
    axis.set_ylabel(unit)
    axis.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _limit(axis: Any, name: str, runs: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Fit the panel to all held-out values and baselines, and to the training values after the beginning."""
    last = max(row["step"] for rows in runs.values() for row in rows)
    kept = [np.array(list(baselines(runs, name).values()), float)]
    for rows in runs.values():
        train = curve(rows, "train", name)
        kept += [smoothed(train.values)[train.steps >= BEGINNING * last], curve(rows, "eval", name).values]
    values = np.concatenate(kept)
    values = values[np.isfinite(values)]
    if len(values):
        low, high = values.min(), values.max()
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
        axis.set_ylim(low - margin, high + margin)
    axis.set_xlim(-0.02 * last, 1.13 * last)  # with room for the last values


def baselines(runs: Mapping[str, Sequence[dict[str, Any]]], name: str) -> dict[str, float]:
    """The different baselines of a figure in the last evaluations of runs: name and value as a text -> value."""
    if name not in BASELINES:
        return {}
    title, key = BASELINES[name]
    scored = [[row for row in rows if row["split"] == "eval" and name in row] for rows in runs.values()]
    found = [rows[-1][key] for rows in scored if rows and key in rows[-1]]
    return {f"{title} {value:.3f}": value for value in found}


def _baseline(axis: Any, name: str, runs: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Draw the baselines of a figure, each with its name at its line, on the side without the curves' ends."""
    ends = [values[-1] for rows in runs.values() if len(values := curve(rows, "eval", name).values)]
    for text, value in baselines(runs, name).items():
        axis.axhline(value, color=BASELINE, linestyle=":", linewidth=1.2)
        over = value >= np.mean(ends)
        place = {"xy": (0.99, value), "xycoords": axis.get_yaxis_transform(), "textcoords": "offset points"}
        side = {"xytext": (0, 2 if over else -2), "va": "bottom" if over else "top", "ha": "right"}
        axis.annotate(text, **place, **side, color=BASELINE, fontsize=8)


def _write_ends(axis: Any, ends: Sequence[tuple[float, float, str]]) -> None:
    """Write the last value of each run next to its point, moved so that no two overlap."""
    low, high = axis.get_ylim()
    heights = spread([(value - low) / (high - low) for _, value, _ in ends], 0.07)
    for (step, value, colour), height in zip(ends, heights, strict=True):
        if np.isfinite(value):
            place = (step, low + height * (high - low))
            offset = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axis.annotate(f"{value:.3f}", place, **offset, color=colour, fontsize=9, annotation_clip=False)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places that lie about `gap` apart or more, in the order of the given ones and close to them."""
    order = np.argsort(places, kind="stable")
    found = np.array(places, float)[order]
    for _ in range(100):  # neighbours that are too close move apart, which may bring them too close to the next ones
        for index in range(len(found) - 1):
            lack = max(0.0, gap - (found[index + 1] - found[index]))
            found[index] -= lack / 2
            found[index + 1] += lack / 2
    result = np.empty_like(found)
    result[order] = found
    return result.tolist()
