"""Bounds on what one process may take: unbounded memory or time fails a check instead of the machine."""

import contextlib
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


class TooLong(BaseException):
    """A time limit is over; no reader takes it for a fault of its file."""


def limit_memory(extra: int) -> None:
    """At most so many bytes more than this process has now; on Linux, which alone tells how many."""
    if STATUS.exists():
        held = int(STATUS.read_text().split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + extra, resource.RLIM_INFINITY))


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """
    Raises:
        TooLong: the time is over.
    """

    def stop(*_: Any) -> None:
        raise TooLong(f"over {seconds} s")

    start = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
        if time.monotonic() - start > seconds:  # whoever caught the signal's exception
            raise TooLong(f"over {seconds} s")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
