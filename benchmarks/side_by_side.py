"""Sides that do the same work, timed in turn, each in a process of its own, so that its peak memory is its own."""

import contextlib
import dataclasses
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.errors import InputError
from train.flops import peak

SECONDS = 1.0  # that a timing lasts at least
OUT = Path("runs/benchmarks")
Rates = dict[str, float]
Make = tuple[Any, ...]  # a function at the top of a module, and its arguments


@dataclasses.dataclass
class Work:
    """What a side does again and again in its process.

    Attributes:
        step: starts unit number n.
        wait: until all that was started is done.
        amounts: of every unit, how much it is by name; a timing does all of them, once or more often.
        about: facts to tell; what becomes known on the way may be added.
        peak_bytes: the device's peak; None where the process's own is to be told.
    """

    step: Callable[[int], None]
    wait: Callable[[], None]
    amounts: list[Rates]
    about: dict[str, Any]
    peak_bytes: Callable[[], int | None] = lambda: None


class Range(NamedTuple):
    """Of several timings."""

    median: float
    low: float
    high: float


def range_of(values: Iterable[float]) -> Range:
    """Median and range."""
    values = sorted(values)
    return Range(statistics.median(values), values[0], values[-1])


class Timer:
    """A side in this process, warmed up."""

    def __init__(self, make: Make) -> None:
        function, *arguments = make
        self.work: Work = function(*arguments)
        units = len(self.work.amounts)
        first = timed(self.work, range(units))
        warm = timed(self.work, range(units))
        self.compile_seconds = max(0.0, first - warm)
        self.numbers = [*range(units)] * math.ceil(SECONDS / warm)

    def ask(self, what: str) -> Any:
        """`time`: the rates of all units, as often as last SECONDS, after one that is not counted: the first after an
        idle time is slower; `about`: the facts."""
        if what == "time":
            timed(self.work, [0])
            return rates(self.work, self.numbers)
        device = self.work.peak_bytes()
        pages = {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES") or "not set"}
        peak = {"peak_bytes": device or peak_resident(), "peak_of": "device" if device else "process"}
        return self.work.about | pages | peak

    def end(self) -> None:
        """Nothing is left behind."""


class Side:
    """A side in a process of its own; it is warmed up when this returns, and idle until it is asked."""

    def __init__(self, make: Make) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make), daemon=True)
        self.process.start()
        theirs.close()
        self.compile_seconds = self.answer()

    def ask(self, what: str) -> Any:
        """As `Timer.ask`."""
        with contextlib.suppress(BrokenPipeError):  # the answer tells
            self.pipe.send(what)
        return self.answer()

    def answer(self) -> Any:
        """What the process sends.

        Raises:
            Exception: that was raised there.
        """
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            raise RuntimeError(f"a side's process ended with {self.process.exitcode}; out of memory?") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """Lets the process go."""
        self.pipe.close()
        self.process.join(5)
        self.process.terminate()


def serve(pipe: Any, make: Make) -> None:
    """What runs in a side's process."""
    try:
        timer = Timer(make)
        pipe.send(timer.compile_seconds)
        while True:
            pipe.send(timer.ask(pipe.recv()))
    except EOFError:  # nobody asks any more
        return
    except InputError as error:
        pipe.send(error)
    except Exception:
        pipe.send(RuntimeError(traceback.format_exc()))


def timed(work: Work, numbers: Iterable[int]) -> float:
    """Seconds of some units, until all is done."""
    began = time.perf_counter()
    for number in numbers:
        work.step(number)
    work.wait()
    return time.perf_counter() - began


def rates(work: Work, numbers: list[int]) -> Rates:
    """Seconds a unit, and every amount a second."""
    seconds = timed(work, numbers)
    totals = {name: sum(work.amounts[number][name] for number in numbers) for name in work.amounts[0]}
    return {"seconds": seconds / len(numbers)} | {name: total / seconds for name, total in totals.items()}


def measure(makes: dict[str, Make], repeats: int, apart: bool = True) -> dict[str, dict[str, Any]]:
    """All sides made and warmed up one after the other, then timed in turn.

    Args:
        makes: the sides by name.
        repeats: timings of each.
        apart: each in a process of its own; False for several sides in JAX, of which only one process can have a TPU.

    Returns:
        Of each side: `about`, `compile_seconds`, and `timings`, a list of rates.
    """
    sides: dict[str, Side | Timer] = {}
    if apart and len(makes) > 1:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of a GPU's memory
    try:
        for name, make in makes.items():
            sides[name] = Side(make) if apart else Timer(make)
        turns = [{name: side.ask("time") for name, side in sides.items()} for _ in range(repeats)]
        return {
            name: {
                "about": side.ask("about"),
                "compile_seconds": side.compile_seconds,
                "timings": [turn[name] for turn in turns],
            }
            for name, side in sides.items()
        }
    finally:
        for side in sides.values():
            side.end()


def of(result: dict[str, Any], name: str) -> Range:
    """A rate over a side's timings."""
    return range_of(timing[name] for timing in result["timings"])


def ratio(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> Range:
    """Ours over theirs, from each pair of neighbouring timings."""
    pairs = zip(ours["timings"], theirs["timings"], strict=True)
    return range_of(mine[name] / other[name] for mine, other in pairs)


def show(value: Range, digits: int = 0) -> str:
    """Median, and the range in brackets."""
    return f"{value.median:,.{digits}f} ({value.low:,.{digits}f} to {value.high:,.{digits}f})"


def utilisation(result: dict[str, Any]) -> Range | None:
    """Model FLOPs utilisation, of the device's bfloat16 peak; None where that is not known."""
    most = peak(result["about"]["device"])
    if most is None:
        return None
    return range_of(timing["flops"] / most / result["about"]["devices"] for timing in result["timings"])


def peak_resident() -> int:
    """Bytes of memory that this process held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would also count what stood here before this program
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def processor() -> str:
    """The CPU's name and the cores that this process may use."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {cores()} cores"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jax_about(devices: int) -> dict[str, Any]:
    """The device that JAX works on, and versions."""
    import jax

    device = jax.devices()[0]
    name = processor() if device.platform == "cpu" else device.device_kind
    return {"device": name, "devices": devices, "jax": jax.__version__}


def jax_peak_bytes() -> int | None:
    """What a device held at most, where JAX can tell."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def torch_about() -> dict[str, Any]:
    """The device that torch works on, and versions; torch is set to use all cores."""
    import torch

    torch.set_num_threads(cores())
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # TF32, as JAX has it on a GPU
    name = torch.cuda.get_device_name() if on_gpu else processor()
    versions = {package: metadata.version(package) for package in ("torch", "transformers")}
    return {"device": name, "devices": 1} | versions


def torch_wait() -> None:
    """Until a GPU has done what was started; a CPU has."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def torch_peak_bytes() -> int | None:
    """What a GPU held at most."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def need_transformers() -> None:
    """
    Raises:
        InputError: torch or transformers is not installed.
    """
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--against transformers needs {name}: pip install 'bertgpt[parity]'")


def memory(result: dict[str, Any]) -> str:
    """A side's peak, and whether it is the device's or the whole process's."""
    return f"{result['about']['peak_bytes'] / 2**30:.2f} GiB ({result['about']['peak_of']})"


def describe(results: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Where and with what each side ran."""
    for name, result in results.items():
        facts = {key: value for key, value in result["about"].items() if not key.startswith("peak_")}
        yield f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items())


def write(
    folder: Path, name: str, report: dict[str, Any], bars: dict[str, Range], title: str, unit: str = "tokens a second"
) -> None:
    """NAME.json with everything, and NAME.png: medians as bars, ranges as lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.8 + 0.5 * len(bars)), layout="constrained")
    low = [value.median - value.low for value in bars.values()]
    high = [value.high - value.median for value in bars.values()]
    axis.barh(list(bars), [value.median for value in bars.values()], xerr=[low, high], capsize=3)
    axis.invert_yaxis()
    axis.set(title=title, xlabel=unit)
    figure.savefig(folder / f"{name}.png", dpi=120)
    plt.close(figure)
    print(f"written: {folder / name}.json and .png")


def leave(main: Callable[[], None]) -> int:
    """Runs a command; returns 0, or 2 for a user's mistake, told in one line."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
