"""Compares what a redesign must not change with goldens made before it. Removed when the redesign is complete.

python tests/unchanged/values.py make       # on the code as it was: writes values.json and runs.tar.gz
python tests/unchanged/values.py compare    # on the code as it is; exit code 1 and a line for every difference

Values: every parameter's path and initial values, the lowered program of every pretraining recipe's step, 20 losses
with dropout under each strategy, the store's arrays, exported folders, and the metrics of runs begun by the old code.
Losses and compiled programs are only equal on the same processor and the same JAX.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))
WORK = Path("/tmp/unchanged")  # the same for old and new: run folders hold absolute paths
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
os.environ |= {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": "/tmp/unchanged_compiled"}
TIMES = ("tokens_per_second", "seconds", "mfu", "time")
TINY = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "mlp_size": 128, "max_positions": 64}
FAMILIES = {
    "bert": ("BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction",
             "BertForSequenceClassification", "BertForMultipleChoice", "BertForTokenClassification",
             "BertForQuestionAnswering"),
    "gpt": ("OpenAIGPTModel", "OpenAIGPTLMHeadModel", "OpenAIGPTDoubleHeadsModel",
            "OpenAIGPTForSequenceClassification"),
}  # fmt: skip
VARIANTS = {
    "jit": ["parallel.strategy=jit"],
    "pmap": ["parallel.strategy=pmap"],
    "mesh": ["parallel.strategy=mesh", "parallel.data=4", "parallel.fsdp=2"],
    "accumulated": ["parallel.strategy=jit", "train.accumulate=2"],
    "packed": ["parallel.strategy=jit", "data.pack=true"],
    "packed_mesh": ["parallel.strategy=mesh", "parallel.fsdp=2", "data.pack=true", "train.accumulate=2"],
    "bfloat16": ["parallel.strategy=jit", "train.dtype=bfloat16"],
    "remat": ["parallel.strategy=jit", "train.remat=dots"],
}
TASKS = {
    "bert classification": [],
    "bert multiple_choice": [],
    "bert tagging": [],
    "bert question_answering": [],
    "gpt classification": ["task.lm_weight=0.5"],
    "gpt multiple_choice": ["task.lm_weight=0.5"],
    "gpt sft": ["data.pack=true"],
}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def parameters() -> Iterator[tuple[str, Any]]:
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    import bertgpt

    for family, names in FAMILIES.items():
        preset = bertgpt.presets.bert_tiny if family == "bert" else bertgpt.presets.gpt1
        for name in names:
            model = getattr(bertgpt, name)(preset(**TINY, vocab_size=100))
            shape = (1, 1, 1) if name in ("BertForMultipleChoice", "OpenAIGPTDoubleHeadsModel") else (1, 1)
            params = model.init(jax.random.key(0), jnp.zeros(shape, jnp.int32))["params"]
            for path, leaf in flatten_dict(params, sep="/").items():
                yield f"parameter {name} {path}", [*leaf.shape, sha(leaf.tobytes())]


def programs() -> Iterator[tuple[str, Any]]:
    """Of the shapes alone. A module's own name is the name of the Python function that was compiled."""
    import functools

    from train import config
    from train.jobs import planning
    from train.optimizers import make_optimizer
    from train.step import train_step

    for recipe in sorted((ROOT / "configs").glob("*.yaml")):
        for name, overrides in {"default": [], "mesh": VARIANTS["mesh"]}.items():
            size = ["train.batch_size=16", "train.accumulate=1", "tokenizer.path=null", "model.init_from=null"]
            preset = [] if "512" not in recipe.name else ["model.preset=bert_base"]
            settings = config.load(str(recipe), [*size, *preset, *overrides])
            plan = planning.make_plan(settings)
            optimizer = make_optimizer(settings.optimizer, settings.train.steps)
            step = functools.partial(
                train_step, objective=plan.objective, optimizer=optimizer, distribute=plan.strategy.distribute
            )
            text = plan.strategy.lower(step, plan.state, plan.batch).as_text()
            text = re.sub(r"module @\S+", "module @step", text)
            (WORK / "programs").mkdir(parents=True, exist_ok=True)
            (WORK / "programs" / f"{recipe.stem}_{name}.mlir").write_text(text)
            yield f"program {recipe.stem} {name}", sha(text.encode())


def corpus() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 8))) for _ in range(300)]
    topics = [rng.choice(words, 12) for _ in range(300)]
    with (WORK / "text.jsonl").open("w") as file:
        for topic in topics:
            sentences = [" ".join(rng.choice(topic, rng.integers(4, 12))).capitalize() for _ in range(6)]
            file.write(json.dumps({"text": ". ".join(sentences) + "."}) + "\n")
    rows = []
    for number in range(60):
        a, b = (str(word) for word in rng.choice(words, 2))
        text = " ".join([a, *map(str, rng.choice(words, 5)), b])
        rows.append({
            "text": text, "label": number % 2, "choices": [a, b], "words": text.split(),
            "tags": ["B-X"] + ["O"] * (len(text.split()) - 1), "prompt": text, "response": b,
            "question": a, "context": text, "answers": {"text": [b], "answer_start": [text.rindex(b)]},
        })  # fmt: skip
    (WORK / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(*arguments: str) -> None:
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run([sys.executable, "-m", "train", *arguments], cwd=WORK, env=environment, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr.decode()[-2000:]}")


def settings(family: str) -> list[str]:
    preset = "bert_tiny" if family == "bert" else "gpt1"
    sizes = {**TINY, "hidden_dropout": 0.1, "attention_dropout": 0.1, "vocab_size": 400}
    return [f"model.preset={preset}", *(f"model.{key}={value}" for key, value in sizes.items())]


COMMON = [
    "optimizer.learning_rate=0.003", "optimizer.warmup_steps=2", "train.steps=20", "train.batch_size=16",
    "train.log_every=1", "train.eval_every=10", "train.eval_examples=32", "checkpoint.every=10", "checkpoint.keep=5",
    "seed=3",
]  # fmt: skip


def pretrain(family: str, variant: str) -> None:
    (WORK / "empty.yaml").write_text("seed: 0\n")
    out = f"runs/{family}_{variant}"
    data = ["data.train=text.jsonl", "data.sequence_length=64", f"tokenizer.path={family}.json", "data.workers=1"]
    overrides = [*settings(family), *COMMON, *data, f"data.store=stores/{family}", *VARIANTS[variant], f"out={out}"]
    run("pretrain", "empty.yaml", *overrides)


def finetune(name: str) -> None:
    family, kind = name.split()
    overrides = [*COMMON, "data.train=rows.jsonl", "data.eval=rows.jsonl", "data.sequence_length=32"]
    start = [f"model.init_from=runs/{family}_jit", f"task.kind={kind}", "parallel.strategy=jit"]
    run("finetune", "empty.yaml", *overrides, *start, *TASKS[name], f"out=runs/{name.replace(' ', '_')}")


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def files(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): sha(file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "meta.json"  # holds the time of the text file
    }


def all_runs(names: list[tuple[Any, ...]]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda call: call[0](*call[1:]), names))


def values() -> dict[str, Any]:
    found = dict([*parameters(), *programs()])
    all_runs([(pretrain, family, "jit") for family in FAMILIES])  # they make the stores
    all_runs([(pretrain, family, name) for family in FAMILIES for name in VARIANTS if name != "jit"])
    all_runs([(finetune, name) for name in TASKS])
    for folder in sorted((WORK / "runs").iterdir()):
        found[f"metrics {folder.name}"] = metrics(folder)
    exports = ["bert_jit", "gpt_jit", *(name.replace(" ", "_") for name in TASKS)]
    all_runs([(run, "export", f"runs/{name}", f"exports/{name}") for name in exports])
    for name in exports:
        found[f"export {name}"] = files(WORK / "exports" / name)
    for family in FAMILIES:
        found[f"store {family}"] = files(WORK / "stores" / family)
    return found


RESUMED = ("bert_jit", "gpt_jit", "bert_packed_mesh", "bert_classification", "gpt_sft")


def cut_short(folder: Path) -> None:
    """The run as it stood at step 10."""
    shutil.rmtree(folder / "checkpoints" / "20")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 10))


def resumed() -> dict[str, Any]:
    """Metrics of the old code's runs, resumed by this code from step 10."""
    clean()
    with tarfile.open(HERE / "runs.tar.gz") as tar:
        tar.extractall(WORK, filter="data")
    for file in ("text.jsonl", "rows.jsonl"):
        os.utime(WORK / file, (1_700_000_000, 1_700_000_000))
    calls: list[tuple[Any, ...]] = []
    for name in RESUMED:
        family, _, variant = name.partition("_")
        calls.append((pretrain, family, variant) if variant in VARIANTS else (finetune, f"{family} {variant}"))
    all_runs(calls)
    return {f"metrics {name}": metrics(WORK / "runs" / name) for name in RESUMED}


def clean() -> None:
    for name in ("runs", "stores", "exports"):
        shutil.rmtree(WORK / name, ignore_errors=True)
    WORK.mkdir(exist_ok=True)
    for family in FAMILIES:  # training a tokenizer twice may give two
        shutil.copy(HERE / f"{family}.json", WORK)
    corpus()
    for file in ("text.jsonl", "rows.jsonl"):
        os.utime(WORK / file, (1_700_000_000, 1_700_000_000))


def main(mode: str) -> int:
    clean()
    if mode == "make":
        found = values()
        (HERE / "values.json").write_text(json.dumps(found, indent=0) + "\n")
        for name in RESUMED:
            cut_short(WORK / "runs" / name)
        with tarfile.open(HERE / "runs.tar.gz", "w:gz") as tar:
            for name in ("text.jsonl", "rows.jsonl", "stores", *(f"runs/{name}" for name in RESUMED)):
                tar.add(WORK / name, name)
        return 0
    old = json.loads((HERE / "values.json").read_text())
    new = json.loads(json.dumps(values()))
    differing = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
    later = json.loads(json.dumps(resumed()))
    differing += [f"resumed {key}" for key in later if old[key] != later[key]]
    print(*sorted(differing), f"{len(old) + len(later)} values, {len(differing)} differ", sep="\n")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
