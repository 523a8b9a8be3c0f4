"""Several real processes on the loopback interface: equal to one, resumable, and none waits for ever."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from quick import QUICK
from test_resume import rows, wait_for

import bertgpt
import train
from bertgpt.errors import InputError
from train import config as configs
from train import hosts
from train.evaluation import in_order
from train.folders.checkpoints import Checkpoints
from train.folders.run_folder import load_run
from train.jobs import finetuning, pretraining

STEPS = 40
MESH_OF_TWO = ["parallel.strategy=mesh", "parallel.data=2"]
NO_DROPOUT = ["model.hidden_dropout=0", "model.attention_dropout=0"]
END = 150  # seconds after which no process may still wait for one that is gone


@pytest.fixture(scope="module")
def config_file(corpus_file, tmp_path_factory) -> Path:
    """A run with dropout that learns masked tokens alone, from packed rows."""
    folder = tmp_path_factory.mktemp("hosts")
    values = {
        "model": {
            "preset": "bert_tiny",
            "hidden_size": 16,
            "num_layers": 1,
            "num_heads": 2,
            "mlp_size": 32,
            "max_positions": 32,
        },
        "tokenizer": {"vocab_size": 200},
        "data": {"train": str(corpus_file), "eval_fraction": 0.1, "sequence_length": 32, "workers": 1, "pack": True},
        "optimizer": {"learning_rate": 0.003, "warmup_steps": 2},
        "train": {
            "objective": "mlm",
            "tracker": "none",
            "steps": STEPS,
            "batch_size": 8,
            "log_every": 1,
            "eval_every": 20,
            "eval_examples": 14,
        },
        "checkpoint": {"every": 4, "keep": 2},
    }
    values["train"]["objective"] = "mlm"
    values["data"]["store"] = str(folder / "store")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def start(
    config_file: Path,
    count: int,
    out: str,
    *overrides: str,
    verb: str = "pretrain",
    folders: list[Path] | None = None,
    last: tuple[str, ...] = (),
    devices: int = 1,
) -> list[subprocess.Popen]:
    """The processes of one run, each with its devices, and where `folders` are given, in its own; `last`: further
    arguments of the last one alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{QUICK} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(config_file.parent / "compiled")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment |= {
        hosts.ADDRESS: address,
        hosts.COUNT: str(count),
        "PYTHONPATH": str(Path(hosts.__file__).parent.parent),
    }
    arguments = [sys.executable, "-m", "train", verb, str(config_file), f"out={config_file.parent / out}", *overrides]
    return [
        subprocess.Popen(
            [*arguments, *(last if index == count - 1 else ())],
            env={**environment, hosts.INDEX: str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folders[index] if folders else None,
        )
        for index in range(count)
    ]


def finish(processes: list[subprocess.Popen], seconds: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        ends = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *end) for process, end in zip(processes, ends, strict=True)]


def assert_close(found: list[dict], expected: list[dict]) -> None:
    """Every step and figure, to 1e-5."""
    assert [(row["step"], row["split"]) for row in found] == [(row["step"], row["split"]) for row in expected]
    for row, reference in zip(found, expected, strict=True):
        for name in reference.keys() - {"split"}:
            np.testing.assert_allclose(row[name], reference[name], rtol=1e-5, err_msg=f"{row['step']} {name}")


@pytest.fixture(scope="module")
def one(config_file) -> list[dict]:
    """The metrics of one process on a mesh of two devices: each device drops by a key of its own."""
    out = config_file.parent / "one"
    pretraining.pretrain(configs.load(str(config_file), [f"out={out}", *MESH_OF_TWO]))
    return rows(out)


@pytest.fixture(scope="module")
def two(config_file) -> tuple[Path, list[tuple[int, str, str]]]:
    """The folder of two processes, which also prepare the store, and how they ended."""
    return config_file.parent / "two", finish(start(config_file, 2, "two"))


def test_two_processes_train_as_one_does_and_one_of_them_speaks(one, two):
    folder, ((code, said, _), (other_code, other_said, _)) = two
    assert (code, other_code) == (0, 0)
    assert "in 2 processes, strategy mesh over 2" in said
    assert [line for line in other_said.splitlines() if line and "Gloo" not in line and "connects" not in line] == []
    assert_close(rows(folder), one)


def test_when_one_is_killed_the_others_end_and_all_go_on_bit_by_bit(config_file, two):
    out = config_file.parent / "killed"
    processes = start(config_file, 2, "killed")
    wait_for(out, 7)
    processes[1].kill()
    (code, _, errors), _ = finish(processes, END)
    assert code == 1
    assert re.search(r"^error: process 0: another process of this run ended .*; start all processes", errors, re.M)

    processes = start(config_file, 2, "killed")
    wait_for(out, 15)
    processes[0].kill()  # it holds JAX's coordination service, without which JAX ends the others itself
    _, (code, _, errors) = finish(processes, END)
    assert code != 0
    assert len(re.findall(r"^error: process 1: another process of this run ended .*; start all", errors, re.M)) == 1
    assert "stack trace" not in errors

    assert [code for code, *_ in finish(start(config_file, 2, "killed"))] == [0, 0]
    assert rows(out) == rows(two[0])
    leaves = []
    for folder in (out, two[0]):
        checkpoints = Checkpoints(folder / "checkpoints")
        leaves.append(jax.tree.leaves(checkpoints.load_params(STEPS, load_run(folder).params)))
    assert all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


def test_stopped_in_two_processes_a_run_goes_on_in_one_under_another_mesh(config_file, two, capsys):
    """From four devices to two. Without dropout, whose keys go by device, all is as on one device."""
    out, still = config_file.parent / "moved", config_file.parent / "still"
    pretraining.pretrain(configs.load(str(config_file), [f"out={still}", *NO_DROPOUT, "parallel.strategy=jit"]))
    processes = start(config_file, 2, "moved", *NO_DROPOUT, devices=2)
    wait_for(out, 6)
    processes[1].send_signal(signal.SIGTERM)  # one is told, and all leave at the same step
    ends = finish(processes, END)
    assert [code for code, *_ in ends] == [143] * 2
    assert "in 2 processes, strategy mesh over 4" in ends[0][1]
    (step,) = re.findall(r"saved at step (\d+)", ends[0][1])
    assert Checkpoints(out / "checkpoints").steps()[-1] == int(step) < STEPS
    capsys.readouterr()
    mesh = ["parallel.strategy=mesh", "parallel.data=1", "parallel.fsdp=2"]
    pretraining.pretrain(configs.load(str(config_file), [f"out={out}", *NO_DROPOUT, *mesh]))
    assert f"resuming from step {step}" in capsys.readouterr().out
    assert_close(rows(out), rows(still))


@pytest.fixture(scope="module")
def task(config_file, wordpiece) -> Path:
    """The folder of a fine-tuning recipe; its training and evaluation files are one part of the rows each."""
    folder = config_file.parent / "task"
    folder.mkdir()
    words = list("abcdefghijk")
    labels = [[1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1][n] for n in range(11)]
    lines = [json.dumps({"text": words[n] * (n + 1), "label": label}) for n, label in enumerate(labels)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "eval.jsonl").write_text("\n".join(lines[::-1]))
    (folder / "wrong.jsonl").write_text("\n".join([*lines, json.dumps({"text": "a", "label": 7})]))
    wordpiece.save(str(folder / "tokenizer.json"))
    model = {"preset": "bert_tiny", "hidden_size": 16, "num_heads": 2, "num_layers": 1, "max_positions": 32}
    values = {
        "model": model,
        "tokenizer": {"path": str(folder)},
        "task": {"kind": "classification"},
        "data": {"train": str(folder / "rows.jsonl"), "eval": str(folder / "eval.jsonl"), "sequence_length": 32},
        "train": {"steps": 4, "batch_size": 8, "log_every": 1, "eval_every": 2, "tracker": "none"},
        "optimizer": {"learning_rate": 0.01},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_a_task_is_scored_in_two_processes_as_in_one(task):
    """Predictions of every row come together in the rows' order; the last batch is ragged."""
    ends = finish(start(task / "run.yaml", 2, "two", verb="finetune"))
    assert [code for code, *_ in ends] == [0, 0], ends
    settings = [f"out={task / 'one'}", *MESH_OF_TWO]
    finetuning.finetune(configs.load(str(task / "run.yaml"), settings))
    assert_close(rows(task / "two"), rows(task / "one"))
    files = [{file.name: file.read_bytes() for file in (task / out / "encoded").iterdir()} for out in ("one", "two")]
    assert len(files[0]) == 2
    assert files[0] == files[1]


def test_a_row_that_one_process_cannot_encode_is_told_by_all(task):
    ends = finish(start(task / "run.yaml", 2, "wrong", f"data.eval={task / 'wrong.jsonl'}", verb="finetune"), END)
    assert [code for code, *_ in ends] == [2, 2], ends
    for _, _, errors in ends:
        assert "wrong.jsonl line 12: label '7' is not among those of the training data" in errors


def test_rows_that_a_mesh_holds_in_another_order_are_put_in_theirs():
    batches = {"logits": [np.array([10, 12, 11]), np.array([13, 15, 14])], "place": [np.array([0, 2, 1]), [3, 5, 4]]}
    np.testing.assert_array_equal(in_order(batches)["logits"], [10, 11, 12, 13, 14, 15])
    assert in_order({}) == {}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({hosts.COUNT: "2"}, f"has {hosts.COUNT} without {hosts.ADDRESS}, {hosts.INDEX}"),
        ({hosts.ADDRESS: "a:1", hosts.COUNT: "two", hosts.INDEX: "0"}, "must be integers"),
        ({hosts.ADDRESS: "a:1", hosts.COUNT: "2", hosts.INDEX: "2"}, "an index below the number of processes"),
        ({hosts.ADDRESS: "a", hosts.COUNT: "2", hosts.INDEX: "1"}, "set host:port"),
    ],
)
def test_half_an_address_is_refused(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(bertgpt.InputError, match=message):
        hosts.connect()


def test_a_folder_that_is_not_shared_is_told_at_once(config_file):
    """Two processes whose `out` is relative to folders of their own."""
    folders = [config_file.parent / name for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
    ends = finish(start(config_file, 2, "unused", "out=run", folders=folders), END)
    assert 2 in [code for code, *_ in ends]
    assert "1 of 2 processes do not see the same folder" in "".join(errors for *_, errors in ends)


def test_a_process_with_another_configuration_is_named(config_file):
    """Nothing else would notice a learning rate: it changes no shape."""
    ends = finish(start(config_file, 2, "differing", last=("optimizer.learning_rate=16",)), END)
    assert {code for code, *_ in ends} <= {1, 2}
    assert ends[0][0] == 2
    told = r"^error: process 1 has optimizer\.learning_rate = 16\.0, and process 0 has 0\.003; start every process with"
    assert re.search(told, ends[0][2], re.M)
    assert not (config_file.parent / "differing").exists()


def test_every_key_is_compared(config_file, monkeypatch):
    compared = []
    monkeypatch.setattr(hosts, "check_same", compared.append)
    monkeypatch.setattr(pretraining, "_pretrain", lambda *_: None)
    pretraining.pretrain(configs.load(str(config_file), [f"out={config_file.parent / 'compared'}"]))
    assert compared[0].keys() >= {
        "train.batch_size",
        "train.objective",
        "optimizer.learning_rate",
        "data.train",
        "seed",
    }


def test_a_process_with_other_code_is_named(monkeypatch, tmp_path):
    for package in (bertgpt, train):
        shutil.copytree(Path(package.__file__).parent, tmp_path / package.__name__)
    with (tmp_path / "bertgpt" / "errors.py").open("a") as file:
        file.write("# another checkout\n")
    tell = "import json; from train import hosts; print(json.dumps(hosts._versions()))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", tell], cwd=tmp_path, env=environment, capture_output=True, check=True)
    other = json.dumps(json.loads(told.stdout), sort_keys=True).encode()

    def gathered(mine: np.ndarray) -> np.ndarray:
        text = mine.tobytes()
        return np.stack([mine, np.frombuffer(other if text.startswith(b"{") else text, mine.dtype)])

    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "_gathered", gathered)
    with pytest.raises(InputError, match="process 1 has code of bertgpt = .*, and process 0 has"):
        hosts.check_same({})


def test_several_processes_that_jax_cannot_find_are_told_to_name_themselves(monkeypatch):
    def find_none():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(jax.distributed, "initialize", find_none)
    with pytest.raises(bertgpt.InputError, match="PMI_SIZE is over 1, but JAX cannot find.*JAX_COORDINATOR_ADDRESS"):
        hosts.connect()


def test_a_users_mistake_is_no_lost_process(monkeypatch):
    monkeypatch.setattr(hosts, "several", lambda: True)
    assert hosts.is_lost_peer(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))
    assert not hosts.is_lost_peer(bertgpt.InputError("data.train: no file gloomy.txt"))
    assert not hosts.is_lost_peer(ValueError("RESOURCE_EXHAUSTED: NCCL ran out"))
    assert not hosts.is_lost_peer(ValueError("shapes differ"))


def test_alone_there_is_nobody_to_wait_for():
    hosts.connect()
    assert not jax.distributed.is_initialized()
    assert hosts.is_first()
    assert hosts.agreed(7) == 7
    assert hosts.summed([1, 2.5]) == [1, 2.5]
    assert not hosts.is_lost_peer(ValueError("Gloo all-reduce failed"))
