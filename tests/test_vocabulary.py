"""The cross-entropy in blocks is that of the whole logits: its value, gradient and second derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from test_devices import initial_params, make_batch, make_objective

from bertgpt import losses
from bertgpt.errors import InputError
from bertgpt.losses import chunked_cross_entropy
from bertgpt.losses.chunked_cross_entropy import LMHead, summed_cross_entropy
from train import step

V, D = 11, 6
CASES = {  # rows, positions, positions of a block: one row each, several with a filled last block, all in one
    "a row a block": (3, 4, 2),
    "two rows a block, one filled": (5, 3, 7),
    "one block": (2, 3, 1024),
    "one position": (1, 1, 4),
}


@pytest.fixture(params=[False, True], ids=["no bias", "bias"])
def biased(request):
    return request.param


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request, monkeypatch, biased):
    """(head, labels, weights), in blocks."""
    batch, positions, block = request.param
    monkeypatch.setattr(chunked_cross_entropy, "POSITIONS_ON_CPU", block)
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (batch, positions, D))
    bias = jax.random.normal(keys[2], (V,)) if biased else None
    weights = jax.random.randint(keys[3], (batch, positions), 0, 3) / 2
    labels = jax.random.randint(keys[4], (batch, positions), 0, V)
    return LMHead(x, jax.random.normal(keys[1], (V, D)), bias), labels, weights


def plain(head, labels, weights):
    return losses.cross_entropy(head.logits(), labels, weights).sum


def test_logits_are_float32_products_with_the_embeddings():
    x, embedding = jnp.array([[[1.0, 2.0]]], jnp.bfloat16), jnp.array([[1.0, 0.0], [0.0, 1.0], [128.0, 0.5]])
    logits = LMHead(x, embedding).logits()
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, [[[1, 2, 129]]])
    np.testing.assert_array_equal(LMHead(x, embedding, jnp.array([1.0, 2, 3])).logits(), [[[2, 4, 132]]])


def test_value_and_gradient_are_those_of_the_logits(case):
    derive = [jax.jit(jax.value_and_grad(loss, argnums=(0, 2))) for loss in (summed_cross_entropy, plain)]
    (value, gradient), (plain_value, plain_gradient) = (both(*case) for both in derive)
    np.testing.assert_allclose(value, plain_value, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(summed_cross_entropy)(*case), plain_value, rtol=1e-6)
    likeliest = case[0].logits().argmax(-1)
    for labels in (case[1], likeliest):
        mine, other = (losses.accuracy(logits, labels, case[2]) for logits in (case[0], case[0].logits()))
        assert mine == other
    assert losses.accuracy(case[0], likeliest, case[2]).sum == case[2].sum()
    for mine, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_forward_and_second_derivatives_are_those_of_the_logits(case):
    head, labels, weights = case
    along = jax.tree.map(jnp.cos, head)

    def derive(loss):
        def of(amount):
            return loss(jax.tree.map(lambda part, by: part + amount * by, head, along), labels, weights)

        return jax.jit(lambda: (jax.jvp(of, (0.0,), (1.0,))[1], jax.grad(of)(0.0), jax.hessian(of)(0.0)))()

    (slope, gradient, hessian), expected = derive(summed_cross_entropy), derive(plain)
    np.testing.assert_allclose(slope, gradient, rtol=1e-5)
    np.testing.assert_allclose((slope, gradient, hessian), expected, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_sums_are_float32():
    keys = jax.random.split(jax.random.key(0), 3)
    head = LMHead(jax.random.normal(keys[0], (4, 64, D), jnp.bfloat16), jax.random.normal(keys[1], (V, D)))
    labels, weights = jax.random.randint(keys[2], (4, 64), 0, V), jnp.ones((4, 64))
    wide = LMHead(*(part.astype(jnp.bfloat16).astype(jnp.float32) for part in head[:2]))
    (value, gradient), (plain_value, plain_gradient) = (
        jax.jit(jax.value_and_grad(loss))(given, labels, weights)
        for loss, given in ((summed_cross_entropy, head), (plain, wide))
    )
    np.testing.assert_allclose(value, plain_value, rtol=1e-5)
    assert (gradient.x.dtype, gradient.embedding.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(np.float32(gradient.x), plain_gradient.x, rtol=2**-7, atol=0.02)
    np.testing.assert_allclose(gradient.embedding, plain_gradient.embedding, rtol=0.01, atol=0.05)
    program = jax.make_jaxpr(jax.grad(summed_cross_entropy))(head, labels, weights).jaxpr
    products = [each for each in equations(program) if each.primitive.name == "dot_general"]
    assert [each.outvars[0].aval.dtype for each in products] == 3 * [jnp.float32]
    assert {part.aval.dtype for each in products for part in each.invars} == {jnp.dtype(jnp.bfloat16)}


def equations(jaxpr):
    """Of a program and the programs in it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def sizes(jaxpr):
    """The number of values in every array of a program and the programs in it."""
    return (variable.aval.size for equation in equations(jaxpr) for variable in equation.outvars)


def test_all_logits_never_exist_together(monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "POSITIONS_ON_CPU", 8)
    head = LMHead(jnp.ones((16, 4, D)), jnp.ones((V, D)), jnp.ones(V))
    given = (head, jnp.zeros((16, 4), jnp.int32), jnp.ones((16, 4)))
    largest = {
        loss: max(sizes(jax.make_jaxpr(jax.value_and_grad(loss))(*given).jaxpr))
        for loss in (summed_cross_entropy, plain)
    }
    assert largest[plain] == 16 * 4 * V
    assert largest[summed_cross_entropy] == 16 * 4 * D  # the states'


@pytest.mark.parametrize("architecture", ["bert", "gpt"])
def test_training_and_evaluation_take_what_logits_are_made_of(architecture):
    objective, batch = make_objective(architecture), make_batch(architecture)
    params, field = initial_params(objective), {"bert": "mlm_logits", "gpt": "logits"}[architecture]
    for key in (jax.random.key(0), None):
        output = jax.eval_shape(lambda p, key=key: step.apply(objective, p, batch, key), params)
        assert isinstance(getattr(output, field), LMHead)
    whole = objective._replace(options=())
    mine, other = (
        jax.jit(functools.partial(step.eval_step, objective=each))(params, batch)[0] for each in (objective, whole)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), mine, other)


@pytest.mark.parametrize("labels", [(2, 3), (2, 1)])
@pytest.mark.parametrize("mask", [(2, 3), (2, 1)])
def test_labels_and_masks_of_another_shape_are_refused(labels, mask):
    head = LMHead(jnp.ones((2, 3, D)), jnp.ones((V, D)))
    if labels == mask == (2, 3):
        assert losses.cross_entropy(head, jnp.zeros(labels, jnp.int32), jnp.ones(mask)).weight == 6
        return
    for sums in (losses.cross_entropy, losses.accuracy):
        with pytest.raises(InputError, match=r"of shape \(2, 1\) does not fit the logits; it must be \(2, 3\)"):
            sums(head, jnp.zeros(labels, jnp.int32), jnp.ones(mask))


def test_nothing_to_predict_costs_nothing():
    for shape in ((2, 0), (0, 3)):
        head = LMHead(jnp.ones((*shape, D)), jnp.ones((V, D)))
        assert losses.cross_entropy(head, jnp.zeros(shape, jnp.int32), jnp.ones(shape)).sum == 0


@pytest.mark.parametrize("split", [True, False], ids=["rows are split", "weights alone differ"])
def test_every_device_sums_its_own_rows_where_sharding_is_checked(split):
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0), 2)
    head = LMHead(jax.random.normal(keys[0], (4, 3, D)), jax.random.normal(keys[1], (V, D)), jnp.arange(1.0 * V))
    labels, weights = jnp.ones((4, 3), jnp.int32), jnp.ones((4, 3))

    def local(head, labels, weights):
        if not split:
            weights = weights * (jax.lax.axis_index("data") == 0)
        return jax.lax.psum(summed_cross_entropy(head, labels, weights), "data")

    whole = jax.sharding.PartitionSpec()
    rows = jax.sharding.PartitionSpec("data") if split else whole
    given = (LMHead(rows, whole, whole), rows, rows)
    distribute = jax.shard_map(local, mesh=mesh, in_specs=given, out_specs=whole)
    value, slope = jax.jit(jax.value_and_grad(distribute))(head, labels, weights)
    expected, plain_slope = jax.value_and_grad(plain)(head, labels, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for mine, other in zip(jax.tree.leaves(slope), jax.tree.leaves(plain_slope), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
