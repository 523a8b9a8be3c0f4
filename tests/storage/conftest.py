"""A bucket on the loopback interface, and a small run that can write to it."""

import json
from pathlib import Path

import gcs_server
import pytest
import yaml
from small_run import STEPS, command


@pytest.fixture(scope="session")
def bucket():
    """The bucket of all tests; each test has its own folder in it."""
    return gcs_server.Bucket()


@pytest.fixture(scope="session", autouse=True)
def emulator(bucket):
    """The variables that lead the clients to the emulator, also for this process."""
    with gcs_server.serve(bucket) as address, pytest.MonkeyPatch.context() as patch:
        variables = gcs_server.environment(address)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables


@pytest.fixture(autouse=True)
def sound(bucket):
    """After a test, the bucket has no faults."""
    bucket.log.clear()
    bucket.sent.clear()
    yield
    bucket.fault, bucket.lag, bucket.denied = lambda method, path: None, 0.0, False


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """The user's cache folder of this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def config_file(bucket, documents, wordpiece, tmp_path_factory) -> Path:
    """A run with dropout whose text is in the bucket, and whose checkpoints fall between its logged steps."""
    bucket.put("text.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in documents).encode())
    folder = tmp_path_factory.mktemp("storage")
    wordpiece.save(str(folder / "tokenizer.json"))
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 32, "max_positions": 32}
    values = {
        "model": {"preset": "bert_tiny", **sizes},
        "tokenizer": {"path": str(folder / "tokenizer.json")},  # one that is trained differs from time to time
        "data": {"train": "gs://bucket/text.jsonl", "eval_fraction": 0.1, "sequence_length": 32, "workers": 1},
        "optimizer": {"learning_rate": 0.003, "warmup_steps": 2},
        "train": {"objective": "mlm", "steps": STEPS, "batch_size": 8, "log_every": 3, "eval_every": 8}
        | {"eval_examples": 16, "tracker": "none"},
        "checkpoint": {"every": 4, "keep": 2},
        "parallel": {"strategy": "jit"},
        "out": str(folder / "whole"),
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def whole(config_file) -> Path:
    """The folder of the run on a disk, without interruption."""
    process = command(config_file)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return config_file.parent / "whole"
