"""Fine-tune a model on GLUE as in the BERT paper: scores, and files for its test server. Run it again to resume."""

import argparse
from typing import Any

from . import add_grid, check_seeds, local_folder, parse_list, parse_rates, score_cells

SETS = {"accuracy_matched": ("MNLI-m", "accuracy"), "accuracy_mismatched": ("MNLI-mm", "accuracy")}  # as in table 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a model, the folder of GLUE, and what to run."""
    add_grid(parser, seeds=3, rates="default: 5e-5,4e-5,3e-5,2e-5", out="runs/glue")
    parser.add_argument("--data", metavar="FOLDER", required=True, help="GLUE's download, with a folder for each task")
    parser.add_argument("--tasks", metavar="A,B", help="such as CoLA,RTE (default: all nine)")


def run(options: argparse.Namespace) -> None:
    """Train, and print the table."""
    from bertgpt.data.tasks.glue import TASKS

    from ..jobs import glue
    from ..reports import say

    check_seeds(options.seeds)
    data, out = local_folder("--data", options.data), local_folder("--out", options.out)
    tasks = parse_list("--tasks", options.tasks, TASKS)
    rates = parse_rates(options.learning_rates, glue.RATES)
    results = glue.run(options.model, data, out, tasks, rates, options.seeds, options.overrides)
    show(results)
    files = sorted(path.stem for path in (out / "submission").glob("*.tsv"))
    say(f"scores: {out / 'glue.json'}" + (f"; test files in {out / 'submission'}: {', '.join(files)}" if files else ""))


def show(results: dict[str, Any]) -> None:
    """Print a row for each metric of each task, and the average."""
    from ..reports import show_columns

    rows = []
    for name, task in results["tasks"].items():
        for metric in task["mean"]:
            published = task["published_test"].get(metric, {})
            rows.append((*SETS.get(metric, (name, metric)), *score_cells(task, metric), *_pair(published)))
    if results["average"] is not None:
        found = results["average"]
        means = f"{found['best']:.1f}", f"{found['mean']:.1f}"
        rows.append(("average", "", *means, "", *_pair(found["published_test"])))
    header = ("task", "metric", "best run", "mean ± sd", "rate", "base, test", "large, test")
    show_columns(
        f"{results['model']} on the development sets of GLUE, and the published BERT-base and BERT-large",
        header,
        rows,
        left=2,
    )


def _pair(published: dict[str, float]) -> tuple[str, str]:
    """The published figures of both models, or "-"."""
    base, large = (published.get(name) for name in ("BERT-base", "BERT-large"))
    return ("-" if base is None else f"{base:.1f}", "-" if large is None else f"{large:.1f}")
