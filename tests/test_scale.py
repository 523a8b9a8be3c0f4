"""Corpus preparation in tasks: the same bytes as in one process, wherever and in however many pieces it runs."""

import dataclasses
import gzip
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given
from tokenizers import Tokenizer

from bertgpt.data.text import documents as documents_module
from bertgpt.data.text import store, store_shards
from bertgpt.data.text.text_source import TextSource
from bertgpt.errors import InputError
from bertgpt.tokenizers import save_tokenizer
from train.__main__ import main
from train.folders import distributed_preparation

ROOT = Path(__file__).parent.parent
FAKE = {  # Slurm on one machine: every job runs at once, every task of an array after the other
    "sbatch": """for script in "$@"; do :; done
n=$(ls {folder} | grep -c ^job); cp $script {folder}/job$n
last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' $script)
for i in $(seq 0 $last); do SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=here bash $script >> {folder}/log 2>&1 || exit 1; done
echo Submitted batch job 4$n""",
    "srun": 'while [ "${1#launch}" = "$1" ]; do shift; done; exec "$@"',
    "scontrol": "echo here",
}


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write(path, texts) -> None:
    """Texts as the suffix says."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    if path.suffix == ".parquet":
        table = pa.table({"id": list(range(len(texts))), "text": list(texts)})
        rows = 7 if len(texts) < 1000 else None
        pq.write_table(table, path, row_group_size=rows, use_dictionary=False, compression="none")
    else:
        path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())


@pytest.fixture
def text(documents, tmp_path):
    """A folder of five files of different sizes and kinds."""
    (tmp_path / "text").mkdir()
    ends = [0, 10, 25, 60, 90, 120]
    names = ["a.jsonl", "b.parquet", "c.jsonl.gz", "d.jsonl", "e.jsonl"]
    for name, start, end in zip(names, ends, ends[1:], strict=False):
        write(tmp_path / "text" / name, documents[start:end])
    return tmp_path / "text"


@pytest.fixture
def prepare(text, wordpiece, tmp_path):
    """Prepares `text` in tasks to a store, whose folder it returns."""
    source = TextSource(str(text), eval_fraction=0.1)
    wanted = {"sha256": store.tokenizer_hash(wordpiece)}

    def run(tasks=100, workers=1, **changed):
        folder = tmp_path / "out" / "store"
        task_options = distributed_preparation.TaskOptions(tasks, workers)
        assert distributed_preparation.prepare(
            folder, dataclasses.replace(source, **changed), wanted, lambda: wordpiece, task_options
        )
        return folder

    return run


@pytest.fixture
def whole(text, wordpiece, tmp_path):
    """What one process makes of it."""
    source = TextSource(str(text), eval_fraction=0.1)
    store.prepare(tmp_path / "whole", source, wordpiece, {"sha256": store.tokenizer_hash(wordpiece)})
    return contents(tmp_path / "whole")


@pytest.fixture
def config_file(text, wordpiece, tmp_path):
    """A run's file with the same text and tokenizer."""
    (tmp_path / "vocabulary").mkdir()
    save_tokenizer(wordpiece, tmp_path / "vocabulary")
    values = {
        "tokenizer": {"path": str(tmp_path / "vocabulary")},
        "data": {"train": str(text), "eval_fraction": 0.1, "workers": 2},
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "run.yaml"


def done(capsys) -> list[int]:
    """The tasks that ran since the last call."""
    return sorted(int(rank) for rank in re.findall(r"task (\d+) of", capsys.readouterr().out))


def fails(capsys, *arguments) -> str:
    """The one line on stderr of a command that must exit with 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(("tasks", "workers"), [(1, 1), (3, 1), (5, 4), (100, 1)])
def test_neither_tasks_nor_workers_change_a_byte(prepare, whole, tasks, workers):
    folder = prepare(tasks, workers)
    assert contents(folder) == whole
    assert [path.name for path in folder.parent.iterdir()] == ["store"]


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_a_given_evaluation_text_is_dealt_too(text, prepare, wordpiece, tmp_path, tasks):
    source = TextSource([str(text / "[a-c]*"), str(text / "a.jsonl")], str(text / "[de]*"), eval_fraction=0.1)
    store.prepare(tmp_path / "whole", source, wordpiece, {"sha256": store.tokenizer_hash(wordpiece)})
    assert contents(prepare(tasks, train=source.train, eval=source.eval)) == contents(tmp_path / "whole")


@pytest.mark.parametrize("document", ["file", "line"])
def test_a_document_of_another_kind_is_dealt_too(text, prepare, wordpiece, tmp_path, monkeypatch, document):
    monkeypatch.setattr(documents_module, "MAX_DOCUMENT", 500)  # most files are several documents
    (text / "f.txt").write_text("One two.\nThree four.\n\nFive six.\n" * 40)
    source = TextSource(str(text), eval_fraction=0.4, document=document)
    store.prepare(tmp_path / "whole", source, wordpiece, {"sha256": store.tokenizer_hash(wordpiece)})
    for tasks in (1, 3, 6):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        folder = prepare(tasks, eval_fraction=0.4, document=document)
        assert contents(folder) == contents(tmp_path / "whole")


def test_a_part_without_an_evaluation_document_has_its_place(prepare, text, wordpiece, tmp_path):
    write(text / "f.jsonl", [])
    write(text / "g.jsonl", ["\x01"])
    source = TextSource(str(text), eval_fraction=0.1)
    store.prepare(tmp_path / "whole", source, wordpiece, {"sha256": store.tokenizer_hash(wordpiece)})
    assert contents(prepare(100)) == contents(tmp_path / "whole")


def test_a_merge_by_small_blocks_is_the_same(prepare, whole, monkeypatch):
    monkeypatch.setattr(store_shards, "BLOCK", 3)
    assert contents(prepare()) == whole


def test_pretraining_takes_the_store_as_it_is(config_file, whole, capsys):
    assert main(["prepare", str(config_file), "--tasks", "2"]) == 0
    assert contents(config_file.parent / "out" / "store") == whole
    capsys.readouterr()
    assert main(["prepare", str(config_file)]) == 0
    assert "preparing" not in capsys.readouterr().out


@example([10, 0], 1)
@example([0, 0], 2)
@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(1, 40))
def test_files_are_dealt_in_order_and_evenly(sizes, count):
    runs = store_shards.deal(sizes, count)
    assert list(itertools.chain.from_iterable(runs)) == list(range(len(sizes)))
    assert all(runs)
    assert len(runs) <= count
    assert max(sum(sizes[index] for index in run) for run in runs) <= sum(sizes) / count + max(sizes)


def test_a_failed_task_is_done_again_with_those_not_begun(prepare, text, whole, capsys):
    good = (text / "c.jsonl.gz").read_bytes()
    times = (text / "c.jsonl.gz").stat().st_mtime_ns
    write(text / "c.jsonl.gz", ["one", None])
    with pytest.raises(InputError, match=r"c\.jsonl\.gz line 2: no text"):
        prepare()
    assert done(capsys) == [0, 1]
    (text / "c.jsonl.gz").write_bytes(good)
    os.utime(text / "c.jsonl.gz", ns=(times, times))
    assert contents(prepare()) == whole
    assert done(capsys) == [2, 3, 4]


@pytest.fixture
def merge_fails(monkeypatch):
    """A context in which all tasks are done and their merge fails."""

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(store_shards, "merge", fail)
    return monkeypatch


def test_after_a_failed_merge_no_task_runs_again(prepare, whole, capsys, merge_fails):
    with pytest.raises(OSError, match="No space"):
        prepare()
    assert done(capsys) == [0, 1, 2, 3, 4]
    merge_fails.undo()
    assert contents(prepare()) == whole
    assert done(capsys) == []


@pytest.mark.parametrize("lost", ["completions/00003", "parts/00003", "parts/00003/part.json"])
def test_a_task_without_its_mark_or_part_runs_again_alone(prepare, whole, tmp_path, capsys, merge_fails, lost):
    with pytest.raises(OSError, match="No space"):
        prepare()
    (work,) = (tmp_path / "out").glob(".store.work-*")
    path = work / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    merge_fails.undo()
    done(capsys)
    assert contents(prepare()) == whole
    assert done(capsys) == [3]


def test_the_part_of_a_changed_file_is_made_anew_alone(prepare, text, wordpiece, tmp_path, capsys, merge_fails):
    with pytest.raises(OSError, match="No space"):
        prepare()
    merge_fails.undo()
    raw = (text / "d.jsonl").read_text()
    (text / "d.jsonl").write_text(raw.replace("a", "b"))
    os.utime(text / "d.jsonl", ns=(1, 1))
    done(capsys)
    found = contents(prepare())
    assert done(capsys) == [3]
    source = TextSource(str(text), eval_fraction=0.1)
    store.prepare(tmp_path / "new", source, wordpiece, {"sha256": store.tokenizer_hash(wordpiece)})
    assert found == contents(tmp_path / "new")


def test_parts_of_another_setting_are_not_used_and_go_away(prepare, capsys, merge_fails):
    with pytest.raises(OSError, match="No space"):
        prepare()
    merge_fails.undo()
    done(capsys)
    folder = prepare(eval_fraction=0.5)
    assert done(capsys) == [0, 1, 2, 3, 4]
    assert [path.name for path in folder.parent.iterdir()] == ["store"]


@pytest.mark.parametrize(("changed", "made"), [(False, 1), (True, 2)])
def test_a_trained_tokenizer_is_kept_while_the_text_stays(text, wordpiece, tmp_path, merge_fails, changed, made):
    calls = []
    source = TextSource(str(text), eval_fraction=0.1)
    arguments = (tmp_path / "store", source, {"kind": "wordpiece"}, lambda: calls.append(0) or wordpiece)
    with pytest.raises(OSError, match="No space"):
        distributed_preparation.prepare(*arguments, distributed_preparation.TaskOptions(2, 1))
    merge_fails.undo()
    if changed:
        os.utime(text / "a.jsonl", ns=(1, 1))
    distributed_preparation.prepare(*arguments, distributed_preparation.TaskOptions(2, 1))
    assert len(calls) == made


def test_of_two_that_train_a_tokenizer_the_first_to_end_decides(tmp_path, wordpiece, bpe):
    def slower() -> Tokenizer:
        assert distributed_preparation._keep_tokenizer(tmp_path, lambda: bpe).to_str() == bpe.to_str()
        return wordpiece

    assert distributed_preparation._keep_tokenizer(tmp_path, slower).to_str() == bpe.to_str()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_parts_of_two_tokenizers_are_not_merged(tmp_path, text, wordpiece, bpe):
    source = TextSource(str(text), eval_fraction=0.1)
    files = source.files()
    store_shards.make_part(tmp_path / "0", source, files, bpe, store_shards.stamps(files))
    with pytest.raises(InputError, match="0: no part of a store with this tokenizer"):
        store_shards.merge(tmp_path / "new", [tmp_path / "0"], wordpiece)


@pytest.mark.parametrize("written", ["{", "[]", '{"files": 1, "splits": 2, "hashes": 3, "tokenizer": 4}'])
def test_a_part_whose_description_is_damaged_counts_as_none(tmp_path, written):
    (tmp_path / "part.json").write_text(written)
    assert store_shards.read_part(tmp_path) is None


def test_a_file_that_changes_meanwhile_is_refused(text, wordpiece, tmp_path):
    source = TextSource(str(text), eval_fraction=0.1)
    stamps = [(path, size + 1, tag) for path, size, tag in store_shards.stamps(source.files())]
    with pytest.raises(InputError, match=r"a\.jsonl: changed while the store was prepared"):
        store_shards.make_part(tmp_path / "parts" / "0", source, source.files(), wordpiece, stamps)
    assert list((tmp_path / "parts").iterdir()) == []


@pytest.mark.parametrize("name", ["tokens.bin", "sentences.bin", "documents.bin", "counts.bin"])
def test_a_damaged_part_is_named(text, wordpiece, tmp_path, name):
    source = TextSource(str(text), eval_fraction=0.1)
    files = source.files()
    store_shards.make_part(tmp_path / "0", source, files, wordpiece, store_shards.stamps(files))
    path = tmp_path / "0" / "train" / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=rf"0/train/{name}: damaged"):
        store_shards.merge(tmp_path / "new", [tmp_path / "0"], wordpiece)
    with pytest.raises(InputError, match="1: no part"):
        store_shards.merge(tmp_path / "newer", [tmp_path / "1"], wordpiece)


def test_a_corpus_without_text_is_refused(prepare, text):
    for path in text.iterdir():
        path.unlink()
    write(text / "a.jsonl", ["\x01"])
    with pytest.raises(InputError, match=r"data\.train: .* contains no text"):
        prepare()


def test_what_is_no_store_is_not_replaced(prepare, tmp_path):
    (tmp_path / "out" / "store").mkdir(parents=True)
    (tmp_path / "out" / "store" / "mine").write_text("")
    with pytest.raises(InputError, match="not a token store"):
        prepare()


MEMORY = """
import sys
from pathlib import Path
from tokenizers import Tokenizer
from bertgpt.data.text import documents, store_shards
from bertgpt.data.text.text_source import TextSource

tokenizer = Tokenizer.from_file("tokenizer.json")
documents.MAX_DOCUMENT = 1 << 18  # several documents in the smallest file too
peaks = []
for name in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    source = TextSource(name, eval_fraction=0.1, document=sys.argv[1])
    files = source.files()
    if name.endswith("parquet"):
        assert all(documents.read_documents(files.train, document=sys.argv[1]))
    else:
        store_shards.make_part(Path("part"), source, files, tokenizer, store_shards.stamps(files))
        store_shards.merge(Path("whole" + name), [Path("part")], tokenizer)
    peaks.append(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024)
print(*peaks)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux tells a process's peak")
@pytest.mark.parametrize(
    ("document", "suffix", "sizes", "growth"),
    [("paragraph", "jsonl", (2, 10), 4), ("file", "jsonl", (1, 5), 4), ("paragraph", "parquet", (60, 180), 40)],
)
def test_more_text_takes_no_more_memory(wordpiece, tmp_path, document, suffix, sizes, growth):
    save_tokenizer(wordpiece, tmp_path)
    for size in sizes:  # in MB
        write(tmp_path / f"{size}.{suffix}", [f"{number} " + "x y z. " * 1500 for number in range(size * 100)])
    command = [sys.executable, "-c", MEMORY, document, *(f"{size}.{suffix}" for size in sizes)]
    # GLIBC_TUNABLES: a huge page, 2 MiB at once, would hide what grows
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAYON_NUM_THREADS": "1", "GLIBC_TUNABLES": ""}
    result = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    small, large = map(float, result.stdout.split())
    assert large < small + growth, (small, large)  # MiB


def test_ray_makes_the_same_bytes(config_file, whole):
    command = [sys.executable, "-m", "train", "prepare", str(config_file), "--tasks", "2", "--ray"]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, timeout=300)
    assert contents(config_file.parent / "out" / "store") == whole


def test_a_task_that_fails_on_ray_is_told_in_one_line(text, tmp_path):
    source = TextSource(str(text))
    files = source.files()
    step = distributed_preparation.TokenizeFiles(tmp_path, source, files, store_shards.stamps(files), [range(5)])
    executor = distributed_preparation.RayPipelineExecutor([step], 1, logging_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"killed, perhaps for lack of memory \(1 of 1 tasks failed"):
        distributed_preparation._check_complete(executor, step)
    step.failure.write_text("Traceback\n  somewhere\nKeyError: 'x'\n")
    with pytest.raises(InputError, match=r"^KeyError: 'x' \(1 of 1 tasks failed"):
        distributed_preparation._check_complete(executor, step)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with Slurm's commands, in the path."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in FAKE.items():
        (folder / name).write_text("#!/bin/bash\n" + script.replace("{folder}", str(folder)))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_slurm_runs_an_array_and_then_the_merge(config_file, whole, slurm, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = "partition=cpu,time=1:00:00,account=mine,mem-per-cpu=3G"
    assert main(["prepare", str(config_file), "--tasks", "2", "--slurm", options]) == 0
    assert "submitted to Slurm" in capsys.readouterr().out
    assert contents(config_file.parent / "out" / "store") == whole, (slurm / "log").read_text()
    tasks, merge = ((slurm / name).read_text() for name in ("job0", "job1"))
    for line in ("partition=cpu", "time=1:00:00", "account=mine", "mem-per-cpu=3G", "array=0-1%2", "cpus-per-task=1"):
        assert f"#SBATCH --{line}\n" in tasks
    assert f"PYTHONPATH={ROOT}:" in tasks
    assert "qos" not in tasks
    assert "#SBATCH --dependency=afterok:40\n#SBATCH --kill-on-invalid-dep=yes\n" in merge
    assert merge.endswith(f"\n{sys.executable} -m train prepare {config_file} --tasks 2\n")


def test_many_tasks_share_the_jobs_of_one_array(text, tmp_path, slurm):
    source = TextSource([str(text / "a.jsonl")] * 2500)
    files = source.files()
    step = distributed_preparation.TokenizeFiles(
        tmp_path, source, files, store_shards.stamps(files), [range(i, i + 1) for i in range(2500)]
    )
    executor = distributed_preparation._executor(
        step, distributed_preparation.TaskOptions(2500, slurm={"partition": "cpu", "time": "1:00:00"})
    )
    assert executor.tasks_per_job == 3
    assert executor.get_sbatch_args(834)["array"] == "0-833"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray"], "--ray and --slurm need --tasks"),
        (["--slurm", "partition=cpu"], "--ray and --slurm need --tasks"),
        (["--tasks", "0"], "--tasks must be at least 1"),
        (["--tasks", "2", "--ray", "--slurm", "partition=cpu,time=1:00:00"], "--ray and --slurm exclude each other"),
        (["--tasks", "2", "--slurm", "partition"], "--slurm partition: give KEY=VALUE"),
        (["--tasks", "2", "--slurm", "account=mine"], "--slurm: no partition and no time"),
        (["--tasks", "2", "--slurm", "partition=cpu,time=1:00:00"], "--slurm: sbatch not found"),
    ],
)
def test_a_wrong_flag_is_told_in_one_line(config_file, capsys, arguments, message):
    assert message in fails(capsys, "prepare", config_file, *arguments)


def test_a_missing_extra_is_told_in_one_line(config_file, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = fails(capsys, "prepare", config_file, "--tasks", "2", "--ray")
    assert line == "error: --ray needs ray: pip install 'bertgpt[scale]'"
    monkeypatch.delitem(sys.modules, "train.folders.distributed_preparation")
    monkeypatch.setitem(sys.modules, "multiprocess", None)
    line = fails(capsys, "prepare", config_file, "--tasks", "2")
    assert line == "error: --tasks needs multiprocess: pip install 'bertgpt[scale]'"


def test_counts_are_added_up(prepare):
    split = store.open_split(prepare(), "train")
    np.testing.assert_array_equal(split.counts, np.bincount(split.tokens, minlength=len(split.counts)))
