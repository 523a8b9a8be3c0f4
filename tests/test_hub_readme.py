"""The commands of README and tutorial from a name to an exported model, with a small real encoder on a loopback hub."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub
from quick import QUICK

import bertgpt
from benchmarks import demo_data

ROOT = Path(__file__).parent.parent
NAME = "google-bert/bert-base-uncased"
COMMANDS = [
    line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(".venv") and "domain" in line
]
PAGE = (ROOT / "docs" / "ten_minutes.md").read_text(encoding="utf-8").replace("\\\n", " ")
TUTORIAL = [line for line in PAGE.splitlines() if line.startswith(".venv")]
HERE = (("sentence-transformers/all-MiniLM-L6-v2", NAME), ("first", "domain"))  # the same run, as the README names it
SHORT = ["train.steps=2", "train.batch_size=4", "train.accumulate=1", "data.sequence_length=32", "train.dtype=float32"]
SHORT += ["train.eval_examples=8", "data.eval_fraction=0.1", "data.workers=1"]


@pytest.fixture
def encoder(request) -> Path:
    """all-MiniLM-L6-v2, from a package; kept in pytest's cache from one session to the next."""
    folder = request.config.cache.mkdir("demo_data")
    demo_data.write_encoder(folder)
    return folder / "encoder"


@pytest.fixture
def hub(encoder, tmp_path):
    """A hub that has the encoder under the README's name."""
    owner, name = NAME.split("/")
    (tmp_path / "hub" / owner).mkdir(parents=True)
    (tmp_path / "hub" / owner / name).symlink_to(encoder)
    with Hub(tmp_path / "hub") as hub:
        yield hub


def as_the_readme(line: str) -> str:
    """A command of the tutorial, with the README's names of model and folders."""
    for theirs, ours in HERE:
        line = line.replace(theirs, ours)
    return " ".join(line.split())


def test_three_commands_lead_from_a_name_to_an_exported_model(hub, encoder, documents, tmp_path):
    assert len(COMMANDS) == 3
    here = tmp_path / "here"
    (here / "text").mkdir(parents=True)
    (here / "configs").symlink_to(ROOT / "configs")
    (here / "text" / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    said = ""
    inspect, pretrain, report, fill_mask, export = [as_the_readme(line) for line in TUTORIAL]
    assert pretrain.startswith(" ".join(COMMANDS[0].split()[:6]))  # with settings that test_docs.py reads
    assert [fill_mask, export] == COMMANDS[1:]
    for line in [inspect, COMMANDS[0], report, *COMMANDS[1:]]:
        _, *arguments = shlex.split(line)
        more = SHORT if "pretrain" in arguments else []
        quick = {"XLA_FLAGS": QUICK, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        environment = hub.environment(tmp_path / "cache", PYTHONPATH=str(ROOT), **quick)
        command = [sys.executable, *arguments, *more]
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
        said += done.stdout
    assert "can be used for: embed, pretrain (train.objective=mlm_nsp, new heads), finetune, export" in said
    assert "held-out examples: MLM loss" in said
    assert re.search(rf"model.init_from: {NAME} at commit [0-9a-f]{{40}}", said)
    assert "train.objective mlm; new heads: mlm; unused heads: pooler" in said  # the encoder has no pretraining head
    config = json.loads((here / "exported" / "domain" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    model, params = bertgpt.load_pretrained(here / "exported" / "domain")
    before, _ = bertgpt.load_pretrained(encoder, "BertModel")
    assert (
        (model.config.hidden_size, model.config.num_layers)
        == (384, 6)
        == (
            before.config.hidden_size,
            before.config.num_layers,
        )
    )
    assert bertgpt.load_tokenizer(here / "exported" / "domain").get_vocab_size() == model.config.vocab_size == 30522
    assert params["mlm_head"]["bias"].any()  # the new head was trained
