"""The plan's figures against what a run really holds."""

import functools
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from quick import QUICK

from bertgpt.losses import SumWeight
from train import parallel, sections
from train.__main__ import main
from train.jobs import planning
from train.state import TrainState, create_state
from train.step import Objective


def held(tree):
    """Bytes of a tree's arrays on the first device."""
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == jax.devices()[0]
    )


@pytest.mark.parametrize("preset", ["bert_tiny", "gpt1"])
@pytest.mark.parametrize("setting", ["strategy=jit", "strategy=pmap", "fsdp=8", "fsdp=2"])
def test_bytes_are_those_that_a_device_holds(plan_settings, preset, setting):
    plan = planning.make_plan(plan_settings(preset, f"parallel.{setting}")[0])
    figures = planning.exact(plan)
    optimizer = planning.make_optimizer(plan.config.optimizer, plan.config.train.steps)
    create = plan.strategy.compile_init(functools.partial(create_state, plan.model, optimizer, 0))
    state = plan.strategy.put_state(create(None))
    assert figures["parameter_bytes"] == held(state.params)
    assert figures["gradient_bytes"] == sum(leaf.size * 4 for leaf in jax.tree.leaves(plan.state.params))
    assert figures["gathered_bytes"] == (figures["gradient_bytes"] if "fsdp" in setting else 0)
    assert figures["optimizer_bytes"] == held(state.opt_state)
    assert figures["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(plan.state.params))
    assert figures["flops_per_token"] * 16 * 16 == pytest.approx(
        planning.flops.step_flops(plan.model.config, plan.batch)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", ["bert_tiny", "gpt1"])
def test_remat_keeps_less_for_the_backward_pass(plan_settings, preset, dtype):
    options = ["parallel.strategy=jit", f"train.dtype={dtype}"]
    none, dots, full = (
        planning.exact(planning.make_plan(plan_settings(preset, f"train.remat={remat}", *options)[0]))
        for remat in ("none", "dots", "full")
    )
    assert 0 < full["kept_bytes"] < 0.6 * dots["kept_bytes"] < 0.6 * none["kept_bytes"]
    assert full["parameters"] == dots["parameters"] == none["parameters"]


@pytest.mark.parametrize("preset", ["bert_tiny", "gpt1"])
def test_a_packed_batch_is_planned_with_its_further_arrays(plan_settings, preset):
    plain, packed = (
        planning.make_plan(plan_settings(preset, f"data.pack={pack}")[0]).batch for pack in ("false", "true")
    )
    assert packed.keys() - plain.keys() >= {"pack_ids", "position_ids"}
    assert packed["pack_ids"].shape == (16, 16)


@pytest.mark.parametrize("setting", ["strategy=jit", "strategy=pmap", "fsdp=4"])
def test_the_command_tells_the_plan_and_makes_nothing(plan_settings, tmp_path, capsys, setting):
    _, path = plan_settings("gpt1")
    before = {id(array) for array in jax.live_arrays()}
    assert main(["plan", str(path), f"parallel.{setting}"]) == 0
    assert {id(array) for array in jax.live_arrays()} <= before
    lines = capsys.readouterr().out.splitlines()
    text = " ".join(" ".join(lines).split())
    assert re.search(r"parameter bytes [\d,]+ optimizer bytes [\d,]+ batch bytes [\d,]+ gradient bytes [\d,]+", text)
    (temporaries,) = (line for line in lines if "XLA temporaries" in line)
    assert int(temporaries.split()[2].replace(",", "")) > 0
    assert not (tmp_path / "out").exists()


def test_what_is_kept_is_neither_the_parameters_nor_the_batch():
    """A product keeps what it multiplies: of x w, for the gradient of w alone, x; of exp its result."""

    class Exponential(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic=True):
            return jnp.exp(x @ self.param("w", nn.initializers.ones, (3, 5)))

    model = Exponential()
    losses = lambda output, batch: {"a_loss": SumWeight(output.sum(), jnp.float32(1))}  # noqa: E731
    task = Objective(model, ("x",), losses, losses)
    batch = {"x": jax.ShapeDtypeStruct((4, 3), jnp.float32)}
    state = jax.eval_shape(functools.partial(create_tiny, model))
    config = sections.RunConfig(train=sections.TrainSection(batch_size=4))
    kept = planning.kept_bytes(planning.Plan(config, model, task, parallel.Jit(), state, batch, batch))
    assert kept == 4 * 4 * 5 + 4  # exp's result [4 5], and a factor of the loss; x is of the batch


def create_tiny(model):
    params = model.init(jax.random.key(0), jnp.ones((4, 3)))["params"]
    return TrainState(jnp.int32(0), params, (), jax.random.key_data(jax.random.key(0, impl="rbg")))


def test_a_plan_for_more_devices_than_are_here(plan_settings):
    _, path = plan_settings("gpt1")
    command = [sys.executable, "-m", "train", "plan", str(path), "parallel.fsdp=16", "--devices", "16"]
    done = subprocess.run(command, env={**os.environ, "XLA_FLAGS": QUICK}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on 16 x cpu (cpu), strategy mesh over 16" in done.stdout
    assert main(["plan", str(path), "--devices", "0"]) == 2
