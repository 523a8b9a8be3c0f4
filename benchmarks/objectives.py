"""Compare pretraining objectives and mask rates, and fine-tuning with and without continued pretraining.

python -m benchmarks.objectives [--seeds 3] [--only objective rate domain]

- objective: `mlm` and `mlm_nsp` with the recipe configs/bert_demo.yaml but AdamW and 15 % masks, at equal steps. Both
  models are scored on both kinds of held-out examples.
- rate: `mlm` with several mask rates, scored at 15 %.
- domain: all-MiniLM-L6-v2 continued with `mlm` on the sentences of a task, then fine-tuned on the task; and fine-tuned
  without this step.

Each run is a separate command and is stored in runs/objectives. If the benchmark is interrupted, run it again to
resume.
"""

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from benchmarks import demo_data
from benchmarks.tasks import DATA, PAPER, evaluations, run, spread
from bertgpt.data.tasks.readers import read_rows
from bertgpt.model.bert import BertForMaskedLM
from train import config as configs
from train import loader, parallel
from train.folders import token_store
from train.folders.run_folder import load_run
from train.jobs import objectives
from train.reports import read_metrics
from train.step import eval_step

OUT = Path("runs/objectives")
DEMO = "configs/bert_demo.yaml"
RATES = (0.15, 0.3, 0.4)
EXAMPLES = 5120  # held-out examples of each kind
TASKS = {"sentiment": "sentiment.csv"}  # tasks whose training texts are one domain
STEPS = 150  # of continued pretraining
CONTINUED = [  # settings of continued pretraining
    "model.init_from=runs/demo_data/encoder",
    "train.objective=mlm",
    "data.sentence_per_line=true",
    "data.eval_fraction=0.05",
    "data.sequence_length=64",
    "data.pack=true",
    "optimizer.learning_rate=1e-4",
    "optimizer.warmup_fraction=0.06",
    "optimizer.b2=0.98",
    f"train.steps={STEPS}",
    "train.batch_size=32",
    f"train.eval_every={STEPS}",
    "train.eval_examples=1000",
    f"checkpoint.every={STEPS}",
]
TUNED = ["train.steps=120", "train.eval_every=120", "checkpoint.every=120"]  # settings of fine-tuning


def pretrain(name: str, seed: int, *overrides: str) -> Path:
    """Pretrain on the demo corpus with one tokenizer for all runs; return the run's folder."""
    folder = OUT / f"{name}_{seed}"
    run("pretrain", DEMO, folder, *PAPER, f"data.store={OUT / 'store'}", f"seed={seed}", *overrides)
    return folder


def cross_losses(folder: Path) -> Iterator[float]:
    """Yield the MLM loss of a run's last checkpoint on held-out runs of sentences, then on held-out sentence pairs.

    The model's next-sentence head is not used, and both kinds of examples have one segment for a model of `mlm`.
    """
    config, loaded = configs.load(str(folder / "config.yaml")), load_run(folder, step=None)
    params = {name: loaded.params[name] for name in ("bert", "mlm_head")}
    params["bert"] = {name: value for name, value in params["bert"].items() if name != "pooler"}
    model, trained_on_pairs = BertForMaskedLM(loaded.model.config), config.train.objective == "mlm_nsp"
    objective = objectives.make_objective("mlm", model)
    if trained_on_pairs:
        objective = objective._replace(inputs=(*objective.inputs, "token_type_ids"))
    score = parallel.Jit().compile_eval(functools.partial(eval_step, objective=objective))
    _, held_out = token_store.open_store(config, loaded.tokenizer, None)
    for config.train.objective in ("mlm", "mlm_nsp"):
        total = weight = 0.0
        source = objectives.eval_source(held_out, loaded.tokenizer, config)
        for batch in loader.eval_batches(source, 64, objectives.EVAL_SEED, EXAMPLES):
            batch = {"token_type_ids": np.zeros_like(batch["input_ids"]), **batch}
            sums, _ = score(params, batch)
            total, weight = total + float(sums["mlm_loss"].sum), weight + float(sums["mlm_loss"].weight)
        yield total / weight


def objective_rows(seeds: int) -> list[str]:
    """Return the rows of the table: both objectives, scored on both kinds of examples."""
    lines = []
    for name in ("mlm", "mlm_nsp"):
        folders = [pretrain(name, seed, f"train.objective={name}") for seed in range(seeds)]
        losses = np.array([list(cross_losses(folder)) for folder in folders])
        lines.append(f"| {name} | {spread(losses[:, 0])} | {spread(losses[:, 1])} |")
    return ["| objective | loss on runs of sentences | loss on sentence pairs |", "|---|---|---|", *lines]


def rate_rows(seeds: int) -> list[str]:
    """Return the rows of the table: mask rates."""
    lines = []
    for rate in RATES:
        name = "mlm" if rate == 0.15 else f"rate_{rate}"  # the paper's rate is that of the first table
        overrides = ["train.objective=mlm", *([] if rate == 0.15 else [f"data.mask_rate={rate}"])]
        folders = [pretrain(name, seed, *overrides) for seed in range(seeds)]
        found = [read_metrics(folder)[-1] for folder in folders]
        losses, shares = (np.array([row[key] for row in found]) for key in ("mlm_loss", "mlm_accuracy"))
        lines.append(f"| {rate} | {spread(losses)} | {spread(shares)} |")
    return ["| mask rate | loss at 15 % | accuracy at 15 % |", "|---|---|---|", *lines]


def write_text(task: str) -> Path:
    """Write the texts of a task's training rows, one per document; return the file."""
    path = OUT / f"{task}.txt"
    stem, suffix = TASKS[task].split(".")
    found = [row.values for row in read_rows(str(DATA / f"{stem}_train.{suffix}"))]
    texts = dict.fromkeys(row[key] for row in found for key in ("text", "pair") if key in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n\n" for text in texts), encoding="utf-8")
    return path


def domain_rows(seeds: int) -> list[str]:
    """Return the rows of the table: each task with and without continued pretraining."""
    lines = []
    for task in TASKS:
        alone, after, losses = [], [], []
        for seed in range(seeds):
            continued = OUT / f"continued_{task}_{seed}"
            text = [f"data.train={write_text(task)}", f"data.store={OUT / f'store_{task}'}", f"seed={seed}"]
            run("pretrain", str(blank_recipe()), continued, *CONTINUED, *text)
            losses.append(evaluations(continued, "mlm_loss")[1])
            for folder, start, found in (
                (OUT / f"{task}_alone_{seed}", "runs/demo_data/encoder", alone),
                (OUT / f"{task}_after_{seed}", str(continued), after),
            ):
                recipe = f"configs/finetune/demo_{task}.yaml"
                run("finetune", recipe, folder, *TUNED, f"model.init_from={start}", f"seed={seed}")
                found.append(evaluations(folder, "accuracy")[1])
        lines.append(
            f"| {task} | {spread(np.array(alone))} | {spread(np.array(after))} | "
            f"{spread(np.array(after) - alone)} | {spread(np.array(losses))} |"
        )
    head = "| task, accuracy | fine-tuned | continued, then fine-tuned | difference | MLM loss when continued |"
    return [head, "|---|---|---|---|---|", *lines]


def blank_recipe() -> Path:
    """Write a recipe without settings; return the file."""
    path = OUT / "blank.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("", encoding="utf-8")
    return path


TABLES = {"objective": objective_rows, "rate": rate_rows, "domain": domain_rows}


def main() -> None:
    """Print each table when its runs are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES)
    options = parser.parse_args()
    demo_data.main([str(DATA)])
    for name in options.only:
        print("\n".join(TABLES[name](options.seeds)), flush=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
