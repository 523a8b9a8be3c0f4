"""Trackers: what they get, once each, and that none of them ends a run."""

import csv
import json
import re
import shutil
import sys
import threading
import types
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from test_commands import fails, write_config

import bertgpt
from train import tracking
from train.__main__ import main
from train.reports import TIMINGS, Metrics
from train.sections import RunConfig
from train.tracking import Tracker

ROOT = Path(__file__).parent.parent


def settings(folder: Path, tracker: str | None) -> RunConfig:
    config = RunConfig(out=str(folder))
    config.train.tracker = tracker
    return config


def session(config: RunConfig, start: int, rows: list[tuple[int, str, float]], owed: bool = False) -> None:
    """What a run does that starts from a step and makes some rows."""
    with (
        Metrics(Path(config.out), start, owed) as metrics,
        Tracker(config, start, metrics.last, metrics.dropped) as tracker,
    ):
        for step, split, loss in rows:
            metrics.write(step, split, {"loss": loss})
            tracker.write(step, split, {"loss": loss})


@pytest.fixture
def mine(monkeypatch):
    """A function of the user's as `mine:tracker`; `mine.seen` is what it got."""
    module = types.ModuleType("mine")
    module.seen = []

    def tracker(config, resumed):
        module.seen.append((config["out"], resumed))
        track = lambda *row: module.seen.append(row)  # noqa: E731
        track.close = lambda: module.seen.append("closed")
        return track

    module.tracker = tracker
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


KILLED = [(2, "train", 9.0), (4, "train", 8.0), (4, "eval", 7.0), (6, "train", 6.0)]
RESUMED = [(6, "train", 6.0), (8, "train", 5.0)]


def test_a_function_gets_each_row_once_over_a_kill(mine, tmp_path):
    config = settings(tmp_path, "mine:tracker")
    session(config, 0, KILLED)
    session(config, 4, RESUMED)
    first = [(tmp_path.as_posix(), False), *((step, split, {"loss": loss}) for step, split, loss in KILLED), "closed"]
    assert mine.seen == [*first, (tmp_path.as_posix(), True), (8, "train", {"loss": 5.0}), "closed"]


def test_an_interrupted_evaluation_is_sent_once(mine, tmp_path):
    config = settings(tmp_path, "mine:tracker")
    session(config, 0, KILLED[:2])
    session(config, 4, KILLED[2:], owed=True)
    session(config, 4, [*KILLED[2:], (8, "train", 5.0)], owed=True)  # killed before another checkpoint
    sent = [row[:2] for row in mine.seen if len(row) == 3]
    assert sent == [(2, "train"), (4, "train"), (4, "eval"), (6, "train"), (8, "train")]


def test_a_run_that_begins_again_and_another_tracker_get_all_rows(mine, tmp_path):
    config = settings(tmp_path, "mine:tracker")
    session(config, 0, KILLED)
    session(config, 0, KILLED)
    assert [row for row in mine.seen if len(row) == 2][1] == (str(tmp_path), False)
    assert len([row for row in mine.seen if len(row) == 3]) == 2 * len(KILLED)
    mine.other, mine.seen[:] = mine.tracker, []
    session(settings(tmp_path, "mine:other"), 4, RESUMED)
    assert [row[0] for row in mine.seen if len(row) == 3] == [6, 8]


def test_only_the_first_process_tracks(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.hosts, "is_first", lambda: False)
    session(settings(tmp_path, "mine:tracker"), 0, KILLED)
    assert (mine.seen, list(tmp_path.iterdir())) == ([], [])


def shown_points(folder: Path) -> list[tuple[str, int, float]]:
    """What TensorBoard shows of event files: a start hides all earlier points from its step on."""
    points: list[tuple[str, int, float]] = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:  # length [8], its checksum [4], an event, its checksum [4]
            size = int.from_bytes(content[:8], "little")
            event, content = Event.FromString(content[12 : 12 + size]), content[16 + size :]
            if event.HasField("session_log"):
                points = [point for point in points if point[1] < event.step]
            points += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return points


@pytest.mark.parametrize("tracker", ["tensorboard", None])
def test_tensorboard_shows_each_point_once_over_a_kill(tracker, tmp_path):
    config = settings(tmp_path, tracker)
    session(config, 0, [(2, "train", 1.0)])  # killed before its first checkpoint
    session(config, 0, KILLED)
    session(config, 4, RESUMED)
    expected = [(f"{split}/loss", step, loss) for step, split, loss in [*KILLED[:3], *RESUMED]]
    assert shown_points(tmp_path / "tensorboard") == expected
    session(config, 4, [(4, "eval", 7.0), (6, "train", 6.0)], owed=True)
    assert [point[:2] for point in shown_points(tmp_path / "tensorboard")] == [point[:2] for point in expected[:4]]


def test_none_and_a_missing_package_write_no_tensorboard(tmp_path, monkeypatch):
    session(settings(tmp_path, "none"), 0, KILLED)
    monkeypatch.setitem(tracking.PACKAGES, "tensorboard", "no_such_package")
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    session(settings(tmp_path, None), 0, KILLED)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def warning(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("error", [OSError(28, "No space left\non device"), SystemExit(3), KeyboardInterrupt()])
def test_a_tracker_that_cannot_start_is_one_warning(error, mine, tmp_path, capsys):
    def tracker(config, resumed):
        raise error

    mine.tracker = tracker
    session(settings(tmp_path, "mine:tracker"), 0, KILLED)
    line = warning(capsys)
    assert re.fullmatch(rf"warning: tracker mine:tracker: cannot start: {type(error).__name__}.*without it", line)


def failing(mine, *steps: int) -> list[int]:
    """The tracker fails at some steps; the steps of all rows that it is called with."""
    called: list[int] = []

    def track(step, split, figures):
        called.append(step)
        if step in steps:
            raise ConnectionError("no network")

    mine.tracker = lambda config, resumed: track
    return called


def test_a_tracker_is_dropped_after_three_failures_in_a_row(mine, tmp_path, capsys):
    called = failing(mine, 1, 2, 3)
    session(settings(tmp_path, "mine:tracker"), 0, [(step, "train", 1.0) for step in range(1, 6)])
    assert called == [1, 2, 3]
    text = "tracker mine:tracker: 3 rows in a row failed: ConnectionError: no network; the run continues without it"
    assert warning(capsys) == f"warning: {text}"


def test_a_tracker_that_recovers_is_kept_and_told_at_the_end(mine, tmp_path, capsys):
    called = failing(mine, 1, 2, 4)
    session(settings(tmp_path, "mine:tracker"), 0, [(step, "train", 1.0) for step in range(1, 6)])
    assert called == [1, 2, 3, 4, 5]
    assert warning(capsys) == "warning: tracker mine:tracker: 3 rows are lost: ConnectionError: no network"


def test_a_tracker_that_fails_at_the_end_or_never_ends_is_one_warning(mine, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE", 0.05)
    released = threading.Event()
    for close, expected in ((lambda: 1 // 0, "cannot finish: ZeroDivisionError"), (released.wait, "has not finished")):
        track = lambda *row: None  # noqa: E731
        track.close = close
        mine.tracker = lambda config, resumed, track=track: track
        session(settings(tmp_path, "mine:tracker"), 0, KILLED)
        assert expected in warning(capsys)
    released.set()


def test_a_full_disk_does_not_end_a_run(tmp_path, capsys):
    (tmp_path / "tensorboard").mkdir()
    config = settings(tmp_path, "tensorboard")
    tracker = Tracker(config, 0, [], set())
    make = tracker.make

    def full():
        made = make()
        made.file.close()
        made.file._writer = open("/dev/full", "wb")  # noqa: SIM115
        return made

    tracker.make = full
    with tracker:
        for step in range(1, 6):
            tracker.write(step, "train", {"loss": 1.0})
    assert "3 rows in a row failed: OSError: [Errno 28] No space left on device" in warning(capsys)


@pytest.mark.parametrize(
    ("tracker", "expected"),
    [
        ("wandb", "train.tracker is wandb, but it is not installed: pip install 'bertgpt[wandb]'"),
        ("tensorboard", "train.tracker is tensorboard, but it is not installed: pip install 'bertgpt[tensorboard]'"),
        ("wanbd", "train.tracker is 'wanbd'; it must be none, tensorboard, wandb or module:function"),
        ("mine:tracker:x", "it must be none, tensorboard, wandb or module:function"),
        ("no_such_module:tracker", "no_such_module cannot be imported: ModuleNotFoundError: No module named"),
        ("broken:tracker", "broken cannot be imported: SyntaxError"),
        ("mine:no_such_function", "mine has no function no_such_function"),
    ],
)
def test_a_tracker_that_is_not_there_is_told_before_any_work(
    tracker, expected, mine, corpus_file, tmp_path, monkeypatch, capsys
):
    find_spec = tracking.importlib.util.find_spec
    absent = ("wandb", "tensorboardX")
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None if name in absent else find_spec(name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("def tracker(")
    path = write_config(tmp_path, "out", corpus_file, train={"tracker": tracker})
    for command in ("pretrain", "finetune"):
        task = ["task.kind=classification"] if command == "finetune" else []
        assert expected in fails(capsys, command, path, *task)
    with pytest.raises(bertgpt.InputError, match=re.escape(expected)):
        tracking.check(settings(tmp_path, tracker))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out_store").exists()


def test_the_example_of_the_page_runs_and_a_killed_run_appends_nothing_twice(corpus_file, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_trackers.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as of the installed command
    path = write_config(tmp_path, "run", corpus_file, train={"tracker": "my_trackers:csv_tracker"})
    for _ in range(2):
        assert main(["pretrain", str(path), "checkpoint.keep=2"]) == 0
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")  # as if killed before it
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [
        [str(row["step"]), row["split"], name, str(value)]
        for row in rows
        for name, value in row.items()
        if name not in ("step", "split")
    ]
    with open(tmp_path / "run" / "figures.csv", newline="") as file:
        sent = list(csv.reader(file))
    assert [row[:3] for row in sent] == [row[:3] for row in expected]
    same = [row for row in sent if row[2] not in TIMINGS]
    assert same == [row for row in expected if row[2] not in TIMINGS]
    assert {row[0] for row in sent} == {"2", "4"}


def sent_to_wandb(folder: Path) -> list[tuple[str, int]]:
    """(figure, step) of each loss in the files of an offline run, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    sent = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, at, record = path.read_bytes(), 7, b""  # LevelDB's log format after 7 bytes
        while at < len(content):
            if at % 32768 > 32768 - 7:  # no record begins in the last bytes of a block
                at += -at % 32768
            size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
            record += content[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # the whole record, or its last part
                items = Record.FromString(record).history.item
                values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
                sent += [(name, values["step"]) for name in values if name.endswith("/loss")]
                record = b""
    return sent


@pytest.fixture
def wandb():
    """wandb reads its environment once, so its process is stopped after each test."""
    module = pytest.importorskip("wandb")
    yield module
    module.teardown()


def test_the_same_wandb_run_continues_offline(wandb, corpus_file, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = write_config(tmp_path, "run", corpus_file, train={"tracker": "wandb"})
    assert main(["pretrain", str(path)]) == 0
    config, run = settings(tmp_path / "run", "wandb"), tmp_path / "run"
    session(config, 2, [(4, "train", 1.0), (4, "eval", 1.0), (6, "train", 1.0)])  # as if killed before checkpoint 4
    wandb.teardown()  # its process writes the files, also after the end of a run
    (identity,) = {folder.name.rpartition("-")[2] for folder in run.glob("wandb/offline-run-*")}
    assert json.loads((run / "tracking.json").read_text()) == {"tracker": "wandb", "id": identity}
    rows = [(2, "train"), (2, "eval"), (4, "train"), (4, "eval"), (6, "train")]
    assert sent_to_wandb(run) == [(f"{split}/loss", step) for step, split in rows]
    assert "warning: tracker" not in capfd.readouterr().err
    session(config, 0, [])
    assert json.loads((run / "tracking.json").read_text())["id"] != identity  # a run that begins again is a new one


def test_wandb_without_a_key_is_one_warning(wandb, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    session(settings(tmp_path, "wandb"), 0, [])
    assert "tracker wandb: cannot start: " in capsys.readouterr().err
