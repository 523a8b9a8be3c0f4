"""JAX's setting of the precision of products reaches every product of a model, in training, generation and export."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_devices import make_batch, make_objective

from bertgpt.inference import decoding
from bertgpt.inference.sampling import make_sampling
from bertgpt.inference.stablehlo import export_program
from train import step


def params_of(model):
    """Their shapes."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def training(architecture, platform):
    """The gradient of a batch of pretraining."""
    objective, batch = make_objective(architecture, dropout=0.1), make_batch(architecture)
    traced = jax.jit(lambda p: step.gradients(p, batch, jax.random.key(0), objective=objective)).trace(
        params_of(objective.model)
    )
    return traced.lower(lowering_platforms=(platform,)).as_text()


def generation(architecture, platform):
    """The tokens of a prompt: one pass, then one at a time."""
    model = make_objective("gpt").model
    sampling = make_sampling(model.config.vocab_size)
    held = {"transformer": params_of(model)["transformer"]}
    held["head"] = held["transformer"]["token"]["embedding"]
    constants = {"encoder": decoding.encoder_of(model), "cache_length": 8}
    run = decoding._run.trace(held, np.ones((1, 4), np.int32), np.zeros(1, np.int32), 2, sampling, **constants)
    return run.lower(lowering_platforms=(platform,)).as_text()


def export(architecture, platform):
    """The program for all platforms, which keeps the setting that it was exported under."""
    model = make_objective(architecture).model
    return export_program(model, params_of(model)).mlir_module()


def precisions(program):
    """How often each precision stands at a product; every product has two operands of the same."""
    products = re.findall(r"stablehlo\.dot_general.*", program)
    found = [re.search(r"precision = \[(\w+), (\w+)\]", product) for product in products]
    return [match.groups() if match else ("DEFAULT", "DEFAULT") for match in found]


CASES = [(training, "bert"), (training, "gpt"), (generation, "gpt")]
CASES = [(*case, platform) for case in CASES for platform in ("tpu", "cuda")]
CASES += [(export, "bert", "all"), (export, "gpt", "all")]


@pytest.mark.parametrize(("make", "architecture", "platform"), CASES)
def test_the_setting_reaches_every_product(make, architecture, platform):
    with jax.default_matmul_precision("highest"):
        highest = precisions(make(architecture, platform))
    with jax.default_matmul_precision("default"):
        default = precisions(make(architecture, platform))
    assert len(highest) == len(default) >= 8
    assert set(highest) == {("HIGHEST", "HIGHEST")}
    assert set(default) == {("DEFAULT", "DEFAULT")}
