"""Monitors of a run: signals, a watchdog for stalls, and a profiler for chosen steps."""

import faulthandler
import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from . import hosts
from .config import parse_steps

CALLS = 4  # that the line of a stall names


class Stop:
    """Records SIGTERM and Ctrl-C, so the loop can save and exit.

    In a run of several processes all exit at the same step, whichever of them received the signal. JAX's preemption
    service handles SIGTERM, and Ctrl-C sends SIGTERM.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._calls = itertools.count()

    def __enter__(self) -> "Stop":
        handlers: dict[signal.Signals, Callable[[int, object], None]]
        if hosts.several():
            handlers = {signal.SIGINT: self._pass_on}
        else:
            handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._note)
        self.before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether to stop now; the same in every process, so every process must call it equally often."""
        if self.received is None and hosts.several() and self._all_agreed():
            self.received = signal.SIGTERM
        return self.received is not None

    def _all_agreed(self) -> bool:
        return multihost_utils.reached_preemption_sync_point(next(self._calls))

    def _note(self, number: int, _: object) -> None:
        if self.received is None:
            self._answer(signal.Signals(number).name)
        self.received = signal.Signals(number)

    def _pass_on(self, number: int, _: object) -> None:
        self._answer("SIGINT")
        os.kill(os.getpid(), signal.SIGTERM)

    def _answer(self, name: str) -> None:
        """Say at once what happens, since a step may take long; a second Ctrl-C ends the process without a checkpoint.

        Written without the console, which may be in use where the signal interrupts.
        """
        text = f"{name}: stopping after this step, with a checkpoint; Ctrl-C now ends the run at once, without one"
        os.write(2, f"\n{text}\n".encode())
        before = self.before.get(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGINT, before if callable(before) else signal.default_int_handler)


class Watchdog:
    """Logs when an activity of the loop takes longer than `limit` seconds, and again whenever that time has doubled.

    The line names the innermost calls of the loop's thread, which differ between processes if one holds up the others.
    The stacks of all threads are appended to a file, because they take hundreds of lines.
    """

    def __init__(self, limit: float, file: Path, tell: Callable[[str], None]) -> None:
        """`limit` 0: never; `file` is for this process alone; `tell` logs a line."""
        self.limit, self.file, self.tell = limit, file, tell
        self.doing, self.since, self.told = "", time.monotonic(), 0.0
        self._loop = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self.limit:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def at(self, doing: str) -> None:
        """The loop begins an activity; the one before has ended."""
        self.doing, self.since, self.told = doing, time.monotonic(), 0.0

    def _watch(self) -> None:
        while not self._ended.wait(self.limit / 10):
            doing, seconds = self.doing, time.monotonic() - self.since
            if doing and seconds > max(self.limit, 2 * self.told):
                self.told = seconds
                self._report(f"stalled: {doing} has taken {seconds:,.0f} s")

    def _report(self, text: str) -> None:
        """Log before the file is written: a file system that hangs may be why the loop does."""
        calls = " < ".join(itertools.islice(innermost_calls(self._loop), CALLS))
        self.tell(f"{text}, in {calls}; stacks of all threads: {self.file}")
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                faulthandler.dump_traceback(file)
        except OSError as error:
            self.tell(f"the stacks could not be written: {error}")


def innermost_calls(thread: int) -> Iterator[str]:
    """Yield where a thread is, as `file:line function`, and then where each of its callers is; reads no files."""
    for frame, line in traceback.walk_stack(sys._current_frames()[thread]):
        yield f"{os.path.basename(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}"


class Profile:
    """A profiler trace of the steps from `first` to `last`, for TensorBoard or Perfetto.

    Of these steps, only those that this process makes are traced. Each process writes to its own folder.
    """

    def __init__(self, steps: str | None, folder: Path) -> None:
        self.folder = folder / f"process_{jax.process_index()}" if hosts.several() else folder
        self.first, self.last = parse_steps(steps) if steps else (0, -1)
        self.is_tracing = False

    def before(self, step: int) -> None:
        """Start the trace at the first of the steps."""
        if self.first <= step <= self.last and not self.is_tracing:
            jax.profiler.start_trace(str(self.folder))
            self.is_tracing = True

    def after(self, step: int, outcome: object) -> bool:
        """Stop the trace when the last step has been computed; return whether it did."""
        if step < self.last or not self.is_tracing:
            return False
        jax.block_until_ready(outcome)
        self.end()
        return True

    def end(self) -> None:
        """Stop the trace if it is running."""
        if self.is_tracing:
            jax.profiler.stop_trace()
            self.is_tracing = False
