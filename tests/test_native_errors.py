"""What stands in place of JAX's native stack where a process of a run is gone."""

import os
import subprocess
import sys

import pytest

EARLY = "W1 manager.cc:1] Failed to retrieve preemption notice from coordination service: gone\n"
FATAL = "F1 client.h:80] Ending; the JAX distributed service detected fatal errors. absl::Status: GONE\n"
OURS = "error: process 3: another process of this run ended (GONE); start all processes again with the same command "


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("warning: a\nb\n", "warning: a\nb\n"),
        (f"a\n{EARLY}more\n{FATAL}*** Check failure stack trace: ***\n  @ 0x7f\n", f"a\n{OURS}"),
        (f"{OURS}x\n{FATAL}  @ 0x7f\n", f"{OURS}x\n"),
        (f"a\n{EARLY}b\n", f"a\n{EARLY}b\n"),
        (f"{EARLY}warning: slow\nb\n", f"warning: slow\n{EARLY}b\n"),
        ("warning: caf\udce9\n", "warning: caf\\xe9\n"),
    ],
)
def test_a_native_stack_becomes_one_line(written, shown):
    found = subprocess.run(
        [sys.executable, "-m", "train.native_errors", "3"],
        input=written.encode(errors="surrogateescape"),
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"},
        check=False,
    )
    assert found.stderr.decode().replace("to resume from the last checkpoint\n", "") == shown
    assert found.stdout == b""
