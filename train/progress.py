"""The progress of long work: a bar on a terminal, a line from time to time in a log."""

import datetime
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from . import hosts, reports

INTERVAL = 20  # seconds from one line of a log to the next
REDRAWN = 0.2  # seconds from one state of a bar to the next
MIB = 2**20

Item = TypeVar("Item")
_shown: dict[Console, Progress] = {}  # the bars on each console: of an evaluation below that of its run


class Bar:
    """How much of some work is done, how fast it goes and how long the rest takes.

    Work that ends within `INTERVAL` leaves no line in a log. In a run of several processes only the first one shows
    anything.
    """

    def __init__(
        self,
        doing: str,
        total: float | None,
        unit: str,
        start: float = 0,
        to: Console | None = None,
        shown: bool = True,
    ) -> None:
        """
        Args:
            doing: what is done, such as "training".
            total: the amount of work; None: unknown.
            unit: its unit in the plural, such as "steps"; "bytes" are shown as MiB.
            start: what was done before.
            to: None: stdout.
            shown: False: nothing is shown.
        """
        self.doing, self.total, self.unit, self.done = doing, total or None, unit, start
        self.console = to or reports.console
        self.is_shown = shown and hosts.is_first()
        self.is_bar = self.is_shown and self.console.is_terminal and not self.console.is_dumb_terminal
        self.every = REDRAWN if self.is_bar else INTERVAL
        self.detail, self.told = "", False
        self.first: tuple[float, float] | None = None  # what was done, and when, at the first sign of progress

    def __enter__(self) -> "Bar":
        self.due = time.monotonic() + self.every
        if self.is_bar:
            self.task = _add(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_bar:
            _remove(self.console, self.task)

    def advance(self, amount: float = 1) -> None:
        """Some more is done."""
        self.update(self.done + amount)

    def update(self, done: float, detail: str | None = None) -> None:
        """So much is done; `detail` is shown from now on, after the time left."""
        now = time.monotonic()
        self.done, self.detail = done, self.detail if detail is None else detail
        self.first = self.first or (done, now)
        if now < self.due or not self.is_shown:
            return
        self.due = now + self.every
        if self.is_bar:
            _shown[self.console].update(self.task, completed=done, text=self._figures(now))
        else:
            self.told = True
            self.console.print(self.line(), markup=False)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, each of which is done when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    def line(self) -> str:
        """All that is known now, as a line of a log."""
        return f"{self.doing}  {self._figures(time.monotonic())}"

    def _figures(self, now: float) -> str:
        if self.total is None and self.first is None:
            return ""  # nothing is known yet
        scale, unit = (MIB, "MiB") if self.unit == "bytes" else (1, self.unit)
        amounts = [f"{amount / scale:,.0f}" for amount in (self.done, self.total) if amount is not None]
        parts = [f"{'/'.join(amounts)} {unit}"]
        before, since = self.first or (self.done, now)
        if self.done > before and now > since:
            rate = (self.done - before) / (now - since)
            parts.append(_rate(rate / scale, unit))
            if self.total is not None and self.done < self.total:
                parts.append(f"{datetime.timedelta(seconds=round((self.total - self.done) / rate))} left")
        return "  ".join([*parts, *([self.detail] if self.detail else [])])


def _rate(rate: float, unit: str) -> str:
    if rate < 1 and unit != "MiB":
        return f"{1 / rate:,.3g} s/{unit.removesuffix('s')}"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.1f} {unit}/s"


def _add(bar: Bar) -> TaskID:
    """Show a bar, below those that are on its console."""
    if bar.console not in _shown:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
        )
        _shown[bar.console] = Progress(
            *columns,
            console=bar.console,
            transient=True,
            refresh_per_second=5,
            redirect_stdout=sys.stdout.isatty(),  # results in a file or pipe must not go to the terminal
            redirect_stderr=sys.stderr.isatty(),
        )
        _shown[bar.console].start()
        bar.console.show_cursor(True)  # a process that is killed could not show it again
        reports.above.append(bar.console)
    text = bar._figures(time.monotonic())
    return _shown[bar.console].add_task(bar.doing, total=bar.total, completed=int(bar.done), text=text)


def _remove(console: Console, task: TaskID) -> None:
    _shown[console].remove_task(task)
    if not _shown[console].tasks:
        _shown.pop(console).stop()
        reports.above.remove(console)


def counted(
    items: Iterable[Item], doing: str, unit: str, total: Callable[[], int | None], shown: bool = True
) -> Iterator[Item]:
    """Yield the items, with their progress on stderr, because stdout has the results.

    Args:
        items: the results of the work.
        doing, unit: as of `Bar`.
        total: the number of items; None if it is unknown. It is only called if something is shown.
        shown: False: nothing is shown.
    """
    with Bar(doing, total() if shown else None, unit, to=reports.errors, shown=shown) as bar:
        yield from bar.over(items)
