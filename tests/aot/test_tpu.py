"""The train step of a small BERT, compiled by the real TPU compiler; no TPU is needed, but the extra aot-tpu is."""

import functools
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import yaml
from jax.experimental import pallas as pl
from jax.sharding import SingleDeviceSharding

from bertgpt.errors import InputError
from bertgpt.model import attention, tpu_attention
from train import config as configs
from train import estimate, hlo, targets
from train.__main__ import main
from train.atomic_files import user_cache
from train.jobs import compiling, planning

TOPOLOGY = "v5e:2x4"
LARGE = 2**20  # multiply-adds of a product


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The file of a run's configuration."""
    values = {
        "model": {"preset": "bert_tiny"},
        "tokenizer": {"vocab_size": 30522},
        "data": {"train": "text"},
        "train": {"batch_size": 64, "dtype": "bfloat16"},
    }
    path = tmp_path_factory.mktemp("aot") / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def said(recipe, tmp_path_factory):
    """What the command prints; its results stay in a cache of the tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    lines = []
    patch.setattr("train.reports.say", lines.append)
    assert main(["plan", str(recipe), "--topology", TOPOLOGY]) == 0
    yield lines
    patch.undo()


@pytest.fixture(scope="module")
def made(said, recipe):
    """The plan and the compiled step, from the cache."""
    devices = targets.devices(TOPOLOGY)
    plan = planning.make_plan(configs.load(str(recipe)), devices)
    patch = pytest.MonkeyPatch()
    patch.delattr(compiling, "_compile")  # a step that is compiled again would fail
    step = compiling.compile_step(plan, TOPOLOGY)
    patch.undo()
    return plan, step


def test_the_command_says_what_the_compiler_made(said):
    text = "\n".join(said)
    assert "on 8 x TPU v5 lite (tpu), strategy mesh over 8" in text
    assert "train step: fits: it needs" in text
    assert "evaluation of 64 rows: fits: it needs" in text
    assert re.search(r"synchronous f32 reduce-scatter \(\d", text)
    assert re.search(r"synchronous bf16 all-gather \(\d", text)
    names = ("compute", "without an estimate", "collectives", "step")
    compute, other, collectives, step = (float(re.search(rf"^  {name} +([\d.]+)", text, re.M)[1]) for name in names)
    assert compute > 0
    assert collectives > 0
    assert step == pytest.approx(compute + other + collectives, abs=0.02)


def test_attention_is_the_kernel_and_no_scores_are_written(made):
    plan, step = made
    config, (rows, length) = plan.model.config, plan.batch["input_ids"].shape
    program = hlo.parse(step.text)
    kernels = [
        instruction
        for computation in program.computations.values()
        for instruction in computation.values()
        if instruction.target == "tpu_custom_call"
    ]
    assert len(kernels) == 2 * config.num_layers  # forward and backward
    assert f"[{rows // 8},{config.num_heads},{length},{length}]" not in step.text


@pytest.mark.parametrize("topology", ["v5e:1x1", "v5p:2x2x1", "v6e:1x1"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("batch", "length", "heads", "width"), [(8, 128, 12, 64), (2, 512, 4, 32), (3, 384, 1, 128)])
def test_the_attention_kernel_compiles_with_its_gradient(topology, causal, batch, length, heads, width):
    device = targets.devices(topology)[0]
    place = SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((batch, length, heads, width), jnp.bfloat16, sharding=place)
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=place)
    words = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=place)

    def gradient(query, key, value, ids, words):
        given = {"causal": causal, "attention_mask": ids, "pack_ids": ids, "rate": 0.1, "words": words}
        return jax.vjp(lambda *x: tpu_attention.attention(*x, **given), query, key, value)[1](query)

    with jax.default_device(device), jax.default_matmul_precision("highest"):  # which float32 models may ask for
        compiled = jax.jit(gradient, out_shardings=place).lower(x, x, x, ids, words).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 1  # the forward pass is not needed


def test_the_attention_kernel_compiles_for_gradients_per_example():
    """Under vmap, with a key of dropout and a mask for each example."""
    device = targets.devices("v5e:1x1")[0]
    place = SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((4, 1, 128, 2, 64), jnp.bfloat16, sharding=place)
    mask = jax.ShapeDtypeStruct((4, 1, 128), jnp.int32, sharding=place)
    words = jax.ShapeDtypeStruct((4, 2), jnp.uint32, sharding=place)

    def gradient(x, mask, words):
        def loss(x):
            mixed = tpu_attention.attention(x, x, x, causal=False, attention_mask=mask, rate=0.1, words=words)
            return (mixed.astype(jnp.float32) ** 2).sum()

        return jax.grad(loss)(x)

    with jax.default_device(device):
        compiled = jax.jit(jax.vmap(gradient), out_shardings=place).lower(x, mask, words).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 2


def test_large_products_take_bfloat16(made):
    program = hlo.parse(made[1].text)
    products = [
        (instruction, computation)
        for computation in program.computations.values()
        for instruction in computation.values()
        if instruction.opcode in ("convolution", "dot")
    ]
    seen = 0
    for product, computation in products:
        left, right = (hlo.arrays(computation[name].shape)[0] for name in product.operands)
        (result,) = hlo.arrays(product.shape)
        if math.sqrt(left.size * right.size * result.size) > LARGE:
            assert "bf16" in (left.dtype, right.dtype), product
            seen += 1
    assert seen >= 30  # 2 layers of 6 products and 2 of attention, forward and backward, and the vocabulary's


def test_the_state_is_donated(made):
    plan, step = made
    (aliases,) = re.findall(r"input_output_alias=\{(.*?)\}, entry_computation", step.text)
    assert aliases.count("alias)") == len(jax.tree.leaves(plan.state))


def test_no_float32_table_is_gathered_whole(made):
    plan, step = made
    table = 4 * plan.model.config.vocab_size * plan.model.config.hidden_size
    for collective in estimate.collectives(hlo.parse(step.text)):
        assert not (collective.kind == "all-gather" and "f32" in collective.dtype and collective.size >= table)


def test_the_target_decides_dense_layers_and_attention(recipe, monkeypatch, tmp_path):
    asked, platforms = [], []
    spy = attention.Kernel("spy", lambda request: asked.append(request.device.device_kind) or "no", None)
    monkeypatch.setattr(attention, "KERNELS", (spy, *attention.KERNELS))
    monkeypatch.setattr(planning, "fast_apply", lambda model, platform: platforms.append(platform) or model.apply)
    monkeypatch.setattr(compiling, "_compile", lambda *_: compiling.Compiled({}, "", 0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    devices = targets.devices(TOPOLOGY)
    plan = planning.make_plan(configs.load(str(recipe), ["data.sequence_length=64"]), devices)
    planning.exact(plan)
    compiling.compile_step(plan, TOPOLOGY)
    compiling.compile_step(plan, TOPOLOGY, evaluation=True)
    assert set(asked) == {"TPU v5 lite"}
    assert platforms == ["tpu"]  # not the CPU that is here


def test_no_tpu_is_looked_for_and_none_is_locked():
    """This process has loaded libtpu; the variables are those of another machine."""
    code = "from train import targets; print(len(targets.devices('v5p:2x2x2')), targets.devices('v6e:1x1'))"
    wrong = {"TPU_ACCELERATOR_TYPE": "v4-8", "TPU_WORKER_HOSTNAMES": "host0,host1"}
    assert len(targets.devices(TOPOLOGY)) == 8
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | wrong, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("8 [TpuDevice")


@pytest.mark.parametrize("topology", ["v5e:3x7", "v5p:2x2"])
def test_a_topology_that_libtpu_does_not_know_is_refused(topology):
    with pytest.raises(InputError, match=f"--topology {topology}: "):
        targets.devices(topology)


@pytest.mark.parametrize("damage", [lambda x: x[: len(x) // 2], lambda x: x[:500] + bytes(100) + x[600:]])
def test_a_damaged_result_is_compiled_again(made, monkeypatch, damage):
    (path,) = sorted((user_cache() / "programs").glob("*.json.gz"), key=lambda path: -path.stat().st_size)[:1]
    content = path.read_bytes()
    path.write_bytes(damage(content))
    again = compiling.Compiled({}, "again", 0)
    monkeypatch.setattr(compiling, "_compile", lambda *_: again)
    assert compiling.compile_step(made[0], TOPOLOGY) == again
    assert compiling.compile_step(made[0], TOPOLOGY) == again
    path.write_bytes(content)


def test_a_pallas_kernel_counts_by_the_flops_that_it_states():
    def kernel(x, y):
        y[...] = x[...] + 1

    target, place = targets.TARGETS["v5e"], SingleDeviceSharding(targets.devices(TOPOLOGY)[0])
    cost = pl.CostEstimate(flops=197 * 10**9, bytes_accessed=1, transcendentals=0)
    call = functools.partial(pl.pallas_call, kernel, cost_estimate=cost)
    shape = jax.ShapeDtypeStruct((128, 128), jnp.float32, sharding=place)
    lowered = jax.jit(call(out_shape=shape), out_shardings=place).lower(shape)
    found = estimate.estimate(hlo.parse(lowered.compile().as_text()), target)
    assert found.other == pytest.approx(1e-3)
