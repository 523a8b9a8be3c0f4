"""What a preemption costs: seconds from SIGTERM until the run has saved, and from the next start to its first step.

PYTHONPATH=tests python -m benchmarks.preemption [--model bert_mini] [--delay 0.03] [--repeats 3]

The same run writes to a local folder, and to the emulated bucket of the tests on this machine, which waits before it
answers a request. A restart in the bucket begins with an empty cache folder, as on a new machine.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gcs_server

from benchmarks.side_by_side import range_of

EVERY = 1000  # steps between checkpoints: SIGTERM saves


def command(out: str, model: str, folder: Path) -> list[str]:
    """The run: the demo's text, one row of 16 tokens a step."""
    settings = [f"model.preset={model}", f"out={out}", f"data.store={out}_store", "train.steps=100000"]
    settings += ["train.batch_size=1", "data.sequence_length=16", "train.log_every=1", f"train.eval_every={EVERY}"]
    settings += [f"checkpoint.every={EVERY}", "train.tracker=none", f"tokenizer.path={folder / 'tokenizer.json'}"]
    return [sys.executable, "-m", "train", "pretrain", "configs/bert_demo.yaml", *settings, "tokenizer.vocab_size=null"]


def last_step(metrics: Path) -> int:
    """The last step in a file of metrics; 0 without one."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def find_metrics(cache: Path, out: str) -> Path:
    """The file of metrics on this machine."""
    if not out.startswith("gs:"):
        return Path(out) / "metrics.jsonl"
    return next(cache.rglob("runs-*/*/metrics.jsonl"), cache / "none")


def until(process: subprocess.Popen, cache: Path, out: str, step: int) -> float:
    """Wait until the run logs a step over `step`; return the seconds."""
    began = time.perf_counter()
    while last_step(find_metrics(cache, out)) <= step:
        if process.poll() is not None:
            sys.exit(f"the run ended: {process.stderr.read() if process.stderr else ''}")
        time.sleep(0.05)
    return time.perf_counter() - began


def measure(out: str, model: str, folder: Path, variables: dict[str, str], repeats: int) -> tuple[list[float], ...]:
    """The seconds to save and to restart, of each preemption."""
    cache, saves, starts, step = folder / "cache", [], [], 0
    for number in range(repeats + 1):
        if out.startswith("gs:"):
            shutil.rmtree(cache, ignore_errors=True)
        environment = {**os.environ, **variables, "XDG_CACHE_HOME": str(cache)}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        arguments = command(out, model, folder)
        process = subprocess.Popen(
            arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        taken = until(process, cache, out, step)
        if number:  # the first start makes the store
            starts.append(taken)
        time.sleep(1)
        began = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        process.communicate()
        saves.append(time.perf_counter() - began)
        step = last_step(find_metrics(cache, out))
    return saves[1:], starts


def told(seconds: list[float]) -> str:
    """The median and the range as a text."""
    found = range_of(seconds)
    return f"{found.median:.1f} s ({found.low:.1f} to {found.high:.1f})"


def main() -> None:
    """Measure both, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert_mini")
    parser.add_argument("--delay", type=float, default=0.03, metavar="SECONDS", help="of each request")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="preemptions")
    options = parser.parse_args()
    bucket = gcs_server.Bucket()
    bucket.fault = lambda method, path: time.sleep(options.delay)  # type: ignore[func-returns-value]
    with tempfile.TemporaryDirectory() as name, gcs_server.serve(bucket) as address:
        folder = Path(name)
        make_tokenizer(folder)
        for place, out in (("local folder", str(folder / "run")), ("bucket", "gs://bucket/run")):
            saves, starts = measure(
                out, options.model, folder / place, gcs_server.environment(address), options.repeats
            )
            print(
                f"{options.model}, {place}: saved {told(saves)} after SIGTERM, first step {told(starts)} after a start"
            )
        sizes = [len(found.content) for found in bucket.objects.values()]
        print(f"in the bucket: {len(sizes)} objects, {sum(sizes) / 1e6:.0f} MB; {len(bucket.log):,} requests")


def make_tokenizer(folder: Path) -> None:
    """One tokenizer for both runs, of the demo's text."""
    from bertgpt.data.text.text_source import TextSource
    from bertgpt.tokenizers import train_wordpiece
    from train import config as configs

    source: TextSource = configs.text_source(configs.load("configs/bert_demo.yaml"))
    texts = ["\n".join(document) for document in source.documents("train")]
    tokenizer = train_wordpiece(texts, 8000)
    for place in ("local folder", "bucket"):
        (folder / place).mkdir()
        tokenizer.save(str(folder / place / "tokenizer.json"))


if __name__ == "__main__":
    main()
