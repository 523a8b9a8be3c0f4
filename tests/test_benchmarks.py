"""The benchmarks' own arithmetic, and most commands once with a model of a few numbers."""

import json
import os
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accelerators, device_report, side_by_side
from benchmarks.side_by_side import Range, Side, Work
from bertgpt.config import ModelConfig
from bertgpt.data.text.text_source import TextSource
from bertgpt.errors import InputError
from train.jobs import objectives
from train.sections import ParallelSection

SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 64, "max_positions": 64, "vocab_size": 64}


def tiny(architecture: str) -> ModelConfig:
    return ModelConfig(architecture=architecture, **SIZES)


@pytest.fixture
def tiny_presets(monkeypatch):
    """Every preset is tiny."""
    from bertgpt import presets

    monkeypatch.setattr(presets, "get", lambda name, **_: tiny("gpt" if name.startswith("gpt") else "bert"))


def counting() -> Work:
    """Two units, of 10 and 30 tokens."""
    done: list[int] = []
    return Work(done.append, lambda: None, [{"tokens": 10}, {"tokens": 30}], {"done": done})


def refusing() -> Work:
    raise InputError("too wide")


def dying() -> Work:
    os._exit(3)


def test_spreads_and_ratios_come_from_timings_and_from_pairs_of_them():
    ours, theirs = ({"timings": [{"tokens": n} for n in speeds]} for speeds in ((4.0, 9.0, 2.0), (2.0, 3.0, 2.0)))
    assert side_by_side.of(ours, "tokens") == Range(4, 2, 9)
    assert side_by_side.ratio(ours, theirs, "tokens") == Range(2, 1, 3)
    assert side_by_side.show(Range(1234.5, 1, 2000), 1) == "1,234.5 (1.0 to 2,000.0)"


def test_rates_count_what_each_unit_holds(monkeypatch):
    monkeypatch.setattr(side_by_side, "timed", lambda work, numbers: 2.0)
    assert side_by_side.rates(counting(), [0, 1, 0]) == {"seconds": 2 / 3, "tokens": 25}


def test_utilisation_needs_a_known_device():
    result = {"about": {"device": "NVIDIA H100 80GB HBM3", "devices": 2}, "timings": [{"flops": 989e12}]}
    assert side_by_side.utilisation(result).median == 0.5
    assert side_by_side.utilisation(result | {"about": {"device": "AMD EPYC, 2 cores", "devices": 1}}) is None


class Asking:
    """The other end of a side's pipe: asks what is listed, and is gone then."""

    def __init__(self, *requests: str) -> None:
        self.requests, self.answers = list(requests), []

    def recv(self) -> str:
        if not self.requests:
            raise EOFError
        return self.requests.pop(0)

    def send(self, answer) -> None:
        self.answers.append(answer)


def test_a_side_is_warm_before_it_is_timed(monkeypatch):
    """Both units twice; a timing then does one that is not counted, and both as often as fills the time."""
    monkeypatch.setattr(side_by_side, "timed", lambda work, numbers: [work.step(number) for number in numbers] and 1.0)
    monkeypatch.setattr(side_by_side, "SECONDS", 2.5)
    asking = Asking("time", "time", "about")
    side_by_side.serve(asking, (counting,))
    compiled, first, second, about = asking.answers
    assert compiled == 0
    timing = [0, *(0, 1), *(0, 1), *(0, 1)]
    assert about["done"] == [*(0, 1), *(0, 1), *timing, *timing]
    assert first["tokens"] == second["tokens"] == 3 * (10 + 30)  # a second
    assert about["peak_bytes"] > 1e6


def test_what_goes_wrong_in_a_sides_process_is_raised_here():
    with pytest.raises(InputError, match="too wide"):
        Side((refusing,))
    with pytest.raises(RuntimeError, match="ended with 3"):
        Side((dying,))


def later() -> Work:
    """Is there when it is asked for, and gone when it is asked for more."""
    return Work(lambda _: None, lambda: None, [{"tokens": 1}], {"left": threading.Timer(0.5, os._exit, [3]).start()})


def test_a_side_that_dies_while_it_is_idle_is_told():
    side = Side((later,))
    side.process.join()
    with pytest.raises(RuntimeError, match="ended with 3; out of memory"):
        side.ask("time")


def test_batches_are_of_the_same_random_text_alone_and_packed():
    from benchmarks.train_step import amounts, make_batches

    for architecture in ("bert", "gpt"):
        plain, packed = make_batches(tiny(architecture), "random", 4, 64, False, True)
        for batch in (*plain, *packed):
            assert batch["input_ids"].shape == (4, 64)
            assert batch["input_ids"].max() < 64
        assert "pack_ids" in packed[0]
        assert "pack_ids" not in plain[0]
    counted = amounts(tiny("gpt"), plain)[0]
    assert (counted["tokens"], counted["real_tokens"]) == (256, 256)
    assert counted["flops"] > 0


BATCH = {
    "input_ids": np.array([[2, 9, 3, 0, 0], [2, 4, 8, 3, 0]]),
    "attention_mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]),
    "token_type_ids": np.zeros((2, 5), int),
    "masked_positions": np.array([[1, 0], [1, 2]]),
    "labels": np.array([[7, 0], [5, 6]]),
    "loss_mask": np.array([[1.0, 0.0], [1.0, 1.0]]),
    "next_sentence_label": np.array([0, 1]),
    "nsp_loss_mask": np.ones(2),
}


def test_their_labels_stand_where_tokens_were_masked():
    from benchmarks.train_step import shorten, their_inputs

    expected = [[-100, 7, -100, -100], [-100, 5, 6, -100]]
    assert their_inputs(BATCH)["labels"][:, :4].tolist() == expected
    short = their_inputs(shorten(BATCH))
    assert short["labels"].tolist() == expected
    assert short["input_ids"].tolist() == [[2, 9, 3, 0], [2, 4, 8, 3]]
    causal = {"input_ids": BATCH["input_ids"], "labels": np.ones((2, 5), int), "loss_mask": BATCH["attention_mask"]}
    assert their_inputs(causal)["shift_labels"].tolist() == [[1, 1, 1, -100, -100], [1, 1, 1, 1, -100]]


def test_places_are_the_middles_of_equal_parts():
    from benchmarks.generate import places

    assert places(16, 256, 4) == [48, 112, 176, 240]


def test_without_torch_the_comparison_is_refused_in_one_line(monkeypatch, capsys):
    from benchmarks import generate, train_step

    monkeypatch.setattr(side_by_side.importlib.util, "find_spec", lambda name: None)
    for command in (train_step, generate):
        assert side_by_side.leave(lambda command=command: command.main(["--against", "transformers"])) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "needs torch" in error


def test_sizes_beyond_the_model_are_refused():
    from benchmarks import checkpoint, generate, train_step

    for command in (train_step, checkpoint):
        with pytest.raises(InputError, match="from 8 to 512"):
            command.main(["--length", "513"])
    with pytest.raises(InputError, match="from 4 to 496"):
        generate.main(["--new", "512"])


@pytest.mark.parametrize("model", ["bert_tiny", "gpt1"])
def test_the_train_step_is_timed_and_written_down(model, tiny_presets, tmp_path, capsys, monkeypatch):
    from benchmarks import train_step

    monkeypatch.setenv("XLA_FLAGS", "")  # one device in the side's process
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    sizes = ["--batch", "8", "--length", "32", "--repeats", "2"]
    train_step.main(["--model", model, *sizes, "--pack", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| bertgpt | " in printed
    name = f"train_step_{model}_8x32_float32_random_packed"
    report = json.loads((tmp_path / f"{name}.json").read_text())
    timings = report["sides"]["bertgpt"]["timings"]
    assert len(timings) == 2
    assert all(timing["tokens"] >= timing["real_tokens"] > 0 for timing in timings)
    assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_the_hosts_time_is_that_of_calls_without_pauses():
    from benchmarks.host_time import Call, summary

    calls, clock = [], 0.0
    for number in range(1, 14):  # a row of metrics after every fourth step, 10 seconds long
        calls.append(Call(clock, clock + 1, clock + 101, number * 4.0))
        clock += 101 + (12 if number % 4 == 0 else 2)
    host = summary(calls, 4)
    assert host == ((5.5, 5.5, 5.5), (4, 4, 4), 1, 10)


@pytest.mark.parametrize("strategy", ["jit", "pmap", "mesh"])
def test_the_host_is_timed_in_the_loop_of_a_run(strategy):
    from benchmarks import host_time, train_step

    config = tiny("bert")
    run = train_step.make_run(config, 8, 32)
    run.train.log_every = 3
    (source,) = train_step.make_sources(config, "random", run, False)
    objective = objectives.make_objective("mlm_nsp", objectives.make_model("mlm_nsp", config))
    section = ParallelSection(strategy, data=1 if strategy == "jit" else 2)
    host = host_time.measure(run, objective, source, section, 0.001)
    assert 0 < host.dispatch < host.step.high
    assert 0 < host.cpu.low <= host.cpu.high
    assert "of a step of 50 ms" in host_time.describe(host, 0.05)


def test_a_save_is_timed_with_the_steps_beside_it():
    from benchmarks import checkpoint

    written, steps = threading.Event(), []

    def step():
        time.sleep(0.02)
        steps.append(0)
        if len(steps) == 3:
            written.set()

    manager = types.SimpleNamespace(wait=written.wait)
    checkpoints = types.SimpleNamespace(
        manager=manager, save=lambda *_: time.sleep(0.03), wait=lambda: time.sleep(0.04)
    )
    one = checkpoint.save(checkpoints, 1, None, step)
    assert len(one.steps) == len(steps) >= 3
    assert (one.copied >= 0.03, one.hashed >= 0.04) == (True, True)
    assert one.stall == one.copied + one.hashed
    assert one.whole >= 0.03 + 0.04 + 3 * 0.02


def test_a_checkpoint_is_taken_apart(tiny_presets, tmp_path, capsys, monkeypatch):
    from benchmarks import checkpoint

    monkeypatch.setattr(checkpoint, "ParallelSection", lambda: ParallelSection(strategy="jit"))
    checkpoint.main(["--batch", "8", "--length", "32", "--saves", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "checkpoint_bert_base.json").read_text())
    assert report["bytes"] > 1000
    stall, whole = (report["seconds"][name][0] for name in ("stall", "whole"))
    np.testing.assert_allclose(report["stall_percent"][0], 100 * stall / whole)
    assert (tmp_path / "checkpoint_bert_base.png").stat().st_size > 1000
    assert [line.split(":")[0] for line in printed.splitlines()[1:-1]] == [
        "copied",
        "hashed",
        "stall",
        "whole",
        "stall / whole",
        "a step",
    ]


def test_the_loader_is_timed_packed_and_not(bert_split, wordpiece, tmp_path, capsys, monkeypatch):
    from benchmarks import loader

    monkeypatch.setattr(loader, "demo_split", lambda: (bert_split, wordpiece))
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    loader.main(["--length", "32", "64", "--batch", "2", "--batches", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    names = ["32", "32, packed", "64", "64, packed"]
    assert [line.split(":")[0] for line in printed[:4]] == [f"length {name}" for name in names]
    speeds = json.loads((tmp_path / "loader.json").read_text())["speeds"]
    assert list(speeds) == names
    assert all(speed[0] > 0 for speed in speeds.values())


def test_the_loader_of_a_large_store_is_measured_in_several_processes(tmp_path, capsys):
    from benchmarks import loader

    kinds = ["mlm_nsp", "mlm+packed"]
    loader.main(["--pairs", "1000", "--processes", "2", "--batch", "8", "--out", str(tmp_path), "--kinds", *kinds])
    _, _, *table = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    assert [(row[0].split(" ")[2].rstrip(","), row[1]) for row in cells] == [
        (kind, plan) for kind in kinds for plan in ("none", "found")
    ]
    pairs = int(cells[0][0].split()[0].replace(",", ""))
    assert 900 < pairs < 1100
    for row in cells:
        assert float(row[2].removesuffix(" s")) > 0
        assert 10 < float(row[4].removesuffix(" MiB").replace(",", "")) < 1000


def test_encoding_is_timed_for_every_kind_of_task(wordpiece, capsys, monkeypatch):
    from benchmarks import encode

    source = types.SimpleNamespace(documents=lambda split: [["the cat sat on a mat . " * 40]])
    monkeypatch.setattr(encode, "demo", lambda: (source, wordpiece))
    encode.main(["--rows", "12"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[4:]] == [f"| {kind}" for kind in encode.KINDS]


def test_preparation_is_timed_beside_the_tokenizers_own_call(corpus_file, wordpiece, tmp_path, capsys, monkeypatch):
    from benchmarks import prepare

    monkeypatch.setattr(prepare, "demo", lambda: (TextSource(str(corpus_file), eval_fraction=0.1), wordpiece))
    monkeypatch.setitem(os.environ, "RAYON_NUM_THREADS", "1")
    prepare.main(["--workers", "1", "--copies", "1", "--rounds", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "prepare / encode_batch, 1 workers: " in printed
    report = json.loads((tmp_path / "prepare.json").read_text())
    speeds = report["speeds"]
    np.testing.assert_allclose(report["ratio"][0], speeds["prepare"][0] / speeds["encode_batch"][0])


def test_generation_counts_the_tokens_that_it_adds():
    from benchmarks.generate import anew, cached, make_prompt

    prompt = make_prompt(tiny("gpt"), 2, 4)
    whole, plain = cached(tiny("gpt"), "float32", prompt, 8), anew(tiny("gpt"), "bfloat16", prompt, 8, 2)
    for work, tokens in ((whole, 16), (plain, 4)):
        work.step(0)
        work.wait()
        assert work.amounts == [{"tokens": tokens}]


def test_generation_is_timed_beside_reading_anew(tiny_presets, tmp_path, capsys, monkeypatch):
    from benchmarks import generate

    monkeypatch.setattr(side_by_side, "SECONDS", 0.01)
    generate.main(["--new", "8", "--prompt", "4", "--plain-tokens", "2", "--repeats", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "gpt1, float32, batch 1, 8 new tokens after 4"
    (run,) = json.loads((tmp_path / "generate_gpt1.json").read_text())["runs"]
    speeds = {name: [timing["tokens"] for timing in side["timings"]] for name, side in run["sides"].items()}
    pairs = sorted(mine / other for mine, other in zip(*speeds.values(), strict=True))
    np.testing.assert_allclose(run["ratios"]["anew"], [sum(pairs) / 2, *pairs])


def test_the_first_word_is_timed(capsys, monkeypatch):
    from benchmarks import start

    monkeypatch.chdir(start.__file__.removesuffix("benchmarks/start.py"))
    start.main(["--runs", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 runs each")
    assert [line.split(":")[0] for line in lines[1:]] == list(start.COMMANDS)


@pytest.mark.parametrize(
    ("devices", "topology"),
    [
        ("1 x TPU v5 lite (tpu)", "v5e:1x1"),
        ("8 x TPU v6 lite (tpu)", "v6e:2x4"),
        ("4 x TPU v5 (tpu)", "v5p:2x2x1"),
        ("8 x TPU v5 (tpu)", "v5p:2x2x2"),
        ("2 x NVIDIA H100 80GB HBM3 (gpu)", "h100:2"),
        ("1 x NVIDIA L4 (gpu)", None),
        ("1 x cpu (cpu)", None),
    ],
)
def test_a_device_report_puts_estimates_beside_what_a_device_measures(devices, topology):
    found = list(device_report.parts(f"jax 0.10.2\ndevices: {devices}", quick=False))
    titles = [title for title, *_ in found]
    steps = [title.removeprefix("Train step: ") for title in titles if title.startswith("Train step")]
    accounts = [arguments for title, arguments, _ in found if title.startswith("The compiler's account")]
    assert len(steps) == 22
    assert len(accounts) == (22 if topology else 0)
    for _, _, *arguments in accounts:
        options = accelerators.parse(arguments)
        assert (options.topologies, len(options.recipes), len(options.overrides)) == ([topology], 1, 5)
    assert found[0][2]["JAX_PLATFORMS"] == {"tpu": "tpu,cpu", "gpu": "cuda,cpu", "cpu": "cpu,cpu"}[devices[-4:-1]]
    assert all((Path(__file__).parents[1] / name).exists() for name in found[0][1] if name.endswith(".py"))


def test_a_device_report_has_every_part_though_one_fails(tmp_path, monkeypatch):
    commands = [("Good", "print('fine')"), ("Bad", "raise SystemExit('too hot')"), ("Last", "print('also')")]
    parts = [(title, ["-c", code], {"X": "1"}) for title, code in commands]
    monkeypatch.setattr(device_report, "parts", lambda versions, quick: parts)
    assert device_report.main(["--out", str(tmp_path / "new" / "report.md")]) == 1
    text = (tmp_path / "new" / "report.md").read_text()
    assert text.index("\njax ") < text.index("## Good") < text.index("fine\n") < text.index("## Bad")
    assert text.index("It failed with exit code 1:\n\n```\ntoo hot\n```") < text.index("also")
    assert "`X=1 python -c print('fine')`" in text


def test_the_recipes_that_are_compiled_for_accelerators_are_all_that_pretrain():
    folder = Path(__file__).parents[1] / "configs"
    assert set(accelerators.RECIPES) == {path.stem for path in folder.glob("*.yaml")}
