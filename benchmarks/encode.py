"""Seconds to encode rows of each kind of task: one at a time, many together, and from the files of an earlier start.

python -m benchmarks.encode [--rows 100000] [--kinds classification tagging ...] [--length 128]

The rows are runs of words of the demo corpus: 20 words in a text, 120 in a context, which five questions in a row
share. "Together" is what `finetune` does at its first start, with the writing of its files; "files" is what it does at
the next start. Rows are read before the clock starts. The tokenizers have the size of the demo recipe's.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import side_by_side
from benchmarks.corpus import demo
from bertgpt import add_tokens, presets
from bertgpt.data.tasks.making import task_tokens
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import TaskData, TaskSettings
from bertgpt.errors import InputError
from bertgpt.inference.predict import SPECS, task_data
from bertgpt.tokenizers import train_bpe, vocabulary_size
from train.folders.encoded import encode_splits

TEXT, CONTEXT, QUESTIONS = 20, 120, 5  # words of a text, words of a context, questions about it
LABELS = ("no", "yes")
PAIR = "pairs"  # classification of two texts
KINDS = ("classification", PAIR, "multiple_choice", "question_answering", "tagging", "sft")


def make_rows(kind: str, words: list[str], count: int) -> list[Row]:
    """Return rows of random runs of words."""
    rng = np.random.default_rng(0)

    def run(size: int) -> list[str]:
        start = int(rng.integers(0, len(words) - size))
        return words[start : start + size]

    def values(number: int) -> dict[str, Any]:
        if kind == "question_answering":
            return {"question": " ".join(run(10)), **context}
        if kind == "tagging":
            return {"words": run(TEXT), "tags": ["no"] * TEXT}
        if kind == "sft":
            return {"prompt": " ".join(run(TEXT)), "response": " ".join(run(TEXT))}
        if kind == "multiple_choice":
            return {"text": " ".join(run(TEXT)), "choices": [" ".join(run(TEXT)) for _ in range(4)], "label": 0}
        return {"text": " ".join(run(TEXT)), "pair": " ".join(run(TEXT)), "label": LABELS[number % 2]}

    rows, context = [], {}
    for number in range(count):
        if number % QUESTIONS == 0:
            text = run(CONTEXT)
            context = {"context": " ".join(text), "answers": " ".join(text[50:53])}
        rows.append(Row(f"row {number}", values(number)))
    return rows


def make_data(kind: str, texts: list[str], wordpiece: Any, length: int) -> TaskData:
    """Return the encoding of a kind of task."""
    settings = TaskSettings(kind="classification" if kind == PAIR else kind, pair="pair" if kind == PAIR else None)
    gpt = kind == "sft"
    tokenizer = add_tokens(train_bpe(texts, 8000), task_tokens(kind)) if gpt else wordpiece
    labels = LABELS if SPECS[str(settings.kind)].problem or kind == "tagging" else ()
    sizes = {"vocab_size": vocabulary_size(tokenizer), "labels": labels, "num_labels": 2}
    return task_data(settings, presets.get("gpt1" if gpt else "bert_tiny", **sizes), tokenizer, length, 4)


class Seconds(NamedTuple):
    """Seconds that work took, and its CPU time on the main thread and on all threads."""

    wall: float
    main: float
    all: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} ({self.main:.1f} / {self.all:.1f})"


def timed(work: Callable[[], Any]) -> Seconds:
    """Run the work once."""
    clocks = (time.perf_counter, time.thread_time, time.process_time)
    start = [clock() for clock in clocks]
    work()
    return Seconds(*(clock() - began for clock, began in zip(clocks, start, strict=True)))


def measure(data: TaskData, rows: list[Row]) -> tuple[Seconds, Seconds, Seconds, float]:
    """Return the time of each way in the order of the table, and the megabytes of the files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        together, files = (timed(lambda: encode_splits(data, {"train": rows}, folder)) for _ in range(2))
        megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    return timed(lambda: [data.encode(row) for row in rows]), together, files, megabytes


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--length", type=int, default=128, help="tokens of an input")
    options = parser.parse_args(arguments)
    if options.rows < 1:
        raise InputError(f"--rows is {options.rows}; it must be at least 1")
    source, wordpiece = demo()
    texts = ["\n".join(document) for document in source.documents("train")]
    words = " ".join(texts).split()
    print(f"{options.rows:,} rows, length {options.length}, on {side_by_side.processor()}")
    print("seconds (CPU time of the main thread / of all threads)")
    print("| kind | one at a time | together, and written | from files | files |\n|---|---|---|---|---|")
    for kind in options.kinds:
        data = make_data(kind, texts, wordpiece, options.length)
        *ways, megabytes = measure(data, make_rows(kind, words, options.rows))
        print(f"| {kind} | {' | '.join(map(str, ways))} | {megabytes:,.0f} MB |", flush=True)


if __name__ == "__main__":
    sys.exit(side_by_side.leave(main))
