"""Makes one line of what JAX's native code writes when another process of a run is gone.

JAX aborts a process whose coordinator has died, from a thread of its own and with a stack of native frames; no Python
code of that process can change this. So a small process beside it reads its stderr: `python -m train.native_errors
INDEX` passes lines on, and puts one in place of those.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

EARLIER = ("Polled an error from coordination service", "Failed to retrieve preemption notice")  # what comes before
FATAL = "JAX distributed service detected fatal errors"  # its last line before the stack
STATUS = "absl::Status: "  # the reason follows
OURS = re.compile("error: |warning: ")  # how a line of our own begins
ENDED = "another process of this run ended"


def attach(index: int) -> None:
    """Puts such a process between this one, number `index` of a run, and its stderr."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", f"{__package__}.native_errors", str(index)]
    beside = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=environment)
    assert beside.stdin is not None
    sys.stderr.flush()
    os.dup2(beside.stdin.fileno(), 2)
    beside.stdin.close()


def lost(index: int, reason: str) -> str:
    """One line for a process whose partner is gone, with what to do."""
    return (
        f"process {index}: {ENDED} ({reason}); start all of them again with the same command: the run goes on from its "
        "last checkpoint"
    )


def main(index: int) -> None:
    """Passes lines from stdin to stderr until there are no more."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the process beside it
    sys.stdin.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file's name may be any bytes
    told = False
    held: list[str] = []  # native lines from the first sign on, shown where nothing fatal follows
    for line in sys.stdin:
        if FATAL in line:
            reason = line.partition(STATUS)[2].strip()[:200]
            sys.exit(None if told else f"error: {lost(index, reason)}")
        if (held or any(text in line for text in EARLIER)) and not OURS.match(line):
            held.append(line)
        else:
            told = told or ENDED in line
            print(line, end="", file=sys.stderr, flush=True)
    print(*held, sep="", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
