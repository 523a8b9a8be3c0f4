"""A table of the fine-tuning demos over several seeds, with baselines that use no neural network.

python -m benchmarks.tasks [--seeds 3] [--only sentiment pairs ...]
python -m benchmarks.tasks --only equal

Each run is a separate command and is stored in runs/tasks. If the benchmark is interrupted, run it again to resume.
`equal` pretrains a BERT and a GPT-1 of the same size on the same text for the same number of steps, and fine-tunes both
on sentiment.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import baselines, demo_data
from bertgpt.data.tasks.readers import read_rows
from bertgpt.data.tasks.squad import f1
from train.jobs.task_metrics import tag_scores
from train.reports import read_metrics

DATA, OUT = Path("runs/demo_data"), Path("runs/tasks")
PAPER = [  # settings that give configs/bert_demo.yaml the paper's optimizer and masks
    "optimizer.name=adamw",
    "optimizer.learning_rate=0.002",
    "optimizer.warmup_steps=230",
    "data.mask_rate=0.15",
    "train.steps=2300",
    "train.eval_every=1150",
    "train.eval_examples=5120",
    "checkpoint.every=1150",
]
EQUAL = [  # settings that make configs/gpt1_demo.yaml equal to configs/bert_demo.yaml with those
    "tokenizer.vocab_size=8000",
    "data.sequence_length=48",
    "optimizer.schedule=linear",
    "optimizer.warmup_steps=230",
    "train.steps=2300",
    "train.eval_every=1150",
    "checkpoint.every=1150",
]
RATES = (3e-4, 1e-3)
FROM_GPT1 = ("responses", "gpt1_sentiment")  # demos that start from the GPT-1 of configs/gpt1_demo.yaml


class Demo(NamedTuple):
    """A demo: the metric that is reported, and its baselines by name."""

    figure: str
    baselines: Callable[[], dict[str, float]]


def rows(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the training rows and the held-out rows of a data set."""
    stem, _, suffix = name.rpartition(".")
    train, held_out = (
        [row.values for row in read_rows(str(DATA / f"{stem}_{split}.{suffix}"))] for split in ("train", "eval")
    )
    return train, held_out


def classified(name: str, pair: str | None = None) -> dict[str, float]:
    """Return the baselines of classification: the majority class, and logistic regression on TF-IDF."""
    train, held_out = rows(name)
    labels = [[row["label"] for row in split] for split in (train, held_out)]
    texts = [[(row["text"], row[pair]) if pair else row["text"] for row in split] for split in (train, held_out)]
    return {
        "majority": baselines.majority(*labels),
        "TF-IDF": baselines.tfidf(texts[0], labels[0], texts[1], labels[1], seed=0),
    }


def answered() -> dict[str, float]:
    """Return the baseline of question answering: the best fixed span."""
    splits = [[{**row, "answers": row["answers"]["text"]} for row in split] for split in rows("questions.json")]
    return {"best fixed span": 100 * baselines.best_fixed_span(*splits, f1)["f1"]}


def tagged() -> dict[str, float]:
    """Return the baseline of tagging: the most frequent tag of each word."""
    splits = [[list(zip(row["words"], row["tags"], strict=True)) for row in split] for split in rows("entities.conll")]
    golds = [[tag for _, tag in sentence] for sentence in splits[1]]
    return {"most frequent tag": tag_scores(golds, baselines.most_frequent_tag(*splits))["f1"]}


DEMOS = {
    "sentiment": Demo("accuracy", lambda: classified("sentiment.csv")),
    "pairs": Demo("accuracy", lambda: classified("pairs.jsonl", "pair")),
    "questions": Demo("f1", answered),
    "entities": Demo("f1", tagged),
    "responses": Demo("perplexity", dict),  # the baseline is the value before training
    "score": Demo("spearman", dict),
    "choices": Demo("accuracy", lambda: {"chance": 0.2}),
    "kinds": Demo("f1", dict),
    "gpt1_sentiment": Demo("accuracy", lambda: classified("sentiment.csv")),
}


def run(verb: str, config: str, out: Path, *overrides: str) -> None:
    """Run one training command unless its result exists, and store its duration."""
    if (out / "seconds.json").exists():
        return
    shutil.rmtree(
        out, ignore_errors=True
    )  # an interrupted run starts again, since resuming it would give a wrong duration
    began = time.monotonic()
    command = [sys.executable, "-m", "train", verb, config, f"out={out}", *overrides]
    subprocess.run(command, check=True)
    (out / "seconds.json").write_text(json.dumps(time.monotonic() - began))


def evaluations(out: Path, figure: str) -> tuple[float, float]:
    """Return the metric before the first step and after the last one.

    The best value is not used: it would be selected on the same rows that it is judged on.
    """
    found = [row[figure] for row in read_metrics(out) if row["split"] == "eval"]
    return found[0], found[-1]


def measure(name: str, seeds: int) -> str:
    """Run a demo with several seeds, and return its row of the table."""
    if name in FROM_GPT1:
        run("pretrain", "configs/gpt1_demo.yaml", OUT / "gpt1_demo")
    demo, folders = DEMOS[name], [OUT / f"{name}_{seed}" for seed in range(seeds)]
    for seed, folder in enumerate(folders):
        start = [f"model.init_from={OUT / 'gpt1_demo'}"] if name in FROM_GPT1 else []
        run("finetune", f"configs/finetune/demo_{name}.yaml", folder, f"seed={seed}", *start)
    starts, ends = np.array([evaluations(folder, demo.figure) for folder in folders]).T
    seconds = np.mean([json.loads((folder / "seconds.json").read_text()) for folder in folders])
    others = {f"before: {starts.mean():.3f}": None} if name == "responses" else demo.baselines()
    beside = ", ".join(text if value is None else f"{text} {value:.3f}" for text, value in others.items())
    ratio = f", {np.max(ends / starts):.2f} of its start at most" if name == "responses" else ""
    found = f"{spread(ends)}{ratio}"
    return f"| {name} | {demo.figure} | {found} | {beside} | {seconds:.0f} s |"


def equal(seeds: int) -> list[str]:
    """Compare BERT and GPT-1 of equal size and pretraining on one task, with each learning rate."""
    lines = []
    for name, overrides in (("bert", PAPER), ("gpt1", EQUAL)):
        base = OUT / f"equal_{name}"
        run("pretrain", f"configs/{name}_demo.yaml", base, *overrides)
        for rate in RATES:
            folders = [OUT / f"equal_{name}_{rate}_{seed}" for seed in range(seeds)]
            for seed, folder in enumerate(folders):
                options = [f"model.init_from={base}", f"optimizer.learning_rate={rate}", f"seed={seed}"]
                options += ["data.sequence_length=48"]
                run("finetune", "configs/finetune/demo_gpt1_sentiment.yaml", folder, *options)
            found = spread(np.array([evaluations(folder, "accuracy")[1] for folder in folders]))
            lines.append(f"| {name}, equal size and pretraining, rate {rate:g} | accuracy | {found} | | |")
    return lines


def spread(values: np.ndarray) -> str:
    """Format the mean and standard deviation."""
    deviation = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{deviation}"


def main() -> None:
    """Print the table again after each demo, with one more row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=(*DEMOS, "equal"), default=DEMOS)
    options = parser.parse_args()
    demo_data.main([str(DATA)])
    lines = ["| demo | metric | fine-tuned | baselines | time per run |", "|---|---|---|---|---|"]
    for name in options.only:
        lines += equal(options.seeds) if name == "equal" else [measure(name, options.seeds)]
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
