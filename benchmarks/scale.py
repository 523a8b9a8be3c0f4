"""Corpus preparation in one process, in parallel tasks and on Ray: checks for equal bytes, measures time and memory.

python -m benchmarks.scale [--megabytes 200]
"""

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.corpus import RECIPE, demo
from bertgpt.tokenizers import save_tokenizer

FILES = 16
SUFFIXES = ("jsonl", "parquet", "jsonl", "jsonl.gz")
WAYS = {
    "in one process": ["data.workers=1"],
    "1 task": ["--tasks", "1", "data.workers=1"],
    f"{FILES} tasks, 1 worker": ["--tasks", str(FILES), "data.workers=1"],
    f"{FILES} tasks, 4 workers": ["--tasks", str(FILES), "data.workers=4"],
    f"{FILES} tasks on Ray": ["--tasks", str(FILES), "--ray"],
}


def main() -> None:
    """Print one line per way of preparation; fail if a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=200)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    source, tokenizer = demo()
    save_tokenizer(tokenizer, folder)
    documents = ["\n".join(document) for document in source.documents("train")]
    (folder / "text").mkdir()
    for index in range(FILES):
        texts = list(_copies(documents, index, options.megabytes * 1e6 / FILES))
        _write(folder / "text" / f"{index:02d}.{SUFFIXES[index % len(SUFFIXES)]}", texts)
    first: dict[str, bytes] = {}
    for name, arguments in WAYS.items():
        seconds, output = _prepare(folder, arguments)
        found = _contents(folder / "store")
        first = first or found
        assert found == first, f"{name}: the bytes differ from those of the first way"
        size = sum(split["text_bytes"] for split in json.loads(found["meta.json"])["splits"].values()) / 1e6
        print(f"{name}: {size:.0f} MB in {seconds:.0f} s, {size / seconds:.2f} MB/s{_tasks(size, output)}", flush=True)
    shutil.rmtree(folder)


def _copies(documents: list[str], file: int, size: float) -> Iterator[str]:
    """Yield documents of about `size` bytes in total, all different within and between files."""
    number = 0
    while size > 0:
        text = f"{file} {number // len(documents)} {documents[number % len(documents)]}"
        size -= len(text.encode())
        number += 1
        yield text


def _write(path: Path, texts: list[str]) -> None:
    if path.suffix == ".parquet":
        return pq.write_table(pa.table({"text": texts}), path)
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def _tasks(size: float, output: str) -> str:
    """Summarize the log lines of the tasks: their total speed and highest memory."""
    tasks = re.findall(r"in ([\d.]+) core-seconds, peak memory (\d+)", output)
    if not tasks:
        return ""
    seconds, peak = sum(float(task[0]) for task in tasks), max(int(task[1]) for task in tasks)
    return f"; tasks: {size / seconds:.2f} MB per core-second, at most {peak} MiB"


def _prepare(folder: Path, arguments: list[str]) -> tuple[float, str]:
    """Run the command, and return its seconds and its output."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    keys = [f"data.train={folder / 'text'}", "data.text_key=text", f"tokenizer.path={folder}", f"out={folder}"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "train", "prepare", str(RECIPE), *keys, *arguments]
    environment = os.environ | {"PYTHONPATH": str(RECIPE.parent.parent)}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - start, output


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


if __name__ == "__main__":
    main()
