"""Ctrl-C outside the steps of a run: the command ends, whatever a library makes of the exception."""

import os
import signal
import threading
from types import FrameType

GRACE = 5.0  # seconds that the command has to clean up
RECEIVED = threading.Event()
CODE = 128 + signal.SIGINT


def install() -> None:
    """Handle Ctrl-C by `end`, unless the process was started with Ctrl-C ignored, as in the background of a script."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def end(number: int, frame: FrameType | None) -> None:
    """Say so, raise KeyboardInterrupt, and end the process after `GRACE` seconds at the latest.

    A callback of a library may swallow the exception, and threads that it reaches print tracebacks or take it for
    damaged files. So what follows on stderr is dropped.
    """
    if not RECEIVED.is_set():
        os.write(2, b"\nstopped by Ctrl-C\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        RECEIVED.set()
        timer = threading.Timer(GRACE, os._exit, (CODE,))
        timer.daemon = True
        timer.start()
    raise KeyboardInterrupt
