"""Trackers: TensorBoard, Weights & Biases or a function of the user's, which get each row of metrics.jsonl."""

import functools
import importlib
import importlib.util
import json
import os
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from bertgpt.errors import InputError
from bertgpt.json_files import read_json_object

from . import addresses, hosts
from . import config as configs
from .atomic_files import write_whole
from .reports import warn
from .sections import RunConfig

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # of each tracker that needs one
FAILURES = 3  # rows in a row that a tracker may fail to take before the run continues without it
PATIENCE = 30  # seconds that a tracker may take to finish when the run has ended
LOGIN = 60  # seconds that wandb may wait for its server, or for an answer to its question for a key
STATE = "tracking.json"  # in a run's folder: the run's tracker, and its run at wandb

Track = Callable[[int, str, dict[str, float]], Any]  # gets step, split and figures; may have a method `close`
Row = tuple[int, str, dict[str, float]]


def chosen(config: RunConfig) -> str:
    """The run's tracker: none, tensorboard, wandb or module:function."""
    if config.train.tracker is not None:
        return config.train.tracker
    return "tensorboard" if importlib.util.find_spec("tensorboardX") else "none"


def check(config: RunConfig) -> None:
    """Check that the tracker can be used, before any work. Imports the module of a module:function.

    Raises:
        InputError: its package is not installed, its function is not found, or it is not a tracker.
    """
    name = chosen(config)
    if name in PACKAGES:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise InputError(f"train.tracker is {name}, but it is not installed: pip install 'bertgpt[{name}]'")
    elif name != "none":
        _function(name)


def _function(name: str) -> Callable[[dict[str, Any], bool], Track]:
    """The function that a text such as my_module:my_function names.

    Raises:
        InputError: it is not found.
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise InputError(f"train.tracker is {name[:80]!r}; it must be none, tensorboard, wandb or module:function")
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # as of `python -m train`
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever the module raises
        raise InputError(f"train.tracker is {name}, but {module} cannot be imported: {_reason(error)}") from error
    if not callable(found):
        raise InputError(f"train.tracker is {name}, but {module} has no function {function}")
    return found


class Tracker:
    """Sends rows to the run's tracker, in a thread of its own: it can neither delay nor end the run.

    A tracker that cannot start, or cannot take `FAILURES` rows in a row, is dropped with one warning. In a run of
    several processes only the first one has a tracker.
    """

    def __init__(self, config: RunConfig, step: int, last: Iterable[Row], dropped: Collection[tuple[int, str]]) -> None:
        """
        Args:
            config: of the run.
            step: the step that the run resumes from; 0: a new run.
            last: the rows of this step.
            dropped: (step, split) of the later rows, which are made again. They were sent before.
        """
        self.name = chosen(config) if hosts.is_first() else "none"
        out = addresses.local(config.out)
        before = _read_state(out) if step else {}
        resumed = before.get("tracker") == self.name
        self.known = frozenset(dropped) if resumed and self.name != "tensorboard" else frozenset()
        makers: dict[str, Callable[[], Track]] = {
            "tensorboard": functools.partial(TensorBoard, out / "tensorboard", step, last),
            "wandb": functools.partial(Wandb, config, before.get("id") if resumed else None),
        }
        self.make = makers.get(self.name, lambda: _function(self.name)(configs.to_dict(config), step > 0))
        self.out = out
        self.rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True, name="tracker")

    def __enter__(self) -> "Tracker":
        if self.name == "wandb" and sys.stdin.isatty() and (reason := _login()):  # it asks, so not in the thread
            self._drop(f"cannot start: {reason}")
        if self.name != "none":
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.thread.ident:
            return
        self.rows.put(None)
        self.thread.join(PATIENCE)
        if self.thread.is_alive():
            warn(f"tracker {self.name}: has not finished {PATIENCE} s after the run; its last rows may be lost")

    def write(self, step: int, split: str, figures: dict[str, float]) -> None:
        """Send a row, unless it was sent before the run was resumed."""
        if self.name != "none" and (step, split) not in self.known:
            self.rows.put((step, split, dict(figures)))

    def _drop(self, problem: str) -> None:
        warn(f"tracker {self.name}: {problem}; the run continues without it")
        self.name = "none"

    def _work(self) -> None:
        try:
            track = self.make()
            write_whole(self.out / STATE, json.dumps({"tracker": self.name, "id": getattr(track, "id", None)}) + "\n")
        except BaseException as error:  # this thread has nothing else to do: a SystemExit ends no run either
            self._drop(f"cannot start: {_reason(error)}")
            return
        self._send(track)
        try:
            getattr(track, "close", lambda: None)()
        except BaseException as error:
            if self.name != "none":
                warn(f"tracker {self.name}: cannot finish: {_reason(error)}; its last rows may be lost")

    def _send(self, track: Track) -> None:
        """Send rows until the run ends or the tracker is dropped."""
        failures, lost, reason = 0, 0, ""
        while failures < FAILURES and (row := self.rows.get()) is not None:
            try:
                track(*row)
                failures = 0
            except BaseException as error:
                failures, lost, reason = failures + 1, lost + 1, _reason(error)
        if failures == FAILURES:
            self._drop(f"{FAILURES} rows in a row failed: {reason}")
        elif lost:
            warn(f"tracker {self.name}: {lost} rows are lost: {reason}")


def _reason(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _read_state(out: Path) -> dict[str, Any]:
    """The content of tracking.json; empty if it is missing or damaged."""
    try:
        return read_json_object(out / STATE)
    except (OSError, InputError):
        return {}


class TensorBoard:
    """Writes event files, which are complete on disk after each row.

    TensorBoard hides all points from the step on that a resumed run starts from. So the rows of this step are written
    again, and none is shown twice.
    """

    def __init__(self, folder: Path, step: int, last: Iterable[Row]) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter  # SummaryWriter writes in a thread, and hides its errors

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.file = RecordWriter(str(folder / name))
        self._write(0, file_version="brain.Event:2")
        self._write(step, session_log=SessionLog(status=SessionLog.START))
        for row in last:
            self(*row)

    def __call__(self, step: int, split: str, figures: dict[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in figures.items()]
        self._write(step, summary=Summary(value=values))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.file.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class Wandb:
    """A run at Weights & Biases, or in OUT/wandb if wandb is offline.

    Its axis is our step, not wandb's own, which cannot go back.
    """

    def __init__(self, config: RunConfig, identity: str | None) -> None:
        """`identity`: of the run to continue; None: a new one."""
        import wandb

        out = addresses.local(config.out)
        out.mkdir(parents=True, exist_ok=True)
        flush = "x_transaction_log_flush_interval"  # of newer versions; a killed run loses what is not on disk yet
        soon: Any = {flush: 1.0} if flush in wandb.Settings.model_fields else {}
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "bertgpt"),
            name=os.environ.get("WANDB_NAME", out.absolute().name),
            dir=str(out),
            id=identity,
            resume="allow",
            config=configs.to_dict(config),
            settings=wandb.Settings(console="off", init_timeout=LOGIN, finish_timeout=PATIENCE - 5, **soon),
        )
        self.id = self.run.id
        self.run.define_metric("*", step_metric="step")

    def __call__(self, step: int, split: str, figures: dict[str, float]) -> None:
        self.run.log({"step": step, **{f"{split}/{name}": value for name, value in figures.items()}})

    def close(self) -> None:
        self.run.finish()


def _login() -> str | None:
    """Let wandb ask for a key if it needs one and has a terminal; why it got none, or None."""
    try:
        import wandb

        if wandb.setup().settings.mode == "online":
            wandb.login(timeout=LOGIN)
    except BaseException as error:
        return _reason(error)
    return None
