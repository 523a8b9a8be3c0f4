"""Output of a run: metrics.jsonl, the console, curves.png."""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bertgpt.errors import InputError, quoted
from bertgpt.model.attention import Request, chosen, why_plain

from . import curves, hosts
from .atomic_files import write_whole

TIMINGS = ("tokens_per_second", "seconds")  # figures that differ between two identical runs
console = Console(highlight=False, soft_wrap=True, emoji=False)  # text is printed unchanged
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
above: list[Console] = []  # where bars are shown (progress.py); lines on the same terminal go above them


def say(text: str, end: str = "\n") -> None:
    """Log a line, or a part of one, on stdout; in a run of several processes only the first one logs."""
    if hosts.is_first():
        _print(console, text, end)


def _print(to: Console, text: str, end: str = "\n") -> None:
    (above[0] if above and to.is_terminal else to).print(text, markup=False, end=end)


def check_text(text: str) -> None:
    """
    Raises:
        InputError: the text from the command line was not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"a text is not UTF-8: {quoted(text)}; convert it") from error


def say_numbered(model: str, count: int) -> None:
    """Log that the rows' labels are matched with classes that have no names."""
    say(f"{model}: its classes are LABEL_0 to LABEL_{count - 1}; the labels of the rows are matched by number")


def warn(text: str) -> None:
    """Log a warning on stderr; in a run of several processes only the first one does."""
    if hosts.is_first():
        _print(errors, f"warning: {text}")


def warn_here(text: str) -> None:
    """Log a warning on stderr from any process, with the process's number."""
    place = f"process {jax.process_index()}: " if hosts.several() else ""
    _print(errors, f"warning: {place}{text}")


class Metrics:
    """Writes metrics.jsonl: one object per line with `step`, `split` and figures.

    Attributes:
        last: the rows of the step that a run resumes from, as (step, split, figures).
        dropped: (step, split) of the rows that were removed.
    """

    def __init__(self, folder: Path, step: int, eval_pending: bool = False) -> None:
        """Open the file to append to it. Only the first process of a run writes.

        Rows after `step`, which a killed run may have written, are removed. If `eval_pending`, so is the evaluation of
        `step`.
        """
        self.file: IO[str] | None = None
        self.last: list[tuple[int, str, dict[str, float]]] = []
        self.dropped: set[tuple[int, str]] = set()
        if not hosts.is_first():
            return
        self.path = folder / "metrics.jsonl"
        kept = []
        for row in read_metrics(folder) if step else []:
            place = row["step"], row["split"]
            if row["step"] > step or (eval_pending and place == (step, "eval")):
                self.dropped.add(place)
                continue
            kept.append(row)
            if row["step"] == step:
                self.last.append((*place, _figures(row)))
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, split: str, figures: dict[str, float]) -> None:
        """Append a row and flush it.

        Raises:
            InputError: somebody removed the file.
        """
        if self.file is not None:
            self._check_exists()
            self.file.write(json.dumps({"step": step, "split": split, **figures}) + "\n")
            self.file.flush()

    def sync(self) -> None:
        """Flush to disk all that was written; call it before a checkpoint, which relies on these rows.

        Raises:
            InputError: somebody removed the file.
        """
        if self.file is not None:
            self._check_exists()
            os.fsync(self.file.fileno())

    def _check_exists(self) -> None:
        if not self.path.exists():
            raise InputError(
                f"{self.path} was removed while the run wrote to it, so the run stopped; run the command again"
            )

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; an incomplete last line, as a kill leaves it, is skipped.

    Raises:
        InputError: another line is not a row; the error names the line.
    """
    path = folder / "metrics.jsonl"
    *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows = [_metrics_row(line, f"{path} line {number}") for number, line in enumerate(lines, 1)]
    with contextlib.suppress(InputError):  # the row may be complete, with only its newline missing
        rows.append(_metrics_row(rest, f"{path} line {len(lines) + 1}"))
    return rows


def _metrics_row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if isinstance(row["step"], int) and isinstance(row["split"], str):
            return row
        reason = "step must be an integer, and split a text"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error}"
    raise InputError(f"{place}: not a row of metrics ({reason}); correct or remove the line")


def shown(value: float) -> str:
    """A figure as tables show it."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def show_table(title: str, figures: dict[str, float]) -> None:
    """Print a table of figures, one per line."""
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, shown(value))
    console.print(table)


def show_types(scores: dict[str, dict[str, float]]) -> None:
    """Print the precision, recall, F1 and support (number of gold entities) of each entity type."""
    names = ("precision", "recall", "f1", "support")
    table = Table()
    table.add_column("type")
    for name in names:
        table.add_column(name, justify="right")
    for label, figures in scores.items():
        table.add_row(Text(label), *(shown(figures[name]) for name in names))  # a label is not markup
    console.print(table)


def show_columns(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> None:
    """Print a table of texts; the first `left` columns are names, and the others numbers."""
    table = Table(title=Text(title), title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < left else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def eval_lines(step: int, figures: dict[str, float]) -> list[str]:
    """The figures of an evaluation: one line, or one for each of several held-out sets (figures `NAME/loss`, ...)."""
    sets: dict[str, list[str]] = {}
    for name, value in figures.items():
        if name not in TIMINGS:
            of_set, _, figure = name.rpartition("/")
            text = f"{figure} {value:,}" if isinstance(value, int) else f"{figure} {value:.4g}"
            sets.setdefault(of_set, []).append(text)
    if len(sets) > 1:
        del sets[""]  # the figures of the set that decides, which has a line of its own
    return [f"step {step} held-out{' ' * bool(name)}{name}: " + "  ".join(parts) for name, parts in sets.items()]


def opening(config: Any, model: Any, strategy: Any, parameters: int, devices: list[Any] | None = None) -> list[str]:
    """The first lines of a log: model, dtype, devices, strategy, steps, attention; a warning if a GPU is unused.

    `devices`: those of the run; None: all that JAX has.
    """
    devices = jax.devices() if devices is None else devices
    device, processes = devices[0], len({device.process_index for device in devices})
    sizes = config.data.sequence_length, model.num_heads, model.hidden_size // model.num_heads
    request = Request(device, config.train.dtype, *sizes, model.attention_dropout)
    kernel = chosen(request, config.model.attention)
    reason = "" if kernel.device else f" ({why_plain(request, config.model.attention)})"
    split = f" in {processes} processes" if processes > 1 else ""
    lines = [
        f"{model.architecture} with {parameters:,} parameters, {config.train.dtype}, on {len(devices)} x "
        f"{device.device_kind} ({device.platform}){split}, strategy {strategy.name} over {strategy.devices}",
        f"{config.train.steps} steps of {config.train.batch_size} x {config.data.sequence_length} tokens, "
        + (f"objective {config.train.objective}, " if config.train.objective else "")
        + f"into {config.out}",
        f"attention: {kernel.name}{reason}",
    ]
    if device.platform == "cpu" and has_nvidia():
        lines.append(
            "warning: there is an NVIDIA GPU, but JAX sees only the CPU; install bertgpt[cuda] or bertgpt[cuda13] "
            "(make install EXTRA=cuda or EXTRA=cuda13)"
        )
    return lines


def has_nvidia(root: str = "/") -> bool:
    """Whether the machine has an NVIDIA GPU with its driver."""
    return any(Path(root).glob("dev/nvidia[0-9]*"))


def derived(figures: dict[str, float], tokens_per_byte: float) -> dict[str, float]:
    """Return the figures with the derived ones added: balanced accuracy, perplexity, bits per byte of text."""
    out = dict(figures)
    for name, recall in (("nsp_balanced_accuracy", "nsp_recall"), ("nsp_length_baseline", "nsp_length_recall")):
        if f"{recall}_is_next" in out:
            out[name] = (out.pop(f"{recall}_is_next") + out.pop(f"{recall}_not_next")) / 2
    if "lm_loss" in out:
        out["perplexity"] = math.exp(min(out["lm_loss"], 700))
        out["bits_per_byte"] = out["lm_loss"] / math.log(2) * tokens_per_byte
    return out


def need_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl.

    Raises:
        InputError: there are none.
    """
    rows = read_metrics(folder)
    if not rows:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give a run folder")
        raise InputError(f"{folder}: no metrics.jsonl with rows; give a run folder, or wait for its first row")
    return rows


def report(folder: Path, picture: Path | None = None, name: str | None = None) -> list[str]:
    """Draw the curves of a run, and return lines with the final held-out figures and their baselines.

    The baselines are computed on the same examples: unigram frequencies for tokens; the lengths of the two segments for
    next sentences.

    Args:
        folder: of the run.
        picture: the file to write; None: curves.png in the folder.
        name: of the run, for the lines; None: the folder.

    Raises:
        InputError: the folder has no metrics.
    """
    rows, picture = need_metrics(folder), picture or folder / "curves.png"
    scored = [row for row in rows if row["split"] == "eval"]
    unigram = scored[-1].get("unigram_cross_entropy") if scored else None
    curves.draw({name or str(folder): rows}, picture)
    lines = [f"curves: {picture if name is None else f'{name}/curves.png'}"]
    if not scored:
        return lines
    last = scored[-1]
    if unigram is None:  # a fine-tuning run
        return [*lines, *(line for row in (scored[0], last) for line in eval_lines(row["step"], _figures(row)))]
    place = f"step {last['step']}, {last['examples']:,} held-out examples:"
    for name, title in (("mlm_loss", "MLM loss"), ("lm_loss", "LM loss")):
        if name in last:
            gain = _compared(unigram - last[name], ".3f")
            lines.append(f"{place} {title} {last[name]:.3f} nats, {gain} the unigram baseline ({unigram:.3f})")
    if "mlm_accuracy" in last:
        lines.append(f"{place} MLM accuracy {last['mlm_accuracy']:.3f}" + _nsp_accuracy(last))
    if "whole_word_mlm_loss" in last:
        loss, share = last["whole_word_mlm_loss"], last["whole_word_mlm_accuracy"]
        lines.append(f"{place} with whole words masked, MLM loss {loss:.3f} nats, MLM accuracy {share:.3f}")
    if "bits_per_byte" in last:
        per_nat = last["bits_per_byte"] / last["lm_loss"] if last["lm_loss"] else 0.0
        bits = per_nat * unigram
        share = _compared(1 - last["bits_per_byte"] / bits if bits else 0.0, ".1%")
        lines.append(
            f"{place} {last['bits_per_byte']:.3f} bits per byte, {share} the unigram baseline ({bits:.3f}); "
            f"perplexity {last['perplexity']:.1f}"
        )
    if any("/" in name for name in last):  # several held-out sets; the lines before are of the one that decides
        lines += eval_lines(last["step"], _figures(last))
    return lines


def _nsp_accuracy(row: dict[str, Any]) -> str:
    """The accuracy of next sentences with its baseline, to follow another figure; empty without next sentences."""
    if "nsp_balanced_accuracy" not in row:
        return ""
    lengths = row.get("nsp_length_baseline")  # missing in runs of earlier versions
    baseline = "" if lengths is None else f" (segment-length baseline: {lengths:.3f})"
    return f", NSP balanced accuracy {row['nsp_balanced_accuracy']:.3f}{baseline}"


def _compared(gain: float, form: str) -> str:
    return f"{abs(gain):{form}} {'below' if gain >= 0 else 'above'}"


def _figures(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in ("step", "split")}
