"""The launch scripts of docs/, run with stand-ins for the programs of the cluster."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from quick import QUICK

ROOT = Path(__file__).parent.parent
SRUN = """#!/bin/bash
# Two processes on this machine, told of each other as Slurm tells them.
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" > other.txt 2>&1 &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"; code=$?
wait $! || exit 1
exit $code
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """(name, script): a program of that name comes first on the path."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def write(name, script):
        path = tmp_path / "bin" / name
        path.write_text(script)
        path.chmod(0o755)

    return write


def run(script, *arguments, cwd, **environment):
    command = ["bash", str(ROOT / "docs" / script), *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=120)


def test_the_slurm_script_trains_in_two_processes(stand_in, tmp_path, corpus_file):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    stand_in("srun", SRUN)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 32, "max_positions": 32}
    values = {
        "model": {"preset": "gpt1", **sizes},
        "tokenizer": {"vocab_size": 200},
        "data": {"train": str(corpus_file), "eval_fraction": 0.1, "sequence_length": 32, "workers": 1},
        "train": {"steps": 4, "batch_size": 8, "log_every": 2, "eval_every": 4, "eval_examples": 8},
        "out": "run",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"SLURM_JOB_ID": "7", "JAX_COORDINATOR_PORT": port, "PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK}
    done = run("slurm.sh", "pretrain", "run.yaml", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr + (tmp_path / "other.txt").read_text()
    assert "in 2 processes, strategy mesh over 2" in done.stdout
    assert "step 4 held-out" in done.stdout
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()


@pytest.mark.parametrize(("code", "requeued"), [(143, True), (1, False)])
def test_the_slurm_script_is_queued_again_after_a_stop_but_not_after_a_fault(stand_in, tmp_path, code, requeued):
    stand_in("srun", f"#!/bin/bash\nexit {code}\n")
    stand_in("scontrol", '#!/bin/bash\necho "$@" > asked.txt\n')
    done = run("slurm.sh", "pretrain", "run.yaml", cwd=tmp_path, SLURM_JOB_ID="7")
    assert done.returncode == code
    assert (tmp_path / "asked.txt").exists() == requeued
    assert not requeued or (tmp_path / "asked.txt").read_text() == "requeue 7\n"


GCLOUD = """#!/bin/bash
# Notes each call. A request is active at once; the first run is preempted, if the test says so.
echo "$*" >> calls.txt
case "$*" in
*" list "*) cat state 2> /dev/null || true ;;
*create*) echo ACTIVE > state ;;
*delete*) rm state ;;
*" pretrain "*) [[ ! -e preempts ]] || { rm preempts; echo SUSPENDED > state; exit 143; }; exit $(cat code) ;;
esac
"""


def test_the_cloud_tpu_script_asks_again_after_a_preemption_and_exports(stand_in, tmp_path):
    stand_in("gcloud", GCLOUD)
    (tmp_path / "preempts").touch()
    (tmp_path / "code").write_text("0")
    settings = ["data.train=[a b, c]", "out=gs://bucket/runs/large"]
    environment = {"ZONE": "zone-a", "REPOSITORY": "https://host/bertgpt", "WAIT": "0"}
    done = run("cloud_tpu.sh", "slice", "pretrain", "bert_large", *settings, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls.txt").read_text()
    order = re.findall(r"create|delete|uv venv|bertgpt pretrain|bertgpt export", calls)
    once = ["create", "uv venv", "bertgpt pretrain"]
    assert order == [*once, "delete", *once, "bertgpt export", "delete"]
    command, _ = re.findall(r"--worker all --command (.*pretrain.*)", calls)
    words = shlex.split(command.partition(" --ssh-flag")[0].rpartition(";")[2])
    assert words == ["~/env/bin/bertgpt", "pretrain", "bert_large", *settings]
    assert "JAX_PLATFORMS=cpu ~/env/bin/bertgpt export gs://bucket/runs/large exported" in calls


def test_the_cloud_tpu_script_ends_with_the_run_where_the_slice_is_sound(stand_in, tmp_path):
    stand_in("gcloud", GCLOUD)
    (tmp_path / "code").write_text("2")
    environment = {"ZONE": "zone-a", "REPOSITORY": "https://host/bertgpt", "WAIT": "0"}
    done = run("cloud_tpu.sh", "slice", "pretrain", "bert_large", "out=gs://bucket/x", cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert "the run ended with an error, and the slice is there" in done.stderr
    assert "delete" not in (tmp_path / "calls.txt").read_text()
    (tmp_path / "state").write_text("SUSPENDED")
    stand_in("gcloud", GCLOUD.replace("*delete*) rm state", "*delete*) echo DELETING > state"))
    stand_in("sleep", "#!/bin/bash\nrm state\n")
    done = run("cloud_tpu.sh", "slice", "pretrain", "bert_large", "out=gs://bucket/x", cwd=tmp_path, **environment)
    assert (done.returncode, "no slice: the request is gone; start again" in done.stderr) == (1, True)
    done = run("cloud_tpu.sh", "slice", "pretrain", "bert_large", "out=runs/x", cwd=tmp_path, **environment)
    assert (done.returncode, "give out=gs://BUCKET/FOLDER" in done.stderr) == (2, True)
