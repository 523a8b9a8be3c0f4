"""The dense layers of a step in bfloat16 on a CPU or TPU are Linen's, and their sums stay float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_devices import initial_params, make_batch, make_objective

from bertgpt import TaskSettings
from train import fast_dense, step
from train.fast_dense import fast_apply
from train.jobs import finetuning, objectives


@pytest.fixture(scope="module")
def operands():
    """x [2 64 24] and dy [2 64 40] in bfloat16, kernel [24 40] and bias [40] in float32."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, dy = (jax.random.normal(key, (2, 64, size), jnp.bfloat16) for key, size in zip(keys, (24, 40), strict=False))
    return x, dy, jax.random.normal(keys[2], (24, 40)), jax.random.normal(keys[3], (40,))


@pytest.mark.parametrize("of_tpu", [False, True])
def test_dense_is_linens_rounded_once(operands, of_tpu):
    x, dy, kernel, bias = operands
    y, back = jax.vjp(lambda *given: fast_dense.dense(*given, of_tpu), x, kernel, bias)
    plain = nn.Dense(40, dtype=jnp.bfloat16).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert y.dtype == plain.dtype
    np.testing.assert_allclose(
        np.float32(y), np.float32(plain), atol=0.13
    )  # plain is rounded before the bias, and after

    wide, wide_kernel, wide_dy = np.float64(x), np.float64(kernel.astype(jnp.bfloat16)), np.float64(dy)
    np.testing.assert_allclose(np.float64(y), wide @ wide_kernel + np.float64(bias), rtol=2**-8, atol=1e-6)
    dx, d_kernel, d_bias = back(dy)
    np.testing.assert_allclose(np.float64(dx), wide_dy @ wide_kernel.T, rtol=2**-8, atol=1e-5)
    assert (d_kernel.dtype, d_bias.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(d_kernel, np.einsum("bti,bto->io", wide, wide_dy), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_bias, wide_dy.sum((0, 1)), rtol=1e-5, atol=1e-5)


def test_on_a_tpu_the_gradient_of_a_bias_is_a_product(operands):
    x, dy, kernel, bias = operands
    programs = [
        str(
            jax.make_jaxpr(
                lambda dy, of_tpu=of_tpu: jax.vjp(lambda *given: fast_dense.dense(*given, of_tpu), x, kernel, bias)[1](
                    dy
                )
            )(dy)
        )
        for of_tpu in (False, True)
    ]
    assert [program.count("reduce_sum") for program in programs] == [1, 0]


def is_rounded(x):
    return bool((x == x.astype(jnp.bfloat16)).all())


@pytest.mark.parametrize("architecture", ["bert", "gpt"])
def test_a_step_in_bfloat16_takes_them_and_its_gradient_is_the_plain_one(architecture):
    objective, batch = make_objective(architecture, dtype=jnp.bfloat16), make_batch(architecture)
    params, key = initial_params(objective), jax.random.key(0)
    (fast, _), (plain, _) = (
        jax.jit(lambda p, chosen=chosen: step.gradients(p, batch, key, objective=chosen))(params)
        for chosen in (objective._replace(apply=fast_apply(objective.model, name)) for name in ("cpu", "gpu"))
    )
    kernels = 0
    for (path, mine), other in zip(jax.tree.leaves_with_path(fast), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, other, atol=0.02 * float(abs(other).max()) + 1e-3, err_msg=str(path))
        if path[-1].key == "kernel":
            kernels += 1
            assert is_rounded(other)
            assert not is_rounded(mine), path
        if path[-1].key == "embedding":
            assert not is_rounded(mine), path  # rows of one token, position or segment are added up in float32
    assert kernels >= 6


def on(platform, dtype=jnp.bfloat16):
    """GPT-1's objective as it is trained on a platform."""
    objective = make_objective("gpt", dtype=dtype)
    return objective._replace(apply=fast_apply(objective.model, platform))


def test_a_step_in_float32_and_another_device_are_left_to_linen():
    batch = make_batch("gpt")

    def traced(dtype, platform):
        objective = on(platform, dtype)
        return str(
            jax.make_jaxpr(lambda p: step.gradients(p, batch, jax.random.key(0), objective=objective))(
                initial_params(objective)
            )
        )

    assert traced(jnp.float32, "cpu") == traced(jnp.float32, "tpu") == traced(jnp.float32, "gpu")
    assert len({traced(jnp.bfloat16, platform) for platform in ("cpu", "tpu", "gpu")}) == 3


def test_an_evaluation_takes_them_too():
    batch = make_batch("gpt")

    def products(platform):
        objective = on(platform)
        text = str(
            jax.make_jaxpr(lambda p: step.eval_step(p, batch, objective=objective)[0])(initial_params(objective))
        )
        return sum("dot_general" in line and ":bf16" in line for line in text.splitlines())

    assert products("cpu") == products("tpu") < products("gpu")


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize("kind", ["pretrain", "sft", "classification"])
def test_runs_take_them_on_a_cpu_and_a_tpu_but_not_on_a_gpu(monkeypatch, platform, kind):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    model = make_objective("gpt", dtype=jnp.bfloat16).model
    if kind == "pretrain":
        objective = objectives.make_objective("clm", model)
    else:
        objective = finetuning.make_objective(TaskSettings(kind=kind), model)
    assert (objective.apply == model.apply) == (platform == "gpu")


def test_a_tpu_looks_up_rounded_rows_and_sums_their_gradient_in_float32():
    table = jax.random.normal(jax.random.key(0), (5, 8))
    ids = jnp.array([[0, 3, 3, 3], [-1, 5, 4, 4]])
    rows, back = jax.vjp(lambda table: fast_dense.looked_up(table, ids), table)
    rounded = np.float32(table.astype(jnp.bfloat16))
    np.testing.assert_array_equal(rows[0], rounded[[0, 3, 3, 3]])
    assert np.isnan(rows[1, :2]).all()
    slope = jax.random.normal(jax.random.key(1), rows.shape)
    (gradient,) = back(slope)
    expected = np.zeros((5, 8), np.float32)
    for place in (0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3):
        expected[ids[place]] += slope[place]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert not is_rounded(gradient)
