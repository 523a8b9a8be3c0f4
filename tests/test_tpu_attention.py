"""The TPU's attention kernel, interpreted on this device: it is the plain form, and drops the same probabilities."""

import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt import InputError
from bertgpt.model import attention, tpu_attention
from bertgpt.model.dropout import Dropout
from bertgpt.presets import bert_tiny

RATE = 0.1
SHAPES = [  # B T H W
    (2, 128, 4, 64),
    (1, 256, 4, 32),
    (4, 512, 2, 64),  # two rows a grid step, two steps
    (1, 128, 1, 128),
]


def both(masks, deterministic=False):
    """The kernel and the plain form as functions of (query, key, value) under one key of dropout."""

    def run(function, *arrays):
        module = Dropout(RATE, deterministic=deterministic)
        return nn.apply(lambda m: function(*arrays, masks, None, m).mixed, module)(
            {}, rngs={"dropout": jax.random.key(3)}
        )

    forms = functools.partial(attention.of_tpu, interpret=True), attention.dot_product_attention
    return [jax.jit(functools.partial(run, form)) for form in forms]


def operands(shape, count=4):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=shape), jnp.bfloat16) for _ in range(count)]


def masks_of(shape, causal, masked, packed):
    """The masks, and which queries [B T] count: a packed row ends with padding, which is an example of its own."""
    batch, length, *_ = shape
    real = np.ones((batch, length), bool)
    real[:, length - 9 :] = not masked
    packs = np.sort(np.random.default_rng(1).integers(0, 3, (batch, length)), axis=1)
    return attention.Masks(causal, real.astype(np.int32) if masked else None, packs if packed else None), real


MASKS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("shape", "masked", "packed"),
    [(SHAPES[0], *masks) for masks in MASKS] + [(shape, True, True) for shape in SHAPES[1:]],
)
def test_it_is_the_plain_form_with_its_gradient(shape, masked, packed, causal):
    masks, real = masks_of(shape, causal, masked, packed)
    fused, plain = both(masks)
    *arrays, slope = operands(shape)
    slope = slope * real[..., None, None]
    (mixed, back), (expected, back_plain) = jax.vjp(fused, *arrays), jax.vjp(plain, *arrays)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(mixed)[real], np.float32(expected)[real], atol=0.04)
    for mine, other in zip(back(slope), back_plain(slope), strict=True):
        np.testing.assert_allclose(np.float32(mine), np.float32(other), atol=0.02 * abs(np.float32(other)).max())


def test_without_dropout_it_is_the_plain_form():
    masks, real = masks_of(SHAPES[0], True, True, False)
    fused, plain = both(masks, deterministic=True)
    *arrays, slope = operands(SHAPES[0])
    (mixed, back), (expected, back_plain) = jax.vjp(fused, *arrays), jax.vjp(plain, *arrays)
    np.testing.assert_allclose(np.float32(mixed)[real], np.float32(expected)[real], atol=0.04)
    slope = slope * real[..., None, None]
    for mine, other in zip(back(slope), back_plain(slope), strict=True):
        np.testing.assert_allclose(np.float32(mine), np.float32(other), atol=0.02 * abs(np.float32(other)).max())


def dropped_by(form, shape):
    """Which probabilities [B H T S] a form drops: all are equal, and each value is a unit vector of its key."""
    _, length, _, width = shape
    zeros, found = jnp.zeros(shape, jnp.bfloat16), []
    for first in range(0, length, width):
        unit = jnp.eye(length, width, -first, jnp.bfloat16)[None, :, None]
        found.append(form(zeros, zeros, jnp.broadcast_to(unit, shape)) == 0)
    return np.concatenate(found, axis=-1).swapaxes(1, 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_drops_the_very_probabilities_of_the_plain_form(shape):
    fused, plain = (dropped_by(form, shape) for form in both(attention.Masks(causal=False)))
    np.testing.assert_array_equal(fused, plain)
    np.testing.assert_allclose(plain.mean(), RATE, atol=0.01)


def test_under_vmap_each_example_is_as_if_alone():
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(3, 2, 128, 2, 64)), jnp.bfloat16)
    words = jnp.asarray(random.integers(0, 2**32, (3, 2)), jnp.uint32)
    form = functools.partial(tpu_attention.attention, causal=True, rate=RATE, interpret=True)
    together = jax.vmap(lambda x, words: form(x, x, x, words=words))(x, words)
    alone = jnp.stack([form(x[n], x[n], x[n], words=words[n]) for n in range(3)])
    np.testing.assert_array_equal(np.float32(together), np.float32(alone))


def test_attention_with_it_has_the_gradients_of_attention_without(monkeypatch):
    config = bert_tiny(vocab_size=40, attention_dropout=0.2)
    x = jax.random.normal(jax.random.key(0), (2, 128, config.hidden_size), jnp.bfloat16)
    module = attention.Attention(config, causal=False, dtype=jnp.bfloat16)
    params = module.init(jax.random.key(1), x, None, None)

    def gradient():
        def loss(params):
            return (module.apply(params, x, None, None, False, rngs={"dropout": jax.random.key(2)})[0] ** 2).sum()

        return jax.jit(jax.grad(loss))(params)

    plain = gradient()
    of_tpu = next(kernel for kernel in attention.KERNELS if kernel.device == "TPU")
    of_tpu = of_tpu._replace(function=functools.partial(attention.of_tpu, interpret=True))
    monkeypatch.setattr(attention, "KERNELS", (of_tpu, attention.KERNELS[-1]))
    monkeypatch.setattr(attention, "target_device", lambda: SimpleNamespace(device_kind="TPU v5 lite"))
    program = str(jax.make_jaxpr(lambda params: module.apply(params, x, None, None)[0])(params))
    assert "pallas_call" in program
    for mine, other in zip(jax.tree.leaves(gradient()), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, other, atol=0.03 * float(abs(other).max()) + 1e-3)


@pytest.mark.parametrize(
    ("length", "heads", "width", "dtype", "reason"),
    [
        (512, 12, 64, "bfloat16", None),
        (128, 1, 128, "bfloat16", None),
        (256, 4, 32, "bfloat16", None),
        (512, 12, 64, "float32", "the dtype is float32"),
        (640, 12, 64, "bfloat16", "the length is 640"),
        (200, 12, 64, "bfloat16", "the length is 200"),
        (0, 12, 64, "bfloat16", "the length is 0"),
        (128, 3, 64, "bfloat16", "there are 3 heads of 64"),
        (128, 4, 48, "bfloat16", "there are 4 heads of 48"),
        (128, 8, 16, "bfloat16", "there are 8 heads of 16"),
        (128, 1, 256, "bfloat16", "there are 1 heads of 256"),
    ],
)
def test_what_it_cannot_compute_is_said(length, heads, width, dtype, reason):
    found = tpu_attention.obstacle(length, heads, width, dtype)
    assert found is None if reason is None else found.endswith(reason)
    request = attention.Request(SimpleNamespace(device_kind="TPU v5 lite"), dtype, length, heads, width)
    assert (attention.chosen(request).name == "the TPU kernel") == (reason is None)


def test_more_probabilities_than_dropout_has_places_for_are_refused():
    fused, _ = both(attention.Masks(causal=True))
    most, more = (jax.ShapeDtypeStruct((rows, 512, 2, 64), jnp.bfloat16) for rows in (2**13, 2**13 + 1))
    jax.eval_shape(fused, most, most, most)
    with pytest.raises(InputError, match=f"dropout of {2**32 + 2**19} values"):
        jax.eval_shape(fused, more, more, more)
