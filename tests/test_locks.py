"""Two processes, one place: the second waits or leaves, and nothing of the first is lost."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertgpt.errors import InputError
from train.folders import locks

HOLD = """
import sys, time
from pathlib import Path
from train.folders import locks
with locks.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a run's folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_taken_folder_is_refused_with_its_holder_and_free_when_that_is_killed(holder, tmp_path):
    place = re.escape(f"{tmp_path}: in use by process {holder.pid} on {socket.gethostname()}; stop that run, or choose")
    with pytest.raises(InputError, match=place), locks.run_folder(tmp_path):
        raise AssertionError
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locks.run_folder(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    assert not tmp_path.exists()  # an empty folder is no run's


def test_who_waits_is_told_once_and_goes_on_when_the_lock_is_free(holder, tmp_path):
    told: list[str] = []

    def wait(text: str) -> None:
        told.append(text)
        holder.send_signal(signal.SIGTERM)

    began = time.monotonic()
    with locks.lock(tmp_path / ".lock", wait):
        assert told == [f"process {holder.pid} on {socket.gethostname()}"]
    assert time.monotonic() - began < 30


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    path, same = tmp_path / ".lock", locks._is_same
    answers = iter([False, True])

    def removed_once(file, path: Path) -> bool:
        if next(answers):
            return same(file, path)
        path.unlink()
        return same(file, path)

    monkeypatch.setattr(locks, "_is_same", removed_once)
    with locks.lock(path):
        assert path.read_text().startswith("process")
    assert not path.exists()


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "lockf", fail)
    with locks.run_folder(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert "has no locks" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]
    with locks.lock(tmp_path / "other") as held:
        assert not held


def test_a_folder_that_its_holder_removed_is_made_again(tmp_path, monkeypatch):
    path, opened = tmp_path / "run" / ".lock", Path.open
    removed: list[Path] = []

    def remove_once(self, *arguments, **options):
        if not removed:
            removed.append(self)
            self.parent.rmdir()
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", remove_once)
    with locks.lock(path) as held:
        assert held
        assert path.exists()


def test_an_empty_folder_is_removed_with_the_parents_made_for_it(tmp_path):
    (tmp_path / "mine").mkdir()
    with locks.run_folder(tmp_path / "mine" / "a" / "b" / "run"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    with locks.run_folder(tmp_path / "mine" / "a" / "b" / "run"):
        (tmp_path / "mine" / "a" / "kept").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept", "mine"]
