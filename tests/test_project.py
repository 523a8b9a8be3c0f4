"""Recipes load, the code of the README and of the page for users of Flax runs, imports keep their order."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict
from model_folders import write_flax
from safetensors import safe_open

import bertgpt
from benchmarks import demo_data
from bertgpt.data.tasks.task import KINDS
from bertgpt.model.inputs import takes_choices
from bertgpt.tokenizers import train_wordpiece
from train import config as configs
from train.__main__ import main
from train.sections import KEYS, SECTIONS

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs").glob("**/*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")
FLAX_PAGE = (ROOT / "docs" / "from_transformers_flax.md").read_text(encoding="utf-8")
GOLDENS = ROOT / "tests" / "goldens" / "flax"
WORDS = {"fine": "good", "dull": "bad"}
WORDS_ZH = {"干净": "positive", "吵闹": "negative"}
TINY = ["hidden_size=16", "num_layers=1", "num_heads=2", "mlp_size=32"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_how_to_run_it(recipe):
    configs.load(str(recipe))
    header = recipe.read_text(encoding="utf-8").split("model:")[0]
    verb = "finetune" if recipe.parent.name == "finetune" else "pretrain"
    assert f"python -m train {verb} {recipe.relative_to(ROOT)}" in header
    for word in ("Hardware:", "Time:", "Expected:"):
        assert word in header
    if verb == "pretrain":
        assert f"python -m train plan {recipe.relative_to(ROOT)} --topology v5e:2x4" in header


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


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_python(code: str, page: str, names: dict) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize(
    "code", [code for code in blocks(README, "python") if "transformers" not in code and "make_store" not in code]
)
def test_the_readmes_python_runs(code):  # make parity runs the one with transformers, test_own_loop.py the loop
    run_python(code, "README.md", {})


SHORT = ["train.steps=2", "train.batch_size=8", "train.accumulate=1", "parallel.strategy=jit"]
SMALL = [*SHORT, "tokenizer.vocab_size=200", "train.eval_examples=8", "data.eval_fraction=0.1", "data.workers=1"]


def run_command(line: str, capsys: pytest.CaptureFixture, length: int = 16) -> None:
    """Runs a command of a page as printed, but with models of a few numbers and a step or two."""
    program, *arguments = shlex.split(line)
    if program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        return
    if arguments[:3] == ["-m", "pip", "install"]:
        (extra,) = re.findall(r"^\.\[(\w+)\]$", arguments[-1])
        assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        return
    if arguments[:2] == ["-m", "benchmarks.demo_data"]:
        demo_data.main(arguments[2:])
        return
    assert (program, *arguments[:2]) == (".venv/bin/python", "-m", "train")
    if arguments[2] == "plan":  # of devices that this process does not have
        arguments = [*arguments[:4], "data.train=text", *[f"model.{size}" for size in TINY], *arguments[6:]]
    if arguments[2] == "pretrain":
        arguments += SMALL + ([f"model.{size}" for size in TINY] if "model.init_from" not in line else [])
        arguments += ["model.mlp_size=64"] if "gpt1" in line else []
        arguments += ["data.sequence_length=16"] if "bert_mlm" in line else []
    if arguments[2] == "finetune":
        arguments += [*SHORT, "train.epochs=null", f"data.sequence_length={length}"]
    capsys.readouterr()
    assert main(arguments[2:]) == 0, line
    assert "also in data.train" not in capsys.readouterr().err


@pytest.fixture
def files(documents, tmp_path, monkeypatch):
    """The files that the commands of the pages name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    reviews = [f"A {word} film {number}.,{label}\n" for number in range(20) for word, label in WORDS.items()]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(reviews))
    for name, prompt in (("talks", "Which film?"), ("new_talks", "Which other film?")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": prompt, "response": "This one."}) + "\n")
    for name, person in (("names", "Jim"), ("new_names", "Ann")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"tokens": [person, "left"], "ner_tags": ["B-PER", "O"]}))
    for name, person in (("squad", "Jim"), ("new_squad", "Ann")):
        question = {"question": "Who left?", "context": f"{person} left.", "id": name}
        question["answers"] = {"text": [person], "answer_start": [0]}
        (tmp_path / f"{name}.json").write_text(json.dumps([question]))
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*randomly initialized, to be trained")
def test_the_readmes_commands_run(files, capsys):
    lines = [line for block in blocks(README, "bash") for line in block.splitlines()]
    for line in lines:
        if "domain" not in line:  # tests/test_hub_readme.py runs these, which fetch a model
            run_command(line, capsys)


@pytest.fixture
def chinese_files(files, monkeypatch):
    """The files that the commands of README.zh.md name: reviews, a text, and a small model in place of the hub's."""
    pytest.importorskip("rjieba")
    texts = {
        split: [f"我们{verb}了{n}天，房间很" for n in range(12)] for split, verb in (("train", "住"), ("eval", "等"))
    }
    folder = files / "runs" / "demo_data"
    (folder / "encoder").mkdir(parents=True)
    for split, beginnings in texts.items():
        rows = [{"text": f"{text}{end}。", "label": label} for text in beginnings for end, label in WORDS_ZH.items()]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"reviews_zh_{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(demo_data, "TASKS", [task for task in demo_data.TASKS if task.name == "reviews_zh.jsonl"])
    (files / "text" / "text.txt").write_text("\n\n".join(f"{text}干净。" for text in texts["train"]), encoding="utf-8")
    tokenizer = train_wordpiece([f"{text}干净吵闹。" for text in texts["train"]], 200)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), **dict(map(sized, TINY))}
    model = bertgpt.BertForPreTraining(bertgpt.presets.bert_tiny(**sizes))
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    bertgpt.save_pretrained(files / "google-bert" / "bert-base-chinese", model, params, tokenizer)


@pytest.mark.filterwarnings("ignore:.*randomly initialized, to be trained", "ignore:.* does not use ")
def test_the_chinese_readmes_commands_run(chinese_files, capsys):
    for line in [line for block in blocks(CHINESE, "bash") for line in block.splitlines()]:
        run_command(line, capsys)
    assert bertgpt.load_pretrained("exported/domain_zh")[0].config.vocab_size < 200  # from the small model


def test_the_chinese_readmes_figures_are_those_of_the_english_pages():
    pages = [ROOT / name for name in ("README.md", "docs/papers.md", "docs/tasks.md", "docs/data.md", "pyproject.toml")]
    pages += [ROOT / "configs" / name for name in ("bert_zh_demo.yaml", "finetune/demo_reviews_zh.yaml")]
    found = {figure for page in pages for figure in figures(page.read_text(encoding="utf-8"))}
    assert len(figures(CHINESE)) > 50
    assert figures(CHINESE) <= found


def figures(text: str) -> set[str]:
    """The numbers of two or more digits in a text, without the commas of thousands."""
    return {figure.replace(",", "") for figure in re.findall(r"\d[\d,.]*\d", text)}


@pytest.mark.filterwarnings("ignore:.*randomly initialized, to be trained", "ignore:.* does not use ")
def test_the_commands_and_snippets_for_users_of_flax_run(files, wordpiece, capsys):
    sizes = {"vocab_size": wordpiece.get_vocab_size(), "max_positions": 96}
    model = bertgpt.BertForPreTraining(bertgpt.presets.bert_tiny(**sizes, **dict(map(sized, TINY))))
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    bertgpt.save_pretrained("flax_bert", model, params, wordpiece)
    write_flax(files / "flax_bert")
    names: dict = {}
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", FLAX_PAGE, re.DOTALL):
        if language == "python":
            run_python(block, "from_transformers_flax.md", names)
            continue
        for line in block.splitlines():
            run_command(line, capsys, length=96)
    assert bertgpt.load_pretrained("trained")[0] == model


def sized(setting: str) -> tuple[str, int]:
    name, _, value = setting.partition("=")
    return name, int(value)


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the page for users of Flax, without backquotes."""
    table = re.search(rf"## {heading}\n.*?\n((?:\|[^\n]*\n)+)", FLAX_PAGE, re.DOTALL)[1]
    lines = table.replace("`", "").splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_parameters_for_users_of_flax_holds():
    table = sorted(((theirs, ours) for theirs, ours in rows("Parameters")), key=lambda pair: -len(pair[0]))
    used = set()
    for folder in sorted(GOLDENS.glob("BertFor*")):
        theirs = flatten_dict(msgpack_restore((folder / "flax_model.msgpack").read_bytes()), sep="/")
        found = {}
        for path, value in theirs.items():
            layer = re.search(r"/layer/(\d+)/", path)
            plain = re.sub(r"/layer/\d+/", "/layer/N/", path)
            start, replacement = next(pair for pair in table if plain.startswith(f"{pair[0]}/"))
            used.add(start)
            replacement = replacement.replace("_N/", f"_{layer[1]}/" if layer else "_N/")
            found[replacement + plain.removeprefix(start)] = value
        ours = flatten_dict(bertgpt.load_pretrained(folder)[1], sep="/")
        assert found.keys() == ours.keys()
        for path, value in found.items():
            np.testing.assert_array_equal(value, ours[path], err_msg=path)
    assert used == {theirs for theirs, _ in table}


def test_the_table_of_classes_for_users_of_flax_holds():
    found = {theirs: (ours, fields) for theirs, ours, fields in rows("Classes")}
    assert {theirs.removeprefix("Flax") for theirs in found} == {folder.name for folder in GOLDENS.glob("Bert*")}
    for theirs, (ours, fields) in found.items():
        assert theirs == f"Flax{ours}"
        pairs = [field.split(" -> ") for field in fields.split(", ")]
        with safe_open(GOLDENS / ours / "expected.safetensors", "numpy") as golden:
            outputs = {name.split("/")[1] for name in golden.keys() if name.startswith("output/")}  # noqa: SIM118
        assert {pair[0] for pair in pairs} == outputs - {"hidden_states"}
        model, params = bertgpt.load_pretrained(GOLDENS / ours)
        ids = jax.ShapeDtypeStruct((1, 2, 4) if takes_choices(ours) else (1, 4), jnp.int32)
        output = jax.eval_shape(lambda ids, model=model, params=params: model.apply({"params": params}, ids), ids)
        assert all(getattr(output, pair[-1]) is not None for pair in pairs), theirs


def test_the_keys_in_the_page_for_users_of_flax_exist():
    flags = [line for line in FLAX_PAGE.splitlines() if line.startswith("| `--")]
    keys = {key for line in flags for key in re.findall(rf"\b((?:{'|'.join(SECTIONS)})\.\w+)", line)}
    assert len(keys) > 25
    assert keys <= KEYS.keys()


def test_the_order_of_imports_holds():
    result = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "page",
    [
        "docs/architecture.md",
        "docs/configuration.md",
        "docs/from_transformers_flax.md",
        "README.md",
        "README.zh.md",
        "CONTRIBUTING.md",
    ],
)
def test_the_files_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    names = {path.name for top in ("bertgpt", "train", "tests") for path in (ROOT / top).rglob("*.py")}
    for file in re.findall(r"`([\w/]+\.pyi?)`", text):
        assert (ROOT / file).is_file() or file in names or (ROOT / "bertgpt/checkpoints" / file).is_file(), file
    for folder in re.findall(r"`((?:bertgpt|train|tests|configs)/[\w/]*/)`", text):
        assert (ROOT / folder).is_dir(), folder
