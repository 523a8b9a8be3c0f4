"""Runs in a bucket: several processes that share nothing else, kills at any moment, and one-line errors."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from small_run import STEPS, command

import bertgpt
from train import config as configs
from train import hosts
from train.__main__ import main
from train.addresses import Remote, local
from train.folders.run_folder import load_run
from train.folders.token_store import store_folder
from train.jobs import pretraining
from train.reports import TIMINGS


def rows(content: bytes) -> list[dict]:
    """The rows of metrics.jsonl, timings aside."""
    lines = map(json.loads, content.splitlines())
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def evaluations(content: bytes) -> list[dict]:
    """The rows of evaluations: those of training differ where a shorter run ended."""
    return [row for row in rows(content) if row["split"] == "eval"]


def same_params(first: str | Path, second: str | Path) -> bool:
    """Whether the parameters of two runs are equal bit by bit."""
    leaves = [jax.tree.leaves(load_run(folder, STEPS).params) for folder in (first, second)]
    return all(map(np.array_equal, *leaves))


@pytest.fixture
def killing(bucket):
    """A function (pattern, process) that kills the process when the bucket gets a request that fits the pattern; with
    `after`, when it has answered. Returns whether it has."""
    killed: list[bool] = []

    def watch(pattern: str, process: subprocess.Popen) -> list[bool]:
        killed.clear()

        def fault(method: str, path: str) -> int | None:
            if not killed and re.search(pattern, f"{method} {path}"):
                killed.append(True)
                process.send_signal(signal.SIGKILL)
                process.wait()
                return random.Random(pattern).choice([None, 0])  # the write is made, or it is not
            return None

        bucket.fault = fault
        return killed

    return watch


MOMENTS = (  # in this order, each in the next start of the same run
    r"POST .*store/train/sentences.bin",  # the store is copied
    r"POST .*store/meta.json",
    r"POST .*checkpoints/4/state/.*d/",  # the arrays of the first checkpoint
    r"POST .*checkpoints/4/commit_success.txt",  # orbax has written it
    r"POST .*run/metrics.jsonl",
    r"POST .*checkpoints/4/digests.json",  # the marker
    r"POST .*killed/run/checkpoints.json",  # the marker is there
    r"POST .*checkpoints/8/state/manifest.ocdbt",
    r"DELETE .*checkpoints/4/digests.json",  # a checkpoint that is no longer kept
    r"POST .*checkpoints/16/metrics/metrics",
)


def test_killed_at_ten_moments_a_run_ends_bit_identical(bucket, config_file, whole, killing):
    for number, pattern in enumerate(MOMENTS):
        process = command(config_file, "out=gs://bucket/killed/run", "checkpoint.keep=1")
        killed = killing(pattern, process)
        _, errors = process.communicate()
        assert killed, f"{pattern} never came in start {number}: {errors}"
    bucket.fault = lambda method, path: None
    process = command(config_file, "out=gs://bucket/killed/run", "checkpoint.keep=1")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert rows(bucket.objects["killed/run/metrics.jsonl"].content) == rows((whole / "metrics.jsonl").read_bytes())
    assert same_params("gs://bucket/killed/run", whole)
    assert not [name for name in bucket.names("killed/run/checkpoints/") if "/8/" in name or "/4/" in name]
    assert b"PNG" in bucket.objects["killed/run/curves.png"].content[:8]


def processes(config_file: Path, folder: Path, *overrides: str) -> list[subprocess.Popen]:
    """Two processes of one run, each with its own cache and current folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for index in range(2):
        home = folder / f"host{index}"
        home.mkdir(parents=True, exist_ok=True)
        variables = {hosts.ADDRESS: address, hosts.COUNT: "2", hosts.INDEX: str(index), "XDG_CACHE_HOME": str(home)}
        settings = ("parallel.strategy=mesh", "parallel.data=2", *overrides)
        started.append(command(config_file, *settings, **variables))
    return started


def ends(started: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    outputs = [process.communicate(timeout=280) for process in started]
    return [(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]


CONSTANT = ("optimizer.schedule=constant", "model.hidden_dropout=0", "model.attention_dropout=0")


def test_two_processes_share_nothing_but_a_bucket_that_fails_and_is_slow(bucket, config_file, whole, tmp_path):
    chance = random.Random(0)

    def fault(method: str, path: str) -> int | None:
        time.sleep(chance.choice([0, 0, 0.03]))
        return chance.choices([None, 503, 429, 0], [96, 2, 1, 1])[0]

    bucket.fault = fault
    out = "gs://bucket/two/run"
    first = processes(config_file, tmp_path, f"out={out}", "train.steps=8", *CONSTANT)
    for code, _, errors in ends(first):
        assert code == 0, errors
    for host in ("host0", "host1"):  # each has its own copy of the store
        assert len(list((tmp_path / host).rglob("store/train/tokens.bin"))) == 1
    resumed = processes(config_file, tmp_path / "new", f"out={out}", *CONSTANT)
    for (code, output, errors), index in zip(ends(resumed), range(2), strict=True):
        assert code == 0, errors
        assert ("resuming from step 8" in output) == (index == 0)
    bucket.fault = lambda method, path: None
    alone = config_file.parent / "constant"
    process = command(config_file, f"out={alone}", *CONSTANT)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    wanted = evaluations((alone / "metrics.jsonl").read_bytes())
    found = evaluations(bucket.objects["two/run/metrics.jsonl"].content)
    assert [row["step"] for row in found] == [row["step"] for row in wanted] == [8, 16]
    np.testing.assert_allclose([row["loss"] for row in found], [row["loss"] for row in wanted], rtol=1e-4)


def test_a_second_machine_copies_the_arrays_of_a_store_once(bucket, config_file, cache):
    config = configs.load(str(config_file), ["out=gs://bucket/copied/a", "data.store=gs://bucket/copied/store"])
    config.train.steps = 4
    pretraining.pretrain(config)
    shutil.rmtree(cache)
    bucket.sent.clear()
    config.out = "gs://bucket/copied/b"
    pretraining.pretrain(config)
    arrays = [name for name in bucket.names("copied/store/") if name.endswith(".bin")]
    assert len(arrays) == 8
    assert all(bucket.sent[name] == len(bucket.objects[name].content) for name in arrays)
    bucket.sent.clear()
    config.out = "gs://bucket/copied/c"
    pretraining.pretrain(config)
    assert not any(bucket.sent[name] for name in arrays)


@pytest.mark.parametrize("fault", ["changed", "missing"])
def test_a_damaged_store_is_prepared_again_from_its_text(fault, bucket, config_file, cache, capsys):
    address = f"gs://bucket/damaged_{fault}/store"
    arguments = ["prepare", str(config_file), f"data.store={address}", "out=runs/none"]
    assert main(arguments) == 0
    name = f"damaged_{fault}/store/train/tokens.bin"
    content = bucket.objects[name].content
    if fault == "missing":
        del bucket.objects[name]
    else:
        bucket.put(name, content[:-2] + b"\x07\x00")
    shutil.rmtree(cache)
    assert main(arguments) == 0
    output, errors = capsys.readouterr()
    assert f"warning: {address}: train/tokens.bin is {fault}" in errors
    assert bucket.objects[name].content == content
    assert output.count(f"preparing {address} (not found)") == 2


def test_a_second_start_takes_the_run_over_and_the_first_ends_at_its_next_checkpoint(bucket, config_file, cache):
    config = configs.load(str(config_file), ["out=gs://bucket/owned/run"])

    def fault(method: str, path: str) -> int | None:
        if "checkpoints/8/commit_success.txt" in path and method == "POST":
            bucket.put("owned/run/owner", b"another run")
        return None

    bucket.fault = fault
    with pytest.raises(bertgpt.InputError, match="gs://bucket/owned/run: another run has begun to write there"):
        pretraining.pretrain(config)
    assert "owned/run/checkpoints/4/digests.json" in bucket.objects
    assert "owned/run/checkpoints/8/digests.json" not in bucket.objects


def test_settings_that_differ_from_those_in_the_bucket_are_refused(bucket, config_file, cache):
    config = configs.load(str(config_file), ["out=gs://bucket/differ/run", "train.steps=4"])
    pretraining.pretrain(config)
    shutil.rmtree(cache)
    config.train.batch_size = 4
    before = {name: bucket.objects[name] for name in bucket.names("differ/") if not name.endswith("owner")}
    with pytest.raises(
        bertgpt.InputError, match=r"gs://bucket/differ/run was started with .*train.batch_size \(8 -> 4\)"
    ):
        pretraining.pretrain(config)
    assert before == {name: bucket.objects[name] for name in before}


def test_a_run_in_a_bucket_is_read_by_the_commands(bucket, config_file, whole, cache, capsys, tmp_path):
    for file in whole.rglob("*"):
        if file.is_file() and "store" not in file.parts:
            bucket.put(f"read/run/{file.relative_to(whole).as_posix()}", file.read_bytes())
    address = "gs://bucket/read/run"
    assert main(["export", address, str(tmp_path / "model")]) == 0
    assert main(["inspect", address]) == 0
    assert main(["report", address, "--out", str(tmp_path / "curves.png")]) == 0
    assert main(["fill-mask", address, "a [MASK]"]) == 0
    output = capsys.readouterr().out
    assert f"{address}: BertForMaskedLM, step" in output
    assert main(["evaluate", address]) == 2
    assert f"the output folder is {address}, an address; give a folder" in capsys.readouterr().err
    assert (tmp_path / "model/model.safetensors").exists()
    for file in (tmp_path / "model").iterdir():
        bucket.put(f"read/model/{file.name}", file.read_bytes())
    for start in (address, "gs://bucket/read/model"):
        overrides = [f"model.init_from={start}", "model.preset=null", "tokenizer.path=null", "train.steps=1"]
        overrides += [f"model.{key}=null" for key in ("hidden_size", "num_layers", "num_heads", "mlp_size")]
        settings = configs.load(str(config_file), [*overrides, "model.max_positions=null", f"out={tmp_path / 'next'}"])
        pretraining.pretrain(settings)
        shutil.rmtree(tmp_path / "next")


def test_a_damaged_best_checkpoint_is_passed_over_by_the_commands(bucket, config_file, whole, cache, capsys):
    for file in (whole / "checkpoints").rglob("*"):
        if file.is_file():
            bucket.put(
                f"passed/run/checkpoints/{file.relative_to(whole / 'checkpoints').as_posix()}", file.read_bytes()
            )
    bucket.put("passed/run/config.yaml", (whole / "config.yaml").read_bytes())
    best = load_run(whole).step
    damaged = bucket.names(f"passed/run/checkpoints/{best}/state/d/")[0]
    bucket.put(damaged, b"x" + bucket.objects[damaged].content[1:])
    assert load_run("gs://bucket/passed/run").step != best
    assert f"warning: checkpoint {best} of gs://bucket/passed/run is damaged: state/d/" in capsys.readouterr().err
    with pytest.raises(bertgpt.InputError, match="gs://bucket/passed/run: no intact checkpoint; choose another step"):
        load_run("gs://bucket/passed/run", best)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["out=s3://bucket/x"],
            "out is s3://bucket/x; a run writes to a local folder or to gs://bucket/folder. For other",
        ),
        (["out=gs://bucket"], "out is gs://bucket; give a folder in a bucket, such as gs://bucket/runs/mine"),
        (["out=gs://bucket/a[1]"], "out is gs://bucket/a[1]; give a folder in a bucket"),
        (["out=gs://nobody/x"], "out is gs://nobody/x: there is no such bucket"),
        (["data.store=gs://nobody/x"], "data.store is gs://nobody/x: there is no such bucket"),
        (["data.store=s3://b/x"], "data.store is s3://b/x; a run writes to a local folder or to gs://bucket/folder"),
        (["checkpoint.mirror=here"], "checkpoint.mirror is here; give an address, such as s3://bucket/runs/mine"),
        (["checkpoint.mirror=abc://b/x"], "checkpoint.mirror is abc://b/x: cannot be used: Protocol not known: abc"),
        (["checkpoint.mirror=gs://b/x", "out=gs://bucket/x"], "checkpoint.mirror is for a local out, and out is gs://"),
    ],
)
def test_a_wrong_address_is_one_line_before_any_work(overrides, line, bucket, config_file, cache, capsys, tmp_path):
    code = main(["pretrain", str(config_file), f"out={tmp_path / 'out'}", *overrides])
    output, errors = capsys.readouterr()
    assert code == 2, errors
    assert errors.startswith(f"error: {line}"), errors
    assert errors.count("\n") == 1
    assert not output
    assert not (tmp_path / "out").exists()


def test_no_permission_is_one_line_before_any_work(bucket, config_file, cache, capsys):
    bucket.denied = True
    assert main(["pretrain", str(config_file), "out=gs://bucket/denied/run"]) == 2
    output, errors = capsys.readouterr()
    assert re.fullmatch(
        r"error: out is gs://bucket/denied/run/.check_\w+: cannot be written: no permission .*\n", errors
    )
    assert not output


@pytest.mark.parametrize("package", ["gcsfs", "google.cloud.storage"])
def test_a_missing_package_is_one_line(package, config_file, cache, tmp_path):
    variables = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    process = command(config_file, "out=gs://bucket/package/run", **variables)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.startswith("error: out is gs://bucket/package/run: gs:// needs a package that is missing (")
    assert package in errors
    assert errors.endswith("pip install 'bertgpt[gcs]'\n")


def test_a_write_that_fails_for_good_is_one_line_and_the_run_goes_on_from_the_last_checkpoint(bucket, config_file):
    bucket.fault = lambda method, path: 403 if method == "POST" and "checkpoints/8/state" in path else None
    process = command(config_file, "out=gs://bucket/fails/run")
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert lines[0].startswith(
        "error: gs://bucket/fails/run/checkpoints: a checkpoint cannot be written: no permission"
    )
    bucket.fault = lambda method, path: None
    process = command(config_file, "out=gs://bucket/fails/run")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "resuming from step 4" in output


def test_the_folders_on_this_machine_differ_by_address(cache):
    config = configs.RunConfig(out="gs://bucket/a/run")
    assert local("runs/x") == Path("runs/x")
    assert local("gs://bucket/a/run").name == local("gs://bucket/b/run").name == "run"
    assert local("gs://bucket/a/run") == local("gs://bucket/a/run/") != local("gs://bucket/b/run")
    assert store_folder(config).parent.parent == cache / "bertgpt/addresses"
    assert Remote("gs://bucket/a/").address == "gs://bucket/a"
