"""Compare sides that do the same work, timed in turn, each in a separate process to measure its peak memory."""

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

SECONDS = 1.0  # the shortest duration of a timing
OUT = Path("runs/benchmarks")
Rates = dict[str, float]
Make = tuple[Any, ...]  # a function at module level, and its arguments


@dataclasses.dataclass
class Work:
    """The work that a side repeats in its process, as numbered units.

    Attributes:
        step: starts unit number n.
        wait: waits until all started units are done.
        amounts: the amounts in each unit, by name (such as tokens); a timing runs all units one or more times.
        about: facts to report; more may be added while the work runs.
        peak_bytes: returns the peak memory of the device; None to report that of the process.
    """

    step: Callable[[int], None]
    wait: Callable[[], None]
    amounts: list[Rates]
    about: dict[str, Any]
    peak_bytes: Callable[[], int | None] = lambda: None


class Range(NamedTuple):
    """Median, lowest and highest value of several timings."""

    median: float
    low: float
    high: float


def range_of(values: Iterable[float]) -> Range:
    """Return the median and range of values."""
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
        """Return the rates for "time", or the facts for "about".

        A timing repeats all units for at least SECONDS. One unit before it is not counted, since the first one after an
        idle time is slower.
        """
        if what == "time":
            timed(self.work, [0])
            return rates(self.work, self.numbers)
        device = self.work.peak_bytes()
        pages = {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES") or "not set"}
        peak = {"peak_bytes": device or peak_resident(), "peak_of": "device" if device else "process"}
        return self.work.about | pages | peak

    def end(self) -> None:
        """Do nothing: there is no process to end."""


class Side:
    """A side in a separate process. After the constructor it is warmed up, and idle until `ask`."""

    def __init__(self, make: Make) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make), daemon=True)
        self.process.start()
        theirs.close()
        self.compile_seconds = self.answer()

    def ask(self, what: str) -> Any:
        """Like `Timer.ask`."""
        with contextlib.suppress(BrokenPipeError):  # `answer` raises the error
            self.pipe.send(what)
        return self.answer()

    def answer(self) -> Any:
        """Return what the process sends.

        Raises:
            Exception: the exception that was raised in the process.
            RuntimeError: the process ended.
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
        """End the process."""
        self.pipe.close()
        self.process.join(5)
        self.process.terminate()


def serve(pipe: Any, make: Make) -> None:
    """Run a side in its process, and answer requests."""
    try:
        timer = Timer(make)
        pipe.send(timer.compile_seconds)
        while True:
            pipe.send(timer.ask(pipe.recv()))
    except EOFError:  # the parent closed the pipe
        return
    except InputError as error:
        pipe.send(error)
    except Exception:
        pipe.send(RuntimeError(traceback.format_exc()))


def timed(work: Work, numbers: Iterable[int]) -> float:
    """Return the seconds that some units take until all are done."""
    began = time.perf_counter()
    for number in numbers:
        work.step(number)
    work.wait()
    return time.perf_counter() - began


def rates(work: Work, numbers: list[int]) -> Rates:
    """Return the seconds per unit, and each amount per second."""
    seconds = timed(work, numbers)
    totals = {name: sum(work.amounts[number][name] for number in numbers) for name in work.amounts[0]}
    return {"seconds": seconds / len(numbers)} | {name: total / seconds for name, total in totals.items()}


def measure(makes: dict[str, Make], repeats: int, apart: bool = True) -> dict[str, dict[str, Any]]:
    """Create and warm up all sides one after the other, then time them in turn.

    Args:
        makes: the sides by name.
        repeats: timings per side.
        apart: whether each side has a separate process; False for several sides in JAX, since only one process can use
            a TPU.

    Returns:
        For each side: `about`, `compile_seconds`, and `timings`, a list of rates.
    """
    sides: dict[str, Side | Timer] = {}
    if apart and len(makes) > 1:
        os.environ.setdefault(
            "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
        )  # by default JAX allocates most of a GPU's memory
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
    """Return the median and range of one rate over a side's timings."""
    return range_of(timing[name] for timing in result["timings"])


def ratio(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> Range:
    """Return the median and range of ours / theirs, from each pair of neighbouring timings."""
    pairs = zip(ours["timings"], theirs["timings"], strict=True)
    return range_of(mine[name] / other[name] for mine, other in pairs)


def show(value: Range, digits: int = 0) -> str:
    """Format a median, with the range in brackets."""
    return f"{value.median:,.{digits}f} ({value.low:,.{digits}f} to {value.high:,.{digits}f})"


def utilisation(result: dict[str, Any]) -> Range | None:
    """Return the model FLOPs utilization relative to the device's bfloat16 peak; None if the peak is unknown."""
    most = peak(result["about"]["device"])
    if most is None:
        return None
    return range_of(timing["flops"] / most / result["about"]["devices"] for timing in result["timings"])


def peak_resident() -> int:
    """Return the peak memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the memory from before exec
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def processor() -> str:
    """Return the CPU's name and the number of cores that this process may use."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {cores()} cores"


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jax_about(devices: int) -> dict[str, Any]:
    """Return the device that JAX uses, and versions."""
    import jax

    device = jax.devices()[0]
    name = processor() if device.platform == "cpu" else device.device_kind
    return {"device": name, "devices": devices, "jax": jax.__version__}


def jax_peak_bytes() -> int | None:
    """Return the peak memory of the first local device in bytes; None if JAX does not report it."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def torch_about() -> dict[str, Any]:
    """Return the device that torch uses, and versions; set torch to use all cores."""
    import torch

    torch.set_num_threads(cores())
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # TF32, as JAX uses on a GPU
    name = torch.cuda.get_device_name() if on_gpu else processor()
    versions = {package: metadata.version(package) for package in ("torch", "transformers")}
    return {"device": name, "devices": 1} | versions


def torch_wait() -> None:
    """Wait until the GPU is done; on a CPU torch is already done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def torch_peak_bytes() -> int | None:
    """Return the peak memory of the GPU in bytes; None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def need_transformers() -> None:
    """Check that torch and transformers are installed.

    Raises:
        InputError: one of them is not installed.
    """
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--against transformers needs {name}: pip install 'bertgpt[parity]'")


def memory(result: dict[str, Any]) -> str:
    """Format a side's peak memory, and whether it is that of the device or of the process."""
    return f"{result['about']['peak_bytes'] / 2**30:.2f} GiB ({result['about']['peak_of']})"


def describe(results: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Yield one line of facts per side: device, versions and more."""
    for name, result in results.items():
        facts = {key: value for key, value in result["about"].items() if not key.startswith("peak_")}
        yield f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items())


def write(
    folder: Path, name: str, report: dict[str, Any], bars: dict[str, Range], title: str, unit: str = "tokens per second"
) -> None:
    """Write NAME.json with the whole report, and NAME.png with medians as bars and ranges as lines."""
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
    """Run a command; return 0, or print a user's mistake in one line and return 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
