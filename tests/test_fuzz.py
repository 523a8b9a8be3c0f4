"""Every reader of files reads what it gets or raises InputError in one line: seeds, and seeds changed at random."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzz import limits, mutations, targets

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def broken() -> dict[str, list[str]]:
    """Target -> what broke the contract; all targets run in one process with bounded memory, as `make fuzz` has it."""
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "fuzz", "check"]
    result = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode in (0, 1), result.stderr[-2000:]
    found: dict[str, list[str]] = {name: [] for name in targets.TARGETS}
    for line in map(json.loads, result.stdout.splitlines()):
        found[line["target"]].append(f"{line['error']} on {line['input'][:300]}")
    return found


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_reader_reads_or_refuses_in_one_line(broken, name):
    assert broken[name] == []


def test_changed_inputs_are_the_same_every_time():
    sound = [b'{"a": [1, "two"]}', b"one\ntwo\n"]
    made = [[mutations.mutate(np.random.default_rng(seed), sound[seed % 2], sound) for seed in range(50)] for _ in "ab"]
    assert made[0] == made[1]
    assert len(set(made[0])) > 40


def test_a_reader_that_breaks_the_contract_is_caught(tmp_path, monkeypatch):
    def read(folder):
        raise KeyError("text")

    monkeypatch.setitem(targets.TARGETS, "broken", targets.Target("a.txt", read, "txt"))
    with pytest.raises(KeyError):
        targets.run("broken", tmp_path, b"")


def test_a_reader_that_hangs_is_caught_even_where_it_catches_everything():
    def spin() -> None:
        try:
            while True:
                pass
        except BaseException:
            pass

    with pytest.raises(limits.TooLong), limits.time_limit(0.2):
        spin()
