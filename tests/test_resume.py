"""A run that is killed, stopped or moved to other devices goes on as if nothing had happened."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from quick import QUICK

from bertgpt.data.pretraining import plans
from bertgpt.errors import InputError
from train import config as configs
from train.folders.checkpoints import Checkpoints
from train.folders.run_folder import load_run
from train.jobs import pretraining
from train.reports import TIMINGS
from train.watching import Stop

STEPS = 16
SENTENCES = 100  # planned at a time; the corpus has more, so its plans are in files, as those of large texts are
PLANNED_IN_BLOCKS = f"""
from bertgpt.data.pretraining import plans
from train.__main__ import console
plans.SENTENCES = {SENTENCES}
console()
"""
ONE_FAMILY = pytest.mark.parametrize("config_file", ["gpt"], indirect=True)  # of what does not depend on the model


@pytest.fixture(scope="module")
def config_file(request, corpus_file, tmp_path_factory) -> Path:
    """A run with dropout, whose checkpoints fall between its logged steps."""
    folder = tmp_path_factory.mktemp(request.param)
    bert = request.param != "gpt"
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 32, "max_positions": 32}
    values = {
        "model": {"preset": "bert_tiny" if bert else "gpt1", **sizes},
        "tokenizer": {"vocab_size": 200},
        "data": {
            "train": str(corpus_file),
            "eval_fraction": 0.1,
            "sequence_length": 32,
            "store": str(folder / "store"),
        },
        "optimizer": {"learning_rate": 0.003, "warmup_steps": 2},
        "train": {"steps": STEPS, "batch_size": 8, "log_every": 3, "eval_every": 8, "eval_examples": 16}
        | {"tracker": "none"},
        "checkpoint": {"every": 4, "keep": 2},
        "parallel": {"strategy": "jit"},
        "out": str(folder / "whole"),
    }
    values["data"]["workers"] = 1
    if request.param == "mlm":  # of packed rows of a mixture, with an optimizer of other states and frozen arrays
        values["train"] |= {"objective": "mlm", "accumulate": 2, "remat": "dots", "freeze": "bert/embeddings/segment/*"}
        values["data"] |= {"pack": True, "mask_rate": 0.3, "whole_word": True}
        parts = [folder / f"{name}.jsonl" for name in ("large", "small")]
        lines = corpus_file.read_text().splitlines(keepends=True)
        for part, text in zip(parts, (lines[:90], lines[90:]), strict=True):
            part.write_text("".join(text))
        values["data"]["train"] = {str(parts[0]): 1.0, str(parts[1]): 2.0}
        values["optimizer"] |= {"schedule": "wsd", "decay_fraction": 0.5, "name": "muon"}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def in_blocks(config_file):
    """Plans as in `command`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "SENTENCES", SENTENCES)
        patch.setenv("XDG_CACHE_HOME", str(config_file.parent / "cache"))
        yield


@pytest.fixture(scope="module")
def whole(config_file) -> Path:
    """The folder of the uninterrupted run."""
    assert command(config_file).wait() == 0
    return config_file.parent / "whole"


def command(config_file: Path, *overrides: str) -> subprocess.Popen:
    """The run as a process of its own, on one device."""
    environment = {**os.environ, "XLA_FLAGS": QUICK, "JAX_COMPILATION_CACHE_DIR": str(config_file.parent / "compiled")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment["XDG_CACHE_HOME"] = str(config_file.parent / "cache")
    arguments = [sys.executable, "-c", PLANNED_IN_BLOCKS, "pretrain", str(config_file), *overrides]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)


def wait_for(folder: Path, step: int) -> None:
    """Until metrics.jsonl has the step."""
    for _ in range(9000):
        if (folder / "metrics.jsonl").exists() and f'"step": {step},' in (folder / "metrics.jsonl").read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came")


def rows(folder: Path) -> list[dict]:
    """The metrics, timings aside."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def same_params(first: Path, second: Path) -> bool:
    """Whether the last checkpoints' parameters are equal bit by bit."""
    leaves = []
    for folder in (first, second):
        checkpoints = Checkpoints(folder / "checkpoints")
        params = checkpoints.load_params(STEPS, load_run(folder).params)
        leaves.append(jax.tree.leaves(params))
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


@pytest.mark.parametrize("config_file", ["bert", "mlm", "gpt"], indirect=True)
def test_killed_at_a_random_step_and_restarted_a_run_is_bit_identical(config_file, whole):
    out = config_file.parent / "killed"
    process = command(config_file, f"out={out}")
    wait_for(out, random.Random(os.getpid()).randrange(6, STEPS - 3, 3))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert command(config_file, f"out={out}").wait() == 0
    assert rows(out) == rows(whole)
    assert same_params(out, whole)


@pytest.mark.parametrize("config_file", ["bert"], indirect=True)
def test_a_run_begun_with_other_pairs_is_refused_unless_one_block_had_them_all(config_file, whole, monkeypatch):
    settings = configs.load(str(config_file), [f"out={config_file.parent / 'earlier'}", "train.steps=4"])
    with monkeypatch.context() as patch:
        patch.setattr(plans, "SENTENCES", 10**6)
        pretraining.pretrain(settings)
        settings.train.steps = 8
        pretraining.pretrain(settings)
    settings.train.steps = 12
    with pytest.raises(InputError, match="checkpoint 8 is of a version of bertgpt that chose other sentence pairs"):
        pretraining.pretrain(settings)
    assert {path.name for path in (config_file.parent / "cache").rglob("pairs-*")} >= {"pairs-0"}


@ONE_FAMILY
def test_sigterm_saves_and_exits_with_143(config_file, whole):
    out = config_file.parent / "stopped"
    process = command(config_file, f"out={out}")
    wait_for(out, 6)
    with pytest.raises(InputError, match=f"{out}: in use by process {process.pid} on .*; stop that run, or choose"):
        pretraining.pretrain(configs.load(str(config_file), [f"out={out}"]))  # a second start, while the first runs
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    saved = Checkpoints(out / "checkpoints").steps()[-1]
    assert 4 <= saved < STEPS
    assert command(config_file, f"out={out}").wait() == 0
    assert rows(out) == rows(whole)


@ONE_FAMILY
def test_a_run_that_ended_before_its_first_checkpoint_blocks_no_other(config_file, whole, monkeypatch, capsys):
    out = config_file.parent / "failed"
    settings = configs.load(str(config_file), [f"out={out}", "train.steps=2", "optimizer.learning_rate=0.5"])
    monkeypatch.setattr(Checkpoints, "save", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        pretraining.pretrain(settings)
    monkeypatch.undo()
    assert len(rows(out)) == 2
    settings.optimizer.learning_rate = 0.003
    pretraining.pretrain(settings)
    told = f"{out}: replacing a run with other settings that ended before its first checkpoint: optimizer.learning_rate"
    assert told in capsys.readouterr().out
    assert [(row["step"], row["split"]) for row in rows(out)] == [(2, "train"), (2, "eval")]
    settings.optimizer.learning_rate = 0.5
    with pytest.raises(InputError, match=r"different settings: optimizer\.learning_rate \(0\.003 -> 0\.5\); rest"):
        pretraining.pretrain(settings)


@ONE_FAMILY
def test_a_signal_cuts_an_evaluation_short_which_is_made_up_for(config_file, whole, monkeypatch):
    out, calls, requested = config_file.parent / "cut", itertools.count(1), Stop.requested

    def at_the_ninth_call(stop: Stop) -> bool:  # eight steps, then the first batch of the evaluation
        stop.received = signal.SIGTERM if next(calls) == 9 else None
        return requested(stop)

    monkeypatch.setattr(Stop, "requested", at_the_ninth_call)
    settings = configs.load(str(config_file), [f"out={out}"])
    with pytest.raises(SystemExit, match="143"):
        pretraining.pretrain(settings)
    assert Checkpoints(out / "checkpoints").steps()[-1] == 8
    assert [row["step"] for row in rows(out) if row["split"] == "eval"] == []
    monkeypatch.undo()
    pretraining.pretrain(settings)
    found, expected = rows(out), rows(whole)  # from another process, compiled with other options
    assert [(row["step"], row["split"]) for row in found] == [(row["step"], row["split"]) for row in expected]
    for row, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(row["loss"], reference["loss"], rtol=1e-5)


@ONE_FAMILY
def test_saved_under_pmap_a_run_goes_on_under_a_mesh(config_file, whole):
    """Dropout off: under pmap each device has a key of its own."""
    off = ["model.hidden_dropout=0", "model.attention_dropout=0", "train.log_every=1"]

    def losses(out: str, *strategies: tuple[str, int]) -> list[float]:
        for strategy, steps in strategies:
            overrides = [f"out={config_file.parent / out}", f"parallel.strategy={strategy}", f"train.steps={steps}"]
            pretraining.pretrain(configs.load(str(config_file), [*off, "optimizer.schedule=constant", *overrides]))
        return [row["loss"] for row in rows(config_file.parent / out) if row["split"] == "train"]

    moved = losses("moved", ("pmap", 4), ("mesh", 8))
    stayed = losses("stayed", ("jit", 8))
    np.testing.assert_allclose(moved, stayed, rtol=1e-5)


@ONE_FAMILY
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_serves(config_file, whole, capsys):
    out = config_file.parent / "damaged"
    settings = configs.load(str(config_file), [f"out={out}", "train.steps=8"])
    pretraining.pretrain(settings)
    largest = max((out / "checkpoints" / "8").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, which the storage itself would not see
    largest.write_bytes(content)
    assert load_run(out).step == 4
    pretraining.pretrain(settings)
    output = capsys.readouterr()
    assert "checkpoint 8 is damaged" in output.err
    assert "resuming from step 4" in output.out
    assert (out / "damaged_checkpoint_8").is_dir()
    assert rows(out)[-1]["step"] == 8


@ONE_FAMILY
def test_changed_text_is_told_and_a_started_run_refuses_it(config_file, corpus_file, tmp_path, capsys):
    text = tmp_path / "text.jsonl"
    text.write_text(corpus_file.read_text())
    overrides = [f"data.train={text}", f"out={tmp_path / 'out'}", "data.store=null", "train.steps=2"]
    settings = configs.load(str(config_file), overrides)
    pretraining.pretrain(settings)
    text.write_text(corpus_file.read_text().replace(".", "!"))
    pretraining.pretrain(settings)
    assert "finished" in capsys.readouterr().out
    settings.train.steps = 4
    with pytest.raises(configs.InputError, match="text.jsonl changed since this run began"):
        pretraining.pretrain(settings)
    other = configs.load(
        str(config_file), [*overrides, f"out={tmp_path / 'other'}", f"data.store={tmp_path}/out/store"]
    )
    pretraining.pretrain(other)
    assert f"preparing {tmp_path / 'out' / 'store'} ({text} changed)" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out" / "store")
    with pytest.raises(configs.InputError, match="the data changed since checkpoint 2"):
        pretraining.pretrain(settings)
    text.write_text(corpus_file.read_text())
    shutil.rmtree(tmp_path / "out" / "store")
    pretraining.pretrain(settings)
    assert "resuming from step 2" in capsys.readouterr().out
