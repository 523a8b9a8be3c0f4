"""Recipes load, the README's code runs, imports keep their order."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bertgpt.data.tasks.task import KINDS
from train import config as configs
from train.__main__ import main

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs").glob("**/*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS = {"fine": "good", "dull": "bad"}
TINY = ["hidden_size=16", "num_layers=1", "num_heads=2", "mlp_size=32"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_how_to_run_it(recipe):
    configs.load(str(recipe))
    header = recipe.read_text(encoding="utf-8").split("model:")[0]
    verb = "finetune" if recipe.parent.name == "finetune" else "pretrain"
    assert f"python -m train {verb} {recipe.relative_to(ROOT)}" in header
    for word in ("Hardware:", "Time:", "Expected:"):
        assert word in header


def test_published_recipes_have_the_papers_hyperparameters():
    def load(name):
        return configs.load(str(ROOT / "configs" / f"{name}.yaml"))

    for name, length in (("bert_base", 128), ("bert_base_512", 512), ("bert_large", 128)):
        run = load(name)
        optimizer = run.optimizer
        assert (optimizer.learning_rate, optimizer.b1, optimizer.b2, optimizer.eps) == (1e-4, 0.9, 0.999, 1e-6)
        assert (optimizer.weight_decay, optimizer.warmup_steps, optimizer.schedule) == (0.01, 10_000, "linear")
        assert (run.train.batch_size, run.data.sequence_length, optimizer.bias_correction) == (256, length, False)
    assert load("bert_base").train.steps == 900_000
    assert load("bert_base_512").train.steps == 100_000
    gpt = load("gpt1")
    assert (gpt.optimizer.learning_rate, gpt.optimizer.warmup_steps, gpt.optimizer.schedule) == (2.5e-4, 2000, "cosine")
    assert (gpt.train.batch_size, gpt.data.sequence_length) == (64, 512)


FINETUNE = ROOT / "configs" / "finetune"


@pytest.mark.parametrize("recipe", sorted(FINETUNE.glob("[bg]*.yaml")), ids=lambda path: path.stem)
def test_finetuning_recipes_have_the_papers_hyperparameters(recipe):
    run = configs.load(str(recipe))
    if recipe.stem.startswith("gpt1"):  # Radford et al. 2018, 4.1
        assert (run.optimizer.learning_rate, run.optimizer.warmup_fraction) == (6.25e-5, 0.002)
        assert (run.train.batch_size, run.train.epochs, run.task.lm_weight) == (32, 3, 0.5)
        assert run.model.classifier_dropout == 0.1
    else:  # Devlin et al. 2019, A.3 and 4.2 to 5.3
        assert run.optimizer.learning_rate in (5e-5, 3e-5, 2e-5)
        assert run.train.batch_size in (16, 32, 48)
        assert run.train.epochs in (2, 3, 4)
        assert run.optimizer.warmup_fraction == 0.1
    assert run.optimizer.schedule == "linear"


def test_there_is_a_recipe_for_every_task_of_both_models():
    kinds = {name: set() for name in ("bert", "gpt1", "demo")}
    for recipe in FINETUNE.glob("*.yaml"):
        kinds[recipe.stem.split("_")[0]].add(configs.load(str(recipe)).task.kind)
    assert kinds["bert"] == set(KINDS) - {"sft"}
    assert kinds["gpt1"] == {"classification", "multiple_choice", "sft"}
    assert kinds["demo"] == set(KINDS)


PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", [code for code in PYTHON if "transformers" not in code])  # make parity runs that one
def test_the_readmes_python_runs(code):
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "README.md", "exec"), {})


@pytest.mark.filterwarnings("ignore:.*randomly initialized, to be trained")
def test_the_readmes_commands_run(documents, tmp_path, monkeypatch, capsys):
    """In order and as printed, but with models of a few numbers and a step or two."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    reviews = [f"A {word} film {number}.,{label}\n" for number in range(20) for word, label in WORDS.items()]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(reviews))
    for name, prompt in (("talks", "Which film?"), ("new_talks", "Which other film?")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": prompt, "response": "This one."}) + "\n")
    short = ["train.steps=2", "train.batch_size=8", "train.accumulate=1", "parallel.strategy=jit"]
    small = [*short, "tokenizer.vocab_size=200", "train.eval_examples=8", "data.eval_fraction=0.1", "data.workers=1"]
    # tests/test_hub_readme.py runs the commands of the domain, which fetch a model
    lines = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    for line in lines:
        program, *arguments = shlex.split(line)
        if "domain" in line:
            continue
        if program == "make":
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
            continue
        assert (program, *arguments[:2]) == (".venv/bin/python", "-m", "train")
        if arguments[2] == "plan":  # of devices that this process does not have
            arguments = [*arguments[:4], "data.train=text", *[f"model.{size}" for size in TINY], *arguments[6:]]
        if arguments[2] == "pretrain":
            arguments += small + ([f"model.{size}" for size in TINY] if "model.init_from" not in line else [])
            arguments += ["model.mlp_size=64"] if "gpt1" in line else []
        if arguments[2] == "finetune":
            arguments += [*short, "train.epochs=null", "data.sequence_length=16"]
        capsys.readouterr()
        assert main(arguments[2:]) == 0, line
        assert "also in data.train" not in capsys.readouterr().err


def test_the_order_of_imports_holds():
    result = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/configuration.md", "README.md", "CONTRIBUTING.md"])
def test_the_files_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    names = {path.name for top in ("bertgpt", "train", "tests") for path in (ROOT / top).rglob("*.py")}
    for file in re.findall(r"`([\w/]+\.pyi?)`", text):
        assert (ROOT / file).is_file() or file in names or (ROOT / "bertgpt/checkpoints" / file).is_file(), file
    for folder in re.findall(r"`((?:bertgpt|train|tests|configs)/[\w/]*/)`", text):
        assert (ROOT / folder).is_dir(), folder
