"""The built wheel, installed into an empty environment: its command trains, and it brings no module called train."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, command)], cwd=cwd, env=CLEAN, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """The folder of commands of an environment with the wheel, the extra `train` and what they need alone."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    installed = run(folder / "bin/python", "-m", "pip", "install", "--quiet", f"{wheel}[train]", cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return folder / "bin"


def test_the_wheel_holds_both_packages_the_recipes_and_types(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    wanted = ("bertgpt/__init__.pyi", "bertgpt/py.typed", "bertgpt_train/__main__.py")
    assert {*wanted, "bertgpt_train/configs/finetune/demo_pairs.yaml"} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"bertgpt", "bertgpt_train"}
    assert not any("__pycache__" in name for name in names)


def test_the_dockerfile_copies_what_the_same_wheel_is_built_from_and_installs_extras_that_exist(wheel, tmp_path):
    text = (ROOT / "Dockerfile").read_text()
    sources = [name for line in re.findall(r"^COPY (?!--)(.*)", text, re.MULTILINE) for name in line.split()[:-1]]
    for name in sources:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored == ["*", *(f"!{name}" for name in sources), "**/__pycache__"]
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    (copied,) = (tmp_path / "dist").glob("*.whl")
    assert set(zipfile.ZipFile(copied).namelist()) == set(zipfile.ZipFile(wheel).namelist())
    extras = [*re.search(r"\.whl\)\[([\w,]+)", text)[1].split(","), *re.findall(r"EXTRA=(\w+)", text)]
    assert extras == ["train", "tasks", "cuda"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= project["optional-dependencies"].keys()


def test_its_command_trains_and_its_library_needs_no_trainer(environment, corpus_file, tmp_path):
    sizes = ["model.hidden_size=16", "model.num_heads=2", "model.num_layers=1", "model.mlp_size=32"]
    data = [f"data.train={corpus_file}", "data.text_key=text", "tokenizer.vocab_size=200", "data.workers=1"]
    steps = ["train.steps=20", "train.eval_every=20", "train.eval_examples=16", "train.batch_size=8"]
    done = run(environment / "bertgpt", "pretrain", "bert_demo", *sizes, *data, *steps, "out=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (rows[-1]["step"], rows[-1]["split"]) == (20, "eval")
    filled = run(environment / "bertgpt", "fill-mask", "run", "a [MASK] .", cwd=tmp_path)
    assert filled.returncode == 0, filled.stderr
    wrong = run(environment / "bertgpt", "pretrain", "bert_demoo", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "no such file or recipe; did you mean bert_demo? the recipes are bert_base, " in wrong.stderr
    shown = run(environment / "bertgpt", "--version", cwd=tmp_path)
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["bertgpt", "jax", "jaxlib", "flax", "devices:"]
    assert run(environment / "python", "-c", "import train", cwd=tmp_path).returncode == 1


def test_without_the_extra_its_command_names_it(environment, corpus_file, tmp_path):
    hidden = "import sys; sys.modules['optax'] = None; sys.argv = ['bertgpt', 'pretrain', 'bert_demo', 'data.train=x']"
    code = f"{hidden}; from bertgpt_train.__main__ import console; console()"
    done = run(environment / "python", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: optax is not installed; pip install 'bertgpt[train]'\n")
