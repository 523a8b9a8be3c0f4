"""Bars on a terminal, lines in a log, and how much of the files is read."""

import bz2
import gzip
import io
import json
import lzma
import re

import pytest
from rich.console import Console
from test_commands import write_config

from bertgpt.data.text import files, store
from bertgpt.data.text.documents import read_documents
from bertgpt.data.text.text_source import TextSource
from train import progress, reports
from train.__main__ import main
from train.progress import Bar, counted


class Clock:
    """A clock that only moves when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(progress.time, "monotonic", found)
    return found


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def test_a_log_gets_a_line_from_time_to_time(clock):
    log = console(terminal=False)
    with Bar("training", 2000, "steps", start=100, to=log) as bar:
        for step in range(101, 301):
            clock.now += 0.5
            bar.update(step, "loss 6.1" if step % 50 == 0 else None)
    lines = log.file.getvalue().splitlines()
    assert len(lines) == 5  # of 100 s
    assert lines[0] == "training  140/2,000 steps  2.0 steps/s  0:15:30 left"
    assert lines[-1] == "training  300/2,000 steps  2.0 steps/s  0:14:10 left  loss 6.1"


def test_only_the_first_process_shows_anything(clock, monkeypatch):
    monkeypatch.setattr(progress.hosts, "is_first", lambda: False)
    for terminal in (False, True):
        log = console(terminal)
        with Bar("training", 10, "steps", to=log) as bar:
            clock.now += 100
            bar.advance()
        assert log.file.getvalue() == ""


def test_short_work_leaves_no_line_and_hidden_bars_nothing(clock):
    log = console(terminal=False)
    with Bar("evaluating", 10, "examples", to=log) as bar:
        list(bar.over(range(10)))
    with Bar("evaluating", 10, "examples", to=log, shown=False) as bar:
        clock.now += 100
        bar.advance()
    assert log.file.getvalue() == ""


@pytest.mark.parametrize(
    ("total", "unit", "done", "seconds", "expected"),
    [
        (100 << 20, "bytes", 10 << 20, 50, "reading  10/100 MiB  0.2 MiB/s  0:07:30 left"),
        (5000, "rows", 1000, 4, "reading  1,000/5,000 rows  250 rows/s  0:00:16 left"),
        (5000, "rows", 5000, 4, "reading  5,000/5,000 rows  1,250 rows/s"),
        (None, "texts", 1000, 4, "reading  1,000 texts  250 texts/s"),
        (100_000, "steps", 100, 400, "reading  100/100,000 steps  4 s/step  4 days, 15:00:00 left"),
        (10, "steps", 0, 60, "reading  0/10 steps"),
    ],
)
def test_amounts_rates_and_times_are_readable(total, unit, done, seconds, expected, clock):
    with Bar("reading", total, unit, to=console(terminal=False)) as bar:
        bar.update(0)
        clock.now += seconds
        bar.update(done)
        assert bar.line() == expected


def test_lines_go_above_the_bars_of_a_terminal(clock, monkeypatch):
    screen = console(terminal=True)
    monkeypatch.setattr(reports, "console", screen)
    monkeypatch.setattr(reports, "errors", console(terminal=True))
    with Bar("training", 40, "steps") as outer:
        clock.now += 1
        outer.update(3, "loss 1.5")
        with Bar("evaluating", 8, "examples"):
            reports.say("step 3 held-out")
            reports.warn("careful")
            both = screen.file.getvalue()
        assert reports.above == [screen]
    assert reports.above == []
    assert reports.errors.file.getvalue() == ""
    assert both.index("step 3 held-out") < both.index("warning: careful") < both.rindex("3/40 steps  loss 1.5")
    assert both.rindex("3/40 steps") < both.rindex("evaluating")
    assert screen.file.getvalue().rindex("\x1b[?25h") > screen.file.getvalue().index("\x1b[?25l")


def test_the_cursor_stays_visible_for_a_process_that_is_killed():
    screen = console(terminal=True)
    with Bar("training", 40, "steps", to=screen):
        shown = screen.file.getvalue()
        assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_results_are_counted_only_if_they_are_shown(monkeypatch):
    asked = []
    monkeypatch.setattr(reports, "errors", console(terminal=False))
    for shown in (False, True):
        assert list(counted("abc", "scoring", "texts", lambda: asked.append(1), shown)) == ["a", "b", "c"]
    assert asked == [1]


def test_results_in_a_file_do_not_go_to_the_terminal_of_their_bar(monkeypatch, capsys):
    monkeypatch.setattr(reports, "errors", console(terminal=True))
    for result in counted("abc", "scoring", "texts", lambda: 3):
        print(result)
    assert capsys.readouterr().out == "a\nb\nc\n"
    assert "scoring" in reports.errors.file.getvalue()


def test_a_run_tells_of_its_tokenizer_store_steps_and_evaluations(corpus_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0)
    assert main(["pretrain", str(write_config(tmp_path, "run", corpus_file))]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    told = {line[0]: line[1:] for line in lines if len(line) > 1}  # the last line of each
    size = corpus_file.stat().st_size >> 20
    for doing in ("tokenizer: counting characters", "tokenizer: counting words", "tokenizing train", "tokenizing eval"):
        assert told[doing][0] == f"{size}/{size} MiB"
    assert told["evaluating"][0] == "20/20 examples"
    assert told["training"][0] == "4/4 steps"
    assert re.fullmatch(r"loss \d\.\d{3}", told["training"][-2])
    assert [line[1] for line in lines if line[0] == "evaluating"] == [f"{n}/20 examples" for n in (8, 16, 20)] * 2


PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", ["txt", "jsonl", "json"])
def test_what_is_read_adds_up_to_the_size_of_the_file(kind, packing, tmp_path):
    texts = [f"text {number} " * 50 for number in range(2000)]
    whole = {
        "txt": "\n\n".join(texts),
        "jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts),
        "json": json.dumps(texts),
    }[kind]
    path = tmp_path / f"a.{kind}{packing}"
    path.write_bytes(PACKERS[packing](whole.encode()))
    sizes: list[float] = []
    found = list(read_documents([path], read=sizes.append))
    assert found == list(read_documents([path]))
    assert sum(sizes) == pytest.approx(path.stat().st_size)
    assert packing or len(sizes) > 5  # not all at once


def test_what_is_read_of_parquet_adds_up(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, sizes = tmp_path / "a.parquet", []
    pq.write_table(pa.table({"text": ["one", "two"] * 50}), path)
    list(read_documents([path], read=sizes.append))
    assert sum(sizes) == pytest.approx(path.stat().st_size)


def test_a_store_tells_what_is_read_for_each_split(corpus_file, wordpiece, tmp_path):
    sizes: dict[str, float] = {}

    def add(split: str, size: float) -> None:
        sizes[split] = sizes.get(split, 0) + size

    source = TextSource(str(corpus_file), eval_fraction=0.1)
    store.prepare(tmp_path / "store", source, wordpiece, {}, progress=add)
    assert sizes == dict.fromkeys(("train", "eval"), corpus_file.stat().st_size)
    (path,) = source.files_of("eval", source.files())
    assert files.stamp(path)[0] == sizes["eval"]
