"""Replace the stack trace of JAX's native code by one line when another process of a run has exited.

JAX aborts a process if the coordinator dies. A native thread does this and prints a stack of native frames; Python code
of that process cannot prevent it. So a small helper process reads its stderr: `python -m train.native_errors INDEX`
passes lines through, and replaces such a stack by one line.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

EARLIER = ("Polled an error from coordination service", "Failed to retrieve preemption notice")  # precede FATAL
FATAL = "JAX distributed service detected fatal errors"  # its last line before the stack
STATUS = "absl::Status: "  # precedes the reason
OURS = re.compile("error: |warning: ")  # the beginning of our own lines
ENDED = "another process of this run ended"


def attach(index: int) -> None:
    """Start the helper process, and send the stderr of this process (number `index` of the run) to it."""
    checkout = [str(Path(__file__).parent.parent)] if __package__ == "train" else []  # the wheel's package is installed
    path = os.pathsep.join([*checkout, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", f"{__package__}.native_errors", str(index)]
    helper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=environment)
    assert helper.stdin is not None
    sys.stderr.flush()
    os.dup2(helper.stdin.fileno(), 2)
    helper.stdin.close()


def lost(index: int, reason: str) -> str:
    """One line for a process that lost another process of its run, with what to do."""
    return (
        f"process {index}: {ENDED} ({reason}); start all processes again with the same command "
        "to resume from the last checkpoint"
    )


def main(index: int) -> None:
    """Pass lines from stdin to stderr until stdin ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # exits when the watched process does
    sys.stdin.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file name may contain any bytes
    told = False
    held: list[str] = []  # native lines from the first EARLIER line on; printed if no FATAL line follows
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
