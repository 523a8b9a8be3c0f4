"""Signals, stalls and profiles."""

import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bertgpt
from train import flops
from train.config import load, parse_steps
from train.watching import Profile, Stop, Watchdog

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_at_once_and_ctrl_c_then_ends_the_run(number, capfd):
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        os.kill(os.getpid(), number)
        answer = f"{number.name}: stopping after this step, with a checkpoint; Ctrl-C now ends the run at once"
        assert answer in capfd.readouterr().err
        assert stop.requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handler_put_back(number):
    before = signal.getsignal(number)
    with Stop() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert stop.received == number
    assert signal.getsignal(number) == before


def test_what_stalls_is_told_and_again_when_the_time_has_doubled(tmp_path):
    told: list[float] = []
    with Watchdog(0.2, tmp_path / "stalled.txt", lambda text: told.append(watchdog.told)) as watchdog:
        watchdog.at("step 3")
        for _ in range(1000):
            time.sleep(0.01)
            if len(told) == 3:
                break
    first, second, third = told
    assert (first > 0.2, second > 2 * first, third > 2 * second) == (True, True, True)
    assert (tmp_path / "stalled.txt").read_text().count(" stalled: step 3 has taken 0 s\n") > 0


def wait_for_an_event(event: threading.Event) -> None:
    event.wait(20)


def wait_for_stacks(file: Path) -> None:
    for _ in range(2000):
        time.sleep(0.01)
        if file.exists() and "wait_for_stacks" in file.read_text():
            break


def test_what_is_done_is_no_stall_and_what_stalls_is_named_with_its_calls_and_the_stacks_of_all_threads(tmp_path):
    told: list[str] = []
    event, stacks = threading.Event(), tmp_path / "stalled_3.txt"
    other = threading.Thread(target=wait_for_an_event, args=(event,))
    other.start()
    with Watchdog(1, stacks, lambda text: told.append(f"{text} {stacks.exists()}")) as watchdog:
        watchdog.at("step 3")
        watchdog.at("step 4")
        watchdog.since -= 5
        wait_for_stacks(stacks)
    event.set()
    other.join()
    watchdog._thread.join()
    (line,) = told
    calls = r"test_watching\.py:\d+ wait_for_stacks < test_watching\.py:\d+ test_what_is_done_is_no_stall\w+"
    assert re.match(
        rf"stalled: step 4 has taken 5 s, in {calls}( < \w+\.py:\d+ \w+){{2}}; stacks of all threads: ", line
    )
    assert line.endswith(f": {stacks} False")  # it is logged before the file is written
    text = stacks.read_text()
    assert re.match(r"\n\d{4}-\d\d-\d\d \d\d:\d\d:\d\d stalled: step 4 has taken 5 s\n", text)
    assert all(f" in {name}\n" in text for name in ("wait_for_stacks", "wait_for_an_event", "_report"))


def test_a_stall_is_told_where_its_stacks_cannot_be_written(tmp_path):
    told: list[str] = []
    watchdog = Watchdog(1, tmp_path / "missing" / "stalled_0.txt", told.append)
    watchdog._report("stalled: step 4 has taken 5 s")
    assert len(told) == 2
    assert told[1].startswith("the stacks could not be written: ")


def test_a_watchdog_of_0_seconds_never_tells(tmp_path):
    with Watchdog(0, tmp_path / "stalled.txt", print) as watchdog:
        assert not watchdog._thread.is_alive()


@pytest.mark.parametrize(("name", "code"), [("SIGUSR1", 0), ("SIGSEGV", -signal.SIGSEGV)])
def test_a_signal_shows_the_stacks_of_a_command(name, code):
    kill = f"def stuck(): os.kill(os.getpid(), signal.{name})"
    lines = ["import os, signal", "from train import __main__ as program", kill, "program.main = stuck"]
    command = [sys.executable, "-c", "\n".join([*lines, "program.console()"])]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert " in stuck\n" in ended.stderr


def test_a_command_runs_with_stderr_closed():
    code = "from train import __main__ as program; program.main = lambda: 0; program.console()"
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} 2>&-"
    assert subprocess.run(shell, shell=True, cwd=ROOT, check=False).returncode == 0


def test_chosen_steps_are_traced(tmp_path):
    profile = Profile("2:3", tmp_path / "profile")
    ended = []
    for step in range(1, 6):
        profile.before(step)
        assert (tmp_path / "profile").exists() == (step > 3) or step in (2, 3)
        ended.append(profile.after(step, jnp.ones(2) + step))
    assert ended == [False, False, True, False, False]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_run_that_begins_or_ends_within_the_steps_traces_those_that_it_makes(tmp_path):
    profile = Profile("2:9", tmp_path / "late")
    profile.before(7)
    assert not profile.after(7, jnp.ones(2))
    profile.end()
    profile.end()
    assert list((tmp_path / "late").rglob("*.xplane.pb"))
    later = Profile("2:9", tmp_path / "later")
    later.before(10)
    assert not later.after(10, jnp.ones(2))


@pytest.mark.parametrize("text", ["100", "5:4", "0:4", "a:b", "1:2:3", ":"])
def test_steps_that_are_none_are_refused(text):
    with pytest.raises(bertgpt.InputError, match="train.profile"):
        parse_steps(text)
    assert parse_steps("100:105") == (100, 105)


def test_steps_are_no_number_to_base_60(tmp_path):
    (tmp_path / "run.yaml").write_text("train: {profile: 2:30}")
    assert load(str(tmp_path / "run.yaml")).train.profile == "2:30"
    assert load(str(tmp_path / "run.yaml"), ["train.profile=1:40"]).train.profile == "1:40"


KINDS = {  # names as JAX gives them -> bfloat16 TFLOP/s
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A100-SXM4-80GB MIG 1g.10gb": None,
    "NVIDIA A10": 125,
    "NVIDIA A10G": 70,
    "NVIDIA A1000": None,
    "NVIDIA L4": 121,
    "NVIDIA L40": 181.05,
    "NVIDIA L40S": 362.05,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H200": 989,
    "NVIDIA H200 NVL": 835,
    "NVIDIA GH200 480GB": 989,
    "NVIDIA B200": 2250,
    "NVIDIA B300 SXM6 AC": 2250,
    "NVIDIA GB200": 2500,
    "NVIDIA GB300": 2500,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA GeForce RTX 5090": 209.5,
    "NVIDIA GeForce RTX 5090 D v2": None,
    "NVIDIA GeForce RTX 5090 Laptop GPU": None,
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": 503.8,
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": 438.9,
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": 480,
    "Tesla V100-SXM2-16GB": None,
    "Tesla T4": None,
    "AMD Instinct MI300X": 1307.4,
    "AMD Instinct MI300X VF": 1307.4,
    "AMD Instinct MI325 OAM": 1307.4,
    "AMD Instinct MI350X VF": 2306.9,
    "AMD Instinct MI355X": 2516.6,
    "AMD Instinct MI355 OAM": 2516.6,
    "TPU v2": 23,
    "TPU v3": 61.5,
    "TPU v4": 275,
    "TPU v4 lite": None,
    "TPU v5": 459,
    "TPU v5p": 459,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v6 lite": 918,
    "TPU v6e": 918,
    "TPU7x": 1153.5,
    "TPU8i": None,
    "cpu": None,
}


def test_the_peak_of_a_device_is_that_of_its_longest_name():
    found = {kind: flops.peak(kind) for kind in KINDS}
    assert found == {kind: rate and rate * 1e12 for kind, rate in KINDS.items()}


def products(jaxpr) -> int:
    """Operations of every product in a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * equation.outvars[0].aval.size
        total += sum(products(inner.jaxpr) for inner in equation.params.values() if hasattr(inner, "jaxpr"))
    return total


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt"])
def test_operations_are_those_of_the_products_in_the_program(name, request):
    model, ids = request.getfixturevalue(name), jnp.zeros((2, 24), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)["params"]
    options = {"masked_positions": jnp.zeros((2, 9), jnp.int32)} if name == "tiny_bert" else {}
    traced = jax.make_jaxpr(lambda params: model.apply({"params": params}, ids, **options))(params)
    pooler_and_nsp = 2 * 2 * (16 * 16 + 16 * 2) if options else 0
    expected = flops.forward_flops(model.config, 2, 24, 9 if options else 24) + pooler_and_nsp
    assert products(traced.jaxpr) == expected


def test_an_update_costs_three_forward_passes_of_what_the_batch_holds():
    config = bertgpt.presets.bert_tiny()
    shape = lambda *sizes: np.empty(sizes)  # noqa: E731
    bert = {"input_ids": shape(4, 16), "masked_positions": shape(4, 2), "labels": shape(4, 2)}
    assert flops.step_flops(config, bert) == 3 * flops.forward_flops(config, 4, 16, 2)
    assert flops.step_flops(config, {"input_ids": shape(4, 3, 16), "labels": shape(4)}) == 3 * flops.forward_flops(
        config, 12, 16, 0
    )
    gpt = bertgpt.presets.gpt1()
    assert flops.step_flops(gpt, {"input_ids": shape(4, 16), "labels": shape(4, 16)}) == 3 * flops.forward_flops(
        gpt, 4, 16, 16
    )
    assert flops.step_flops(gpt, {"input_ids": shape(4, 16), "labels": shape(4)}) == 3 * flops.forward_flops(
        gpt, 4, 16, 0
    )


@pytest.mark.parametrize("does", ["time.sleep(30)", "return 0", "return 2", "raise SystemExit(3)"])
def test_ctrl_c_ends_a_command_whatever_becomes_of_the_exception(does):
    code = f"""
import os, signal, sys, time
from train import __main__ as program, interrupts

def main():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    except KeyboardInterrupt:  # as a callback of JAX's swallows it
        print("Traceback", file=sys.stderr)
    {does}

interrupts.GRACE, program.main = 0.2, main
program.console()
"""
    begun = time.monotonic()
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (3 if "Exit" in does else 130, "\nstopped by Ctrl-C\n")
    assert time.monotonic() - begun < 20
