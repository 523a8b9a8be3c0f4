"""What is said of a run that is compiled for other devices; tests/aot has the compilations."""

import jax
import pytest

import bertgpt
from train import config as configs
from train import targets
from train.__main__ import main
from train.jobs import compiling, planning
from train.jobs.compiling import Compiled

V5E = targets.TARGETS["v5e"]


@pytest.mark.parametrize("topology", ["v5e", "v5e:", "v5e:2x", "v9:2x2", "h100:eight", "h100:-1", "2x4", "v5e:²x4"])
def test_a_topology_of_another_form_is_refused(plan_settings, capsys, topology):
    assert main(["plan", str(plan_settings("gpt1")[1]), "--topology", topology]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --topology {topology}: give a kind of accelerator and the number of devices")


@pytest.mark.parametrize(("topology", "extra", "made"), [("v5e:2x4", "aot-tpu", "tpu"), ("h100:8", "cuda", "cuda")])
def test_a_missing_compiler_is_named(plan_settings, capsys, monkeypatch, topology, extra, made):
    monkeypatch.setattr(targets, "COMPILERS", {"tpu": ("no_libtpu",), "cuda": ("no_plugin", "none")})
    assert main(["plan", str(plan_settings("gpt1")[1]), "--topology", topology]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"pip install 'bertgpt[{extra}]', or in a clone: make install EXTRA={made}")


def test_a_plan_is_for_a_topology_or_for_devices(plan_settings, capsys):
    assert main(["plan", str(plan_settings("gpt1")[1]), "--topology", "v5e:2x4", "--devices", "8"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "needed"),
    [
        ("the total memory required for HLO temporaries (74.50G) exceeds available HBM (15.75G).", int(74.5 * 2**30)),
        ("Ran out of memory in memory space hbm. Used 512.25M of 15.75G hbm. Exceeded", int(512.25 * 2**20)),
        ("Ran out of memory.", 0),
    ],
)
def test_the_bytes_that_a_compiler_asks_for(error, needed):
    assert compiling._needed(error) == needed


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Compiled({}, "text", 3 * 2**30), "fits: it needs 3.00 of a device's 15.75 GiB; 12.75 GiB are left"),
        (Compiled({}, "text", 16 * 2**30), "does not fit: it needs 16.00 of a device's 15.75 GiB, 0.25 GiB too much"),
        (
            Compiled({}, "", 20 * 2**30),
            "does not fit: it needs 20.00 of a device's 15.75 GiB, 4.25 GiB too much",
        ),
        (Compiled({}, "", 0), "does not fit: it needs more than a device's 15.75 GiB"),
    ],
)
def test_whether_a_step_fits(step, expected):
    assert compiling.verdict(step, V5E) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1.5, ["train.accumulate=2", "train.remat=dots", "train.remat=full", "parallel.fsdp=8"]),
        (2.5, ["train.remat=dots", "train.remat=full", "parallel.fsdp=8"]),
    ],
)
def test_remedies_are_tried_in_order_without_those_that_cannot_help(plan_settings, share, expected):
    plan = planning.make_plan(plan_settings("gpt1", "parallel.fsdp=2")[0])
    figures = planning.exact(plan)
    lasting = 2 * figures["parameter_bytes"] + figures["optimizer_bytes"]
    memory = lasting + 1000
    needed = lasting + int(share * 1000)
    assert list(compiling.remedies(plan, Compiled({}, "", needed), memory)) == expected
    assert list(compiling.remedies(plan, Compiled({}, "", needed), lasting - 1)) == ["parallel.fsdp=8"]


def test_a_single_device_has_no_remedy_by_sharding(plan_settings):
    plan = planning.make_plan(plan_settings("gpt1", "parallel.strategy=jit", "train.remat=dots")[0])
    expected = [*(f"train.accumulate={count}" for count in (2, 4, 8, 16)), "train.remat=full"]
    assert list(compiling.remedies(plan, Compiled({}, "", 0), 2**40)) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.remat=full", "train.batch_size=8"], []),
        (["parallel.strategy=pmap", "train.remat=full", "train.batch_size=8"], ["parallel.strategy=mesh"]),
        (["parallel.data=4", "train.remat=full", "train.batch_size=4"], ["parallel.data=1 parallel.fsdp=4"]),
        (["train.remat=dots", "train.batch_size=8"], ["train.remat=full"]),
    ],
)
def test_remedies_are_settings_that_a_run_accepts(plan_settings, overrides, expected):
    plan = planning.make_plan(plan_settings("gpt1", *overrides)[0])
    found = list(compiling.remedies(plan, Compiled({}, "", 0), 2**40))
    assert found == expected
    for remedy in found:
        assert planning.make_plan(configs.override(plan.config, remedy.split())).state == plan.state


@pytest.mark.parametrize("sizes", ["12", "0", "8x2"])
def test_gpus_come_in_whole_hosts(sizes):
    with pytest.raises(bertgpt.InputError, match=f"h100:{sizes}: give up to 8 GPUs, or a multiple of them"):
        targets._gpus("h100", sizes)


def test_jax_keeps_no_program_for_an_absent_device_and_then_keeps_programs_again():
    def fail():
        with compiling._without_jax_cache():
            assert not jax.config.jax_enable_compilation_cache
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert jax.config.jax_enable_compilation_cache
