"""Plans of epochs: the same in blocks, and shared through files that kills and damage cannot spoil."""

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bertgpt.data.pretraining import plans
from bertgpt.data.pretraining.packing import Packed
from bertgpt.data.pretraining.plans import Plan
from bertgpt.data.pretraining.sentence_pairs import BertPairs, pack_pairs
from bertgpt.data.pretraining.sentence_runs import SentenceRuns, pack_runs
from bertgpt.data.pretraining.windows import GptPieces
from bertgpt.errors import InputError
from train import config as configs
from train import loader
from train.folders.plans import PlanFolder, keep

HALVES = [np.arange(4, dtype=np.uint64), np.arange(4, 9, dtype=np.uint64)]


def make(epoch: int, gather: plans.Gather) -> Plan:
    """A plan in two blocks, with an array that is not part of it."""
    gather("draft", HALVES)
    return Plan({"rows": gather("rows", [half + epoch for half in HALVES])}, {"shift": epoch})


def never(epoch: int, gather: plans.Gather) -> Plan:
    raise AssertionError(f"the plan of epoch {epoch} was made again")


@pytest.fixture
def folder(tmp_path) -> PlanFolder:
    return PlanFolder(tmp_path / "host" / "key")


@pytest.mark.parametrize("sentences", [1, 7, 10**6])
def test_runs_and_pieces_do_not_depend_on_the_blocks(bert_split, gpt_split, wordpiece, sentences, monkeypatch):
    def everything() -> list[np.ndarray]:
        runs, pieces = SentenceRuns(bert_split, wordpiece, 32, 3), GptPieces(gpt_split, 32, 3)
        packed = [pack_runs(runs), Packed(pieces, 4, 3)]
        found = [source.plan(epoch) for source in (runs, pieces) for epoch in range(3)]
        return found + [array for source in packed for epoch in range(3) for array in source.plan(epoch)[0]]

    whole = everything()
    monkeypatch.setattr(plans, "SENTENCES", sentences)
    monkeypatch.setattr(plans, "BLOCK", sentences)
    for array, same in zip(everything(), whole, strict=True):
        np.testing.assert_array_equal(array, same)
        assert array.dtype == same.dtype


def test_blocks_are_whole_documents_of_about_the_same_number_of_sentences(bert_split, monkeypatch):
    monkeypatch.setattr(plans, "SENTENCES", 30)
    found = list(plans.document_blocks(bert_split))
    assert [first for first, _ in found] == [0, *(last for _, last in found[:-1])]
    assert found[-1][1] == len(bert_split.documents) - 1
    sizes = [int(bert_split.documents[last] - bert_split.documents[first]) for first, last in found]
    assert 23 <= min(sizes[:-1]) <= max(sizes) <= 37  # a document has up to 7 sentences


def test_a_pair_takes_16_bytes_of_a_plan_a_run_and_a_piece_8(bert_split, gpt_split, wordpiece):
    pairs = BertPairs(bert_split, wordpiece, 32, 0)
    assert pairs.plan(0).records.nbytes == 16 * len(pairs)
    runs = SentenceRuns(bert_split, wordpiece, 32, 0)
    assert runs.plan(0).nbytes == 8 * (len(runs) + 1)
    assert GptPieces(gpt_split, 32, 0).plan(0).itemsize == 8
    assert sum(array[:1].nbytes for array in pack_pairs(pairs).plan(0)[0]) == 4 + 2 + 4  # of a pair, and of a pack


def test_a_length_that_a_plan_cannot_hold_is_refused(bert_split, gpt_split, wordpiece):
    for source in (
        lambda length: BertPairs(bert_split, wordpiece, length, 0),
        lambda length: SentenceRuns(bert_split, wordpiece, length, 0),
        lambda length: GptPieces(gpt_split, length, 0),
    ):
        with pytest.raises(InputError, match=r"data\.sequence_length is 65536; it must be less than 65536"):
            source(1 << 16)
        source((1 << 16) - 1)


def test_a_plan_in_files_is_found_again_as_it_was_made(folder, tmp_path):
    made, found = folder("pairs", 3, make), PlanFolder(folder.folder)("pairs", 3, never)
    for plan in (made, found):
        assert plan.arrays["rows"].tolist() == list(range(3, 12))
        assert plan.arrays["rows"].dtype == np.uint64
        assert isinstance(plan.arrays["rows"].base, np.memmap)
        assert plan.facts == {"shift": 3}
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert names == {
        "host",
        "host/key",
        "host/key/pairs-3",
        *(f"host/key/pairs-3/{n}" for n in ("meta.json", "rows.bin")),
    }


@pytest.mark.parametrize("name", ["rows.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_plan_is_made_again(folder, name, damage):
    folder("pairs", 0, make)
    path = folder.folder / "pairs-0" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-1] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    assert folder("pairs", 0, make).arrays["rows"].tolist() == list(range(9))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": {"../rows": ["<u8", 9]}},
        {"arrays": {"rows": ["|O", 9]}},
        {"arrays": {"rows": ["<u8", 10**12]}},
        {"arrays": []},
        {"facts": {"shift": "many"}},
    ],
)
def test_a_meta_json_that_names_something_else_is_not_followed(folder, change):
    folder("pairs", 0, make)
    path = folder.folder / "pairs-0" / "meta.json"
    values = json.loads(path.read_text())
    values["hashes"]["../rows.bin"] = values["hashes"]["rows.bin"]
    (folder.folder / "rows.bin").write_bytes((folder.folder / "pairs-0" / "rows.bin").read_bytes())
    path.write_text(json.dumps(values | change))
    assert folder("pairs", 0, make).arrays["rows"].tolist() == list(range(9))


def test_plans_of_past_epochs_and_leftovers_are_removed(folder):
    for epoch in range(5):
        folder("pairs", epoch, make)
    folder("packs", 1, make)
    (folder.folder / ".pairs-5.abc.tmp").mkdir()
    folder("pairs", 5, make)
    names = {path.name for path in folder.folder.iterdir()}
    assert names == {"pairs-0", "pairs-3", "pairs-4", "pairs-5", "packs-1"}  # epoch 0 has the number of rows of all


def test_plans_of_sources_that_nothing_reads_are_removed_after_a_week(folder, monkeypatch):
    other, used = (PlanFolder(folder.folder.parent / name) for name in ("other", "used"))
    for source in (other, used):
        source("pairs", 0, make)
    for path in [*folder.folder.parent.rglob("*")]:
        os.utime(path, (0, time.time() - 8 * 86400))
    used("pairs", 0, never)  # reading counts as use
    folder("pairs", 0, make)
    assert {path.name for path in folder.folder.parent.iterdir()} == {"key", "used"}


def test_without_a_place_to_write_a_plan_is_made_in_memory(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    plan = PlanFolder(tmp_path / "file" / "key")("pairs", 0, make)
    assert plan.arrays["rows"].tolist() == list(range(9))
    error = capfd.readouterr().err
    assert f"{tmp_path}/file/key/pairs-0: cannot be written" in error
    assert "XDG_CACHE_HOME" in error


MAKE_SLOWLY = """
import sys, time
from pathlib import Path
import numpy as np
from bertgpt.data.pretraining.plans import Plan
from train.folders.plans import PlanFolder

def make(epoch, gather):
    print("making", flush=True)
    def blocks():
        for number in range(4):
            yield np.full(3, number)
            time.sleep(float(sys.argv[2]))
    return Plan({"rows": gather("rows", blocks())}, {})

print(PlanFolder(Path(sys.argv[1]))("pairs", 0, make).arrays["rows"].sum())
"""


def start(folder: PlanFolder, pause: float) -> subprocess.Popen:
    arguments = [sys.executable, "-c", MAKE_SLOWLY, str(folder.folder), str(pause)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_of_several_processes_one_makes_a_plan(folder):
    processes = [start(folder, 0.5) for _ in range(3)]
    lines = [line for process in processes for line in process.communicate()[0].splitlines()]
    told = [line for line in lines if line.startswith(f"waiting for {folder.folder}/pairs-0, which process ")]
    assert all(line.endswith(" is making") for line in told)
    assert sorted(line for line in lines if line not in told) == ["18", "18", "18", "making"]


def test_a_process_killed_while_it_makes_a_plan_leaves_nothing_behind(folder):
    process = start(folder, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "making\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (folder.folder / "pairs-0").exists()
    assert start(folder, 0).communicate()[0].split() == ["making", "18"]
    assert [path.name for path in folder.folder.iterdir()] == ["pairs-0"]


def test_plans_of_large_texts_are_in_files_named_by_all_that_decides_them(
    bert_split, plan_settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("train.folders.plans.store.digest", lambda folder, words: folder.name)
    config, _ = plan_settings("bert_tiny", "train.objective=mlm_nsp")

    def place(*overrides: str, store: str = "store", name: str = "train", seed: int = 0) -> Path:
        found = keep(configs.override(config, overrides), Path(store), bert_split, name, seed)
        assert isinstance(found, PlanFolder)
        return found.folder

    assert keep(config, Path("store"), bert_split, "train", 0) is plans.in_memory
    monkeypatch.setattr(plans, "SENTENCES", 10)
    changed = ["data.sequence_length=32", "data.pack=true", "data.balance_nsp=false", "train.objective=mlm"]
    places = [place(), place(store="other"), place(name="eval"), place(seed=1), *map(place, changed)]
    assert len(set(places)) == len(places)
    assert place("data.mask_rate=0.3", "train.steps=5", "seed=3") == places[0]
    assert places[0].is_relative_to(tmp_path / "bertgpt" / "plans")


@pytest.mark.parametrize("make_source", [BertPairs, SentenceRuns, lambda *given: pack_pairs(BertPairs(*given))])
def test_over_several_epochs_each_plan_is_made_once(make_source, bert_split, wordpiece):
    source = make_source(bert_split, wordpiece, 32, 0)
    made: list[int] = []
    find = source._find_plan

    def count(epoch: int):
        made.append(epoch)
        return find(epoch)

    source.plan = functools.lru_cache(plans.KEPT)(count)
    rows = 4 * len(source)
    for _ in itertools.islice(loader.batches(loader.PlannedAhead(source, rows), 8, 0), rows // 8):
        pass
    time.sleep(0.2)
    assert {0, 1, 2, 3} <= set(made) <= {0, 1, 2, 3, 4}  # the loader prefetches rows
    assert len(made) <= len(set(made)) + 2  # the loader and the thread may both make one at the same time


class Planned:
    """Rows, and a note of each epoch that is planned."""

    def __init__(self, fails: bool = False) -> None:
        self.planned: list[int] = []
        self.fails = fails

    def __len__(self) -> int:
        return 10

    def plan(self, epoch: int) -> None:
        self.planned.append(epoch)
        if self.fails:
            raise OSError

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"row": rows}


@pytest.mark.parametrize(("rows", "expected"), [(10, []), (11, [1]), (30, [1, 2]), (35, [1, 2, 3])])
@pytest.mark.parametrize("fails", [False, True])
def test_the_plan_of_the_next_epoch_is_made_ahead_if_the_run_reaches_it(rows, expected, fails):
    source = Planned(fails)
    ahead = loader.PlannedAhead(source, rows)
    taken = [batch["row"] for batch in itertools.islice(loader.batches(ahead, 5, 0), -(-rows // 5))]
    assert len(np.unique(taken)) == 5 * -(-rows // 5)
    for _ in range(100):
        if len(source.planned) == len(expected):
            break
        time.sleep(0.05)
    assert sorted(source.planned) == expected


def test_the_rows_of_a_batch_come_from_everywhere_in_the_text(bert_split, wordpiece):
    source = BertPairs(bert_split, wordpiece, 32, 0)
    rows = np.concatenate([rows["row"] for rows in itertools.islice(loader.batches(Numbers(len(source)), 8, 0), 20)])
    starts = source.plan(0).records[rows, 0].astype(float)
    assert abs(np.corrcoef(starts[1:], starts[:-1])[0, 1]) < 4 / len(rows) ** 0.5


class Numbers:
    """The row numbers themselves."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"row": rows}
