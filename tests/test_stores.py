"""The token store of a run: one process prepares it, the others wait; damage is found; no worker is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from quick import QUICK
from test_hosts import END, finish, start

from bertgpt.data.text import store
from bertgpt.errors import InputError
from bertgpt.tokenizers import load_tokenizer, save_tokenizer, vocabulary_size
from train import config as configs
from train import model_section
from train.__main__ import main
from train.folders import locks, run_folder, token_store, verified


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip(file: Path) -> None:
    """One bit in the middle of a file, whose size and time stay."""
    content, status = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A home of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def config_file(corpus_file, bpe, tmp_path) -> Path:
    """A tiny GPT-1 with a tokenizer that is given."""
    (tmp_path / "vocabulary").mkdir()
    save_tokenizer(bpe, tmp_path / "vocabulary")
    (tmp_path / "text.jsonl").write_text(corpus_file.read_text())
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 32, "max_positions": 32}
    values = {
        "model": {"preset": "gpt1", **sizes},
        "tokenizer": {"path": str(tmp_path / "vocabulary")},
        "data": {"train": str(tmp_path / "text.jsonl"), "eval_fraction": 0.1, "sequence_length": 32, "workers": 1},
        "train": {"steps": 1, "batch_size": 8, "eval_examples": 8},
        "out": str(tmp_path / "out"),
    }
    values["data"]["store"] = str(tmp_path / "store")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "run.yaml"


def run(*arguments: object) -> subprocess.Popen:
    """A command as a process of its own."""
    environment = {**os.environ, "XLA_FLAGS": QUICK, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-u", "-m", "train", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process: subprocess.Popen) -> list[int]:
    """The processes that it has started, beside Python's resource tracker."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def wait_until(condition, seconds: float = 60) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it never came"
        time.sleep(0.02)


def test_two_runs_on_a_fresh_store_both_end_well_with_one_tokenizer(config_file, tmp_path):
    """Each would train a tokenizer of its own."""
    given = ["tokenizer.path=null", "tokenizer.kind=bpe", "tokenizer.vocab_size=200"]
    with locks.lock(tmp_path / ".store.lock"):  # until both wait for it
        processes = [run("pretrain", config_file, *given, f"out={tmp_path / name}") for name in ("a", "b")]
        for process in processes:
            waits = f"waiting for {tmp_path}/store, which process {os.getpid()} on "
            assert any(line.startswith(waits) for line in process.stdout)
    ends = finish(processes)
    assert [code for code, *_ in ends] == [0, 0], ends
    assert sum(f"preparing {tmp_path}/store" in said for _, said, _ in ends) == 1
    source = configs.text_source(configs.load(str(config_file)))
    meta = json.loads((tmp_path / "store" / "meta.json").read_text())
    store.prepare(tmp_path / "alone", source, load_tokenizer(tmp_path / "store"), meta["wanted"])
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["train/tokens.bin", "eval/sentences.bin", "train/counts.bin"])
def test_a_damaged_store_is_made_again(config_file, tmp_path, name, capsys):
    settings = configs.load(str(config_file))
    token_store.prepare_store(settings)
    before = contents(tmp_path / "store")
    flip(tmp_path / "store" / name)
    token_store.prepare_store(settings)  # this machine has seen these files
    assert contents(tmp_path / "store") != before
    capsys.readouterr()
    assert main(["prepare", str(config_file), "--verify"]) == 0
    assert f"preparing {tmp_path}/store (damaged: {name} is missing or changed)" in capsys.readouterr().out
    assert contents(tmp_path / "store") == before


def test_a_machine_that_has_not_seen_a_store_reads_it(config_file, tmp_path, monkeypatch, capsys):
    settings = configs.load(str(config_file))
    token_store.prepare_store(settings)
    flip(tmp_path / "store" / "train" / "tokens.bin")
    monkeypatch.setattr(verified.socket, "gethostname", lambda: "another")
    token_store.prepare_store(settings)
    assert "train/tokens.bin is missing or changed" in capsys.readouterr().out


def test_a_file_with_another_time_is_read_again(config_file, tmp_path):
    token_store.prepare_store(configs.load(str(config_file)))
    assert verified.fault(tmp_path / "store") is None
    flip(tmp_path / "store" / "train" / "tokens.bin")
    assert verified.fault(tmp_path / "store") is None
    os.utime(tmp_path / "store" / "train" / "tokens.bin", ns=(1, 1))
    assert verified.fault(tmp_path / "store") == "train/tokens.bin is missing or changed"
    (tmp_path / "store" / "train" / "tokens.bin").unlink()
    assert verified.fault(tmp_path / "store") == "train/tokens.bin is missing or changed"


def test_a_damaged_store_whose_text_is_gone_is_named(config_file, tmp_path):
    settings = configs.load(str(config_file))
    token_store.prepare_store(settings)
    os.truncate(tmp_path / "store" / "train" / "tokens.bin", 100)
    (tmp_path / "text.jsonl").unlink()
    place = re.escape(f"{tmp_path}/store: train/tokens.bin is missing or changed, and cannot be prepared again: ")
    with pytest.raises(InputError, match=place + r".*text\.jsonl: no such file"):
        token_store.prepare_store(settings)
    assert (tmp_path / "store" / "train" / "tokens.bin").exists()


def test_a_store_from_before_the_hashes_is_made_again_also_for_a_run_that_has_begun(config_file, tmp_path, capsys):
    settings = configs.load(str(config_file))
    token_store.prepare_store(settings)
    before, meta = contents(tmp_path / "store"), json.loads((tmp_path / "store" / "meta.json").read_text())
    digest = store.digest(tmp_path / "store")
    del meta["hashes"]
    (tmp_path / "store" / "meta.json").write_text(json.dumps(meta, indent=1))
    tokenizer = load_tokenizer(tmp_path / "store")
    begun = run_folder.InitialModel(model_section.model_config(settings, vocabulary_size(tokenizer)), tokenizer, step=1)
    token_store.prepare_store(settings, begun)
    assert "damaged: it was made without hashes" in capsys.readouterr().out
    assert contents(tmp_path / "store") == before
    assert store.digest(tmp_path / "store") == digest  # so that the run goes on


def test_a_store_that_another_run_has_replaced_is_not_trained_on(config_file, tmp_path, wordpiece):
    settings = configs.load(str(config_file))
    token_store.prepare_store(settings)
    tokenizer = load_tokenizer(tmp_path / "store")
    assert len(token_store.open_store(settings, tokenizer, None)) == 2
    store.prepare(tmp_path / "store", configs.text_source(settings), wordpiece, {})
    with pytest.raises(InputError, match="another run has replaced this store"):
        token_store.open_store(settings, tokenizer, None)


def test_a_store_replaced_before_the_run_loads_its_tokenizer_is_not_trained_on(config_file, tmp_path):
    settings, other = (
        configs.load(str(config_file), ["tokenizer.path=null", f"tokenizer.vocab_size={size}"]) for size in (80, 90)
    )
    token_store.prepare_store(settings)
    token_store.prepare_store(other)
    tokenizer = load_tokenizer(tmp_path / "store")  # the other run's
    assert len(token_store.open_store(other, tokenizer, None)) == 2
    with pytest.raises(InputError, match="another run has replaced this store"):
        token_store.open_store(settings, tokenizer, None)


def test_a_store_of_another_text_put_there_meanwhile_is_not_trained_on(config_file, tmp_path, wordpiece):
    wordpiece.save(str(tmp_path / "tokenizer.json"))
    given = [f"tokenizer.path={tmp_path / 'tokenizer.json'}"]
    settings = configs.load(str(config_file), given)
    token_store.prepare_store(settings)
    (tmp_path / "other.jsonl").write_text((tmp_path / "text.jsonl").read_text())
    token_store.prepare_store(configs.load(str(config_file), [*given, f"data.train={tmp_path / 'other.jsonl'}"]))
    with pytest.raises(InputError, match=r"another run has replaced this store \(train changed\)"):
        token_store.open_store(settings, wordpiece, None)


def test_what_killed_preparations_left_is_removed(config_file, tmp_path):
    key = "0123456789abcdef"
    others = [f".other.{key}.tmp", f".store.v2.{key}.tmp", f".store.v2.{key}.old", f".store.work-{key}"]
    for name in (f".store.{key}.tmp", f".store.{key}.old", *others):
        (tmp_path / name).mkdir()
    token_store.prepare_store(configs.load(str(config_file)))
    assert sorted(path.name for path in tmp_path.glob(".*")) == sorted(others)


def test_a_store_moved_away_by_a_killed_replacement_is_put_back(config_file, tmp_path, capsys):
    settings = configs.load(str(config_file))
    token_store.prepare_store(settings)
    before = contents(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / ".store.0123456789abcdef.old")
    capsys.readouterr()
    token_store.prepare_store(settings)
    assert contents(tmp_path / "store") == before
    assert "preparing" not in capsys.readouterr().out


@pytest.mark.parametrize("folder", [".", "/", ".."])
def test_a_store_without_a_name_is_refused(config_file, folder):
    with pytest.raises(InputError, match="give a named folder"):
        token_store.prepare_store(configs.load(str(config_file), [f"data.store={folder}"]))


def test_a_file_that_changes_while_it_is_checked_is_checked_again(config_file, tmp_path, monkeypatch):
    token_store.prepare_store(configs.load(str(config_file)))
    tokens, fault = tmp_path / "store" / "train" / "tokens.bin", store.fault

    def changed_at_the_end(folder: Path) -> str | None:
        found = fault(folder)
        tokens.write_bytes(bytes(tokens.stat().st_size))
        return found

    monkeypatch.setattr(store, "fault", changed_at_the_end)
    assert verified.fault(tmp_path / "store", always=True) is None
    monkeypatch.undo()
    assert verified.fault(tmp_path / "store") == "train/tokens.bin is missing or changed"


@pytest.fixture
def long(config_file, tmp_path) -> list[str]:
    """The arguments of a preparation that takes minutes."""
    line = json.dumps({"text": " ".join(f"Word{n} and word{n + 1}, or not." for n in range(400))}) + "\n"
    (tmp_path / "text.jsonl").write_text(line * 10_000)
    return [str(config_file), "data.workers=2"]


TASKS = ["--tasks", "2"]


@pytest.mark.parametrize(("number", "form"), [(signal.SIGTERM, []), (signal.SIGKILL, []), (signal.SIGKILL, TASKS)])
def test_workers_end_with_the_process_that_started_them(long, tmp_path, number, form):
    (tmp_path / "more.jsonl").write_text((tmp_path / "text.jsonl").read_text())
    process = run("prepare", *long, f"data.train=[{tmp_path}/text.jsonl,{tmp_path}/more.jsonl]", *form)
    wait_until(lambda: len(children(process)) == 2)
    workers = children(process)
    time.sleep(1)  # some are at work, some not yet
    process.send_signal(number)
    process.communicate()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10)


@pytest.mark.parametrize("form", [[], TASKS])
def test_a_killed_worker_is_told_in_one_line(long, tmp_path, form):
    (tmp_path / "more.jsonl").write_text((tmp_path / "text.jsonl").read_text())
    process = run("prepare", *long, f"data.train=[{tmp_path}/text.jsonl,{tmp_path}/more.jsonl]", *form)
    wait_until(lambda: len(children(process)) == 2)
    os.kill(children(process)[0], signal.SIGKILL)
    ((code, _, errors),) = finish([process], 60)
    assert code == 2
    told = r"error: a worker process was killed, most likely by the kernel .*data.workers \(2 now\) and prepare again\n"
    assert re.fullmatch(told, errors)


def test_when_the_first_process_is_killed_while_it_prepares_the_others_end_with_a_line(long):
    processes = start(Path(long[0]), 2, "lost", long[1])
    wait_until(lambda: len(children(processes[0])) == 2)
    time.sleep(1)
    processes[0].kill()
    (_, (code, _, errors)) = finish(processes, END)
    assert code != 0
    assert re.fullmatch(r"error: process 1: another process of this run ended \(.*\); start all processes .*\n", errors)
