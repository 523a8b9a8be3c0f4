"""Fine-tune a model on SQuAD as in the BERT paper: scores, and predictions as files. Run it again to resume."""

import argparse
from typing import Any

from . import add_grid, check_seeds, local_folder, parse_list, parse_rates, score_cells

NAMES = {"exact_match": "EM", "f1": "F1", "best_exact": "best EM", "best_f1": "best F1"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a model, the folder of SQuAD, and what to run."""
    add_grid(parser, seeds=1, rates="the best one is chosen (default: 5e-5)", out="runs/squad")
    parser.add_argument("--data", metavar="FOLDER", required=True, help="folder of train-v1.1.json, dev-v1.1.json, ...")
    parser.add_argument("--versions", metavar="A,B", help="1.1, 2.0 or 1.1,2.0 (default: those in the folder)")


def run(options: argparse.Namespace) -> None:
    """Train, and print the table."""
    from ..jobs import squad
    from ..reports import say

    check_seeds(options.seeds)
    data, out = local_folder("--data", options.data), local_folder("--out", options.out)
    versions = None if options.versions is None else parse_list("--versions", options.versions, squad.VERSIONS)
    rates = parse_rates(options.learning_rates, squad.RATES)
    results = squad.run(options.model, data, out, versions, rates, options.seeds, options.overrides)
    show(results)
    say(f"scores: {out / 'squad.json'}; predictions: {out}/squad*/predictions.json")


def show(results: dict[str, Any]) -> None:
    """Print a row for each metric of each version."""
    from ..reports import show_columns

    rows = []
    for version, found in results["versions"].items():
        for metric, name in NAMES.items():
            if metric in found["mean"]:
                cells: tuple[str, ...] = score_cells(found, metric)
            elif metric in found:
                name += f" at {found[f'{metric}_thresh']:.3f}"  # the null threshold
                cells = (f"{found[metric]:.1f}", "", "")
            else:
                continue
            published = found["published_dev"].get(metric, {})
            others = (f"{published[one]:.1f}" if one in published else "-" for one in ("BERT-base", "BERT-large"))
            rows.append((version, name, *cells, *others))
    header = ("SQuAD", "metric", "best run", "mean ± sd", "rate", "base, dev", "large, dev")
    show_columns(
        f"{results['model']} on the development sets of SQuAD, and the published BERT-base and BERT-large",
        header,
        rows,
        left=2,
    )
