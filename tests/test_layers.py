"""The shared block against plain NumPy, and what attention must not see."""

import dataclasses
import functools
import importlib
import itertools
import math
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertgpt import BertModel, InputError, ModelConfig
from bertgpt.model import attention, blocks, dropout, layers
from bertgpt.presets import bert_tiny

CONFIG = ModelConfig("bert", vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, mlp_size=32)
SURE = 0.9999999  # a dropout that drops everything
QUERY, KEY, VALUE = np.random.default_rng(0).normal(size=(3, 2, 6, 2, 8)).astype(np.float32)  # [B T H W]
ATTENTION_MASK = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
PACK_IDS = np.array([[0, 0, 1, 1, 1, 1], [3, 3, 3, 3, 5, 5]])


def attend_by_loops(query, key, value, mask):
    """Attention of every row, head and query by itself; mask [B T S]."""
    mixed = np.zeros_like(query)
    for b, t, h in np.ndindex(*query.shape[:3]):
        scores = key[b, :, h] @ query[b, t, h] / math.sqrt(query.shape[-1])
        weights = np.where(mask[b, t], np.exp(scores), 0)
        mixed[b, t, h] = weights @ value[b, :, h] / weights.sum()
    return mixed


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(2, 6, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def params(x):
    """A block's parameters, biases and gains moved from their zeros and ones."""
    params = blocks.Block(CONFIG, causal=False).init(jax.random.key(0), x)["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def block(params):
    """(x, attention_mask, pack_ids) -> the block's output, by whether it is causal."""
    modules = {causal: blocks.Block(CONFIG, causal=causal) for causal in (False, True)}
    compiled = {
        causal: jax.jit(lambda *inputs, module=module: module.apply({"params": params}, *inputs)[0])
        for causal, module in modules.items()
    }
    return lambda causal, *inputs: np.asarray(compiled[causal](*inputs))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention_mask", [None, ATTENTION_MASK])
@pytest.mark.parametrize("pack_ids", [None, PACK_IDS])
def test_attend_is_attention_by_plain_loops(causal, attention_mask, pack_ids):
    allowed = np.ones((2, 6, 6), bool)
    allowed &= np.tril(allowed) if causal else True
    allowed &= attention_mask[:, None, :] == 1 if attention_mask is not None else True
    allowed &= pack_ids[:, :, None] == pack_ids[:, None, :] if pack_ids is not None else True
    seen = allowed.any(-1)  # padding in a packed, causal row may see nobody
    masks = {"attention_mask": attention_mask, "pack_ids": pack_ids}
    got, probabilities = attention.attend(QUERY, KEY, VALUE, causal=causal, **masks, probabilities=True)
    expected = attend_by_loops(QUERY, KEY, VALUE, allowed | ~seen[..., None])
    np.testing.assert_allclose(np.asarray(got)[seen], expected[seen], rtol=1e-5, atol=1e-6)
    weighted = np.einsum("BHTS,BSHW->BTHW", probabilities, VALUE)
    np.testing.assert_allclose(weighted[seen], expected[seen], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("cuts", [(0, 6), (0, 1, 2, 3, 4, 5, 6), (0, 2, 3, 6)])
def test_attention_over_a_cache_is_that_of_the_tokens_so_far(causal, cuts):
    """Of a row whose first two slots are padding, and one of two packs; with causal=False new tokens see each other."""
    mask, packs = np.ones((2, 8), int), np.zeros((2, 8), int)
    mask[0, :2], packs[1, 3:] = 0, 1
    config = dataclasses.replace(CONFIG, num_layers=1)
    (cache,) = attention.empty_cache(config, 2, 8, jnp.float32)
    for start, end in itertools.pairwise(cuts):
        new = [part[:, start:end] for part in (QUERY, KEY, VALUE)]
        cache = cache.append(*new[1:])
        got = attention.attend(*new, causal=causal, attention_mask=mask, pack_ids=packs, cache=cache)
        cache = cache.advance(end - start)
        allowed = np.tril(np.ones((6, 6), bool)) if causal else np.arange(6)[None] < np.full((6, 1), end)
        allowed = allowed & (mask[:, None, :6] == 1) & (packs[:, :6, None] == packs[:, None, :6])
        seen = allowed[:, start:end].any(-1)
        expected = attend_by_loops(new[0], KEY, VALUE, allowed[:, start:end] | ~seen[..., None])
        np.testing.assert_allclose(np.asarray(got.mixed)[seen], expected[seen], rtol=1e-5, atol=1e-6)
    assert int(cache.start) == 6


def test_scores_are_divided_by_the_root_of_the_head_width():
    # W = 4: query . key = 2 log 3, over sqrt 4 is log 3: probabilities 1/4 and 3/4.
    key = np.stack([np.zeros(4), np.full(4, math.log(3) / 2)])[None, :, None].astype(np.float32)
    value = np.array([[0, 0, 0, 0], [4, 8, 0, 1]], np.float32)[None, :, None]
    mixed, _ = attention.attend(np.ones((1, 2, 1, 4), np.float32), key, value, causal=False)
    np.testing.assert_allclose(mixed[0, 0, 0], [3, 6, 0, 0.75], rtol=1e-6)


def test_softmax_is_float32_under_bfloat16():
    # The scores differ by 1 / sqrt 2 at 180, where bfloat16 counts in ones: it would give 0 or 0.73, not 0.67.
    query = jnp.ones((1, 2, 1, 2), jnp.bfloat16)
    key = jnp.array([[256, 0], [256, 1]], jnp.bfloat16)[None, :, None]
    value = jnp.array([[0, 0], [1, 1]], jnp.bfloat16)[None, :, None]
    mixed, _ = attention.attend(query, key, value, causal=False)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed.astype(jnp.float32), np.full((1, 2, 1, 2), 0.6697615), rtol=4e-3)


@given(st.integers(1, 5), st.integers(0, 2**31))
def test_causal_output_does_not_change_with_later_tokens(block, x, cut, seed):
    changed = x.copy()
    changed[:, cut:] = np.random.default_rng(seed).normal(size=changed[:, cut:].shape)
    before, after = block(True, x), block(True, changed)
    np.testing.assert_array_equal(before[:, :cut], after[:, :cut])
    assert abs(before[:, cut:] - after[:, cut:]).max() > 1e-3


def test_without_causal_earlier_outputs_see_later_tokens(block, x):
    changed = x.copy()
    changed[:, -1] += 1
    assert (abs(block(False, x) - block(False, changed))[:, 0] > 1e-5).any()


def test_a_padded_row_is_the_shorter_row_at_real_positions(block, x):
    padded = block(False, x, np.array([[1, 1, 1, 1, 0, 0]] * 2))
    np.testing.assert_allclose(padded[:, :4], block(False, x[:, :4]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_a_packed_row_is_its_examples_apart(block, x, causal):
    packed = block(causal, x, None, np.array([[0, 0, 1, 1, 1, 1]] * 2))
    np.testing.assert_allclose(packed[:, :2], block(causal, x[:, :2]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(packed[:, 2:], block(causal, x[:, 2:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_block_is_post_layer_norm(block, params, x, causal):
    def linear(p, x):
        return x @ p["kernel"] + p["bias"]

    def norm(p, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]

    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    attention, feed_forward = params["attention"], params["feed_forward"]
    heads = [linear(attention[name], x).reshape(2, 6, 2, 8) for name in ("query", "key", "value")]
    mixed = attend_by_loops(*heads, np.tril(np.ones((2, 6, 6))) if causal else np.ones((2, 6, 6)))
    y = norm(params["attention_norm"], x + linear(attention["out"], mixed.reshape(2, 6, 16)))
    up = linear(feed_forward["up"], y)
    hidden = up * (1 + np.vectorize(math.erf)(up / math.sqrt(2))) / 2
    y = norm(params["feed_forward_norm"], y + linear(feed_forward["down"], hidden))
    np.testing.assert_allclose(block(causal, x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("eps", "expected"), [(1e-12, 1.0), (1e-5, 0.3015113)])
def test_layer_norm_adds_the_configured_eps_to_the_variance(eps, expected):
    norm = layers.layer_norm(dataclasses.replace(CONFIG, layer_norm_eps=eps), jnp.float32, "norm")
    x = jnp.array([[1e-3, -1e-3]])  # variance 1e-6
    np.testing.assert_allclose(norm.init_with_output(jax.random.key(0), x)[0], [[expected, -expected]], rtol=1e-5)


def test_layer_norm_keeps_its_precision_far_from_zero():
    # E[x^2] - E[x]^2 at 10,000 is off by several units; the variance is 1.25.
    norm = layers.layer_norm(CONFIG, jnp.float32, "norm")
    got, _ = norm.init_with_output(jax.random.key(0), jnp.array([[10000.0, 10001.0, 10002.0, 10003.0]]))
    np.testing.assert_allclose(got, [[-1.3416408, -0.4472136, 0.4472136, 1.3416408]], rtol=1e-5)


def test_layer_norm_statistics_are_float32_under_bfloat16():
    # The mean 257 is no bfloat16 number.
    norm = layers.layer_norm(CONFIG, jnp.bfloat16, "norm")
    got, _ = norm.init_with_output(jax.random.key(0), jnp.array([[256, 258]], jnp.bfloat16))
    np.testing.assert_array_equal(got.astype(jnp.float32), [[-1, 1]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu_erf", [-0.04550026, -0.15865525, 0, 0.84134475, 1.95449974]),
        ("gelu_tanh", [-0.04540231, -0.15880801, 0, 0.84119199, 1.95459769]),
        ("relu", [0, 0, 0, 1, 2]),
    ],
)
def test_activations_have_their_own_values(name, expected):
    np.testing.assert_allclose(
        layers.ACTIVATIONS[name](jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0])), expected, rtol=1e-6, atol=2e-7
    )


def test_feed_forward_follows_the_configured_activation(params, x):
    by_name = [
        blocks.FeedForward(dataclasses.replace(CONFIG, activation=name)).apply({"params": params["feed_forward"]}, x)
        for name in ("gelu_erf", "gelu_tanh")
    ]
    assert 1e-6 < abs(by_name[0] - by_name[1]).max() < 1e-2


def test_dropout_is_off_by_default(params, x):
    config = dataclasses.replace(CONFIG, hidden_dropout=0.5, attention_dropout=0.5)
    got, *_ = blocks.Block(config, causal=False).apply({"params": params}, x)
    np.testing.assert_array_equal(got, blocks.Block(CONFIG, causal=False).apply({"params": params}, x)[0])


@pytest.mark.parametrize("field", ["hidden_dropout", "attention_dropout"])
def test_dropout_follows_the_key_when_asked_for(params, x, field):
    config = dataclasses.replace(CONFIG, hidden_dropout=0.0, attention_dropout=0.0)
    module = blocks.Block(dataclasses.replace(config, **{field: 0.5}), causal=False)
    first, again, other = (
        module.apply({"params": params}, x, deterministic=False, rngs={"dropout": jax.random.key(seed)})[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).max() > 1e-2


def test_hidden_dropout_falls_on_both_residual_branches_alone(params, x):
    config = dataclasses.replace(CONFIG, hidden_dropout=SURE, attention_dropout=0.0)
    got, *_ = blocks.Block(config, causal=False).apply(
        {"params": params}, x, deterministic=False, rngs={"dropout": jax.random.key(0)}
    )
    norm = layers.layer_norm(CONFIG, jnp.float32, "norm")
    expected = norm.apply({"params": params["attention_norm"]}, x)
    expected = norm.apply({"params": params["feed_forward_norm"]}, expected)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_attention_dropout_falls_on_the_probabilities():
    # Of each query's 64 probabilities of 1/64, a random half is kept as 2/64.
    ones = jnp.ones((1, 64, 1, 1))
    module = dropout.Dropout(0.5, deterministic=False)
    mixed = nn.apply(lambda m: attention.attend(ones, ones, ones, causal=False, dropout=m).mixed, module)(
        {}, rngs={"dropout": jax.random.key(0)}
    )
    kept = np.asarray(mixed).ravel() * 32
    np.testing.assert_allclose(kept, kept.round(), atol=1e-4)
    assert kept.std() > 1
    np.testing.assert_allclose(kept.mean(), 32, atol=2)


def test_stack_gives_every_blocks_output_in_turn(params, x):
    config = dataclasses.replace(CONFIG, num_layers=2)
    outputs, *_ = blocks.Stack(config).apply({"params": {"block_0": params, "block_1": params}}, x)
    block = blocks.Block(config, causal=False)
    assert len(outputs) == 2
    np.testing.assert_allclose(outputs[0], block.apply({"params": params}, x)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs[1], block.apply({"params": params}, outputs[0])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_dropout_drops_its_share_and_keeps_the_mean(rate, implementation):
    key = jax.random.key(3, impl=implementation)
    y = np.asarray(dropout.Dropout(rate, deterministic=False).apply({}, jnp.ones((1001, 997)), rngs={"dropout": key}))
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - rate)], rtol=1e-6)
    dropped = (y == 0) - rate
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(dropped.mean()) < 4 * deviation / dropped.size**0.5
    for lag in (1, 2, 4, 16, 128, 997):  # neighbours in a row, and in a column, know nothing of each other
        together = (dropped.ravel()[:-lag] * dropped.ravel()[lag:]).mean()
        assert abs(together) < 4 * deviation**2 / dropped.size**0.5, lag
    for axis, count in enumerate(dropped.shape):  # no row and no column has more or less than chance gives
        np.testing.assert_allclose(dropped.mean(axis).std(), deviation / count**0.5, rtol=0.1)


def test_dropout_keeps_the_mean_in_bfloat16():
    """Whose nearest number to 0.9 is 0.8984."""
    x = jax.random.uniform(jax.random.key(0), (1000, 1000), minval=1, maxval=2).astype(jnp.bfloat16)
    y = dropout.Dropout(0.1, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(1)})
    x, y = np.float64(x), np.float64(y)
    np.testing.assert_allclose((y[y > 0] / x[y > 0]).mean(), 1 / 0.9, rtol=2e-4)


def test_dropout_is_the_same_on_every_kind_of_device():
    y = dropout.Dropout(0.5, deterministic=False).apply(
        {}, jnp.ones(16), rngs={"dropout": jax.random.key(7, impl="rbg")}
    )
    np.testing.assert_array_equal(y == 0, [0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0])


def test_dropout_under_one_key_tells_nothing_of_another():
    first, *others = (
        np.asarray(dropout.Dropout(0.5, deterministic=False).apply({}, jnp.ones(4096), rngs={"dropout": key})) == 0
        for key in jax.random.split(jax.random.key(0), 4)
    )
    for other in others:
        np.testing.assert_allclose((first == other).mean(), 0.5, atol=4 * 0.5 / 4096**0.5)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_of_no_place_and_key_follows_from_another(rate):
    """Correlations of all pairs of places at every distance, under one key and under two: none stands out."""
    size, deviation = 2**18, (rate * (1 - rate)) ** 0.5
    module = dropout.Dropout(rate, deterministic=False)
    dropped = [
        np.asarray(module.apply({}, jnp.ones(size), rngs={"dropout": key})) == 0
        for key in jax.random.split(jax.random.key(5), 3)
    ]
    spectra = [np.fft.rfft((values - rate) / deviation) for values in dropped]
    for first, second in itertools.combinations_with_replacement(range(3), 2):
        correlations = np.fft.irfft(spectra[first] * spectra[second].conj()) / size**0.5
        if first == second:
            correlations = correlations[1:]
        assert 4 < abs(correlations).max() < 6  # of 2**18 independent normal values, the largest is about 4.7


def test_dropout_is_nothing_where_it_is_off_and_small_rates_still_drop():
    x, rngs = jnp.ones((100, 100), jnp.bfloat16), {"dropout": jax.random.key(0)}
    assert dropout.Dropout(0.5).apply({}, x, deterministic=True) is x
    assert dropout.Dropout(0.0).apply({}, x, deterministic=False) is x
    y = dropout.Dropout(1e-3, deterministic=False).apply({}, x, rngs=rngs)
    assert y.dtype == jnp.bfloat16
    assert 0 < (y == 0).mean() < 3e-3


@pytest.mark.parametrize(("rate", "size"), [(1.0, 4), (-0.1, 4), (0.1, 2**32 + 1)])
def test_dropout_refuses_what_it_cannot_do(rate, size):
    x, rngs = jax.ShapeDtypeStruct((size,), jnp.bfloat16), {"dropout": jax.random.key(0)}
    with pytest.raises(InputError, match=f"dropout of {size} values at rate {rate}"):
        jax.eval_shape(lambda x: dropout.Dropout(rate, deterministic=False).apply({}, x, rngs=rngs), x)


MASKS = [(mask, packs) for mask in (None, ATTENTION_MASK) for packs in (None, PACK_IDS)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("attention_mask", "pack_ids"), MASKS)
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(
    "implementation",
    ["xla", pytest.param("cudnn", marks=pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"))],
)
def test_the_fused_form_is_the_plain_one(causal, attention_mask, pack_ids, dtype, close, implementation):
    if implementation == "cudnn" and dtype == "float32":
        pytest.skip("cuDNN takes bfloat16")
    query, key, value = (jnp.asarray(x, dtype) for x in (QUERY, KEY, VALUE))
    masks = {"attention_mask": attention_mask, "pack_ids": pack_ids}
    fused, _ = attention.cudnn_attention(
        query, key, value, attention.Masks(causal, **masks), implementation=implementation
    )
    plain, _ = attention.dot_product_attention(query, key, value, attention.Masks(causal, **masks))
    real = np.ones((2, 6), bool) if attention_mask is None else attention_mask > 0
    np.testing.assert_allclose(np.float32(fused)[real], np.float32(plain)[real], rtol=close, atol=close)


def gpu(kind="NVIDIA H100 80GB HBM3", capability="9.0"):
    return types.SimpleNamespace(device_kind=kind, compute_capability=capability)


@pytest.mark.parametrize(
    ("device", "dtype", "length", "width", "dropout", "obstacle"),
    [
        (gpu(), "bfloat16", 512, 64, 0.0, None),
        (gpu(), "float16", 512, 128, 0.0, None),
        (gpu("cpu"), "bfloat16", 512, 64, 0.0, "no fused kernel for a cpu"),
        (gpu("Tesla T4"), "bfloat16", 512, 64, 0.0, "no fused kernel for a Tesla T4"),
        (gpu("NVIDIA T4", "7.5"), "bfloat16", 512, 64, 0.0, "compute capability 8.0 or higher, and the GPU has 7.5"),
        (gpu(), "float32", 512, 64, 0.0, "the dtype is float32"),
        (gpu(), "bfloat16", 512, 127, 0.0, "they are 127 and 512"),
        (gpu(), "bfloat16", 512, 136, 0.0, "they are 136 and 512"),
        (gpu(), "bfloat16", 511, 64, 0.0, "they are 64 and 511"),
        (gpu(), "bfloat16", 512, 64, 0.1, "it supports no dropout in JAX, and model.attention_dropout is 0.1"),
    ],
)
def test_cudnn_is_taken_where_nothing_stands_against_it(device, dtype, length, width, dropout, obstacle):
    request = attention.Request(device, dtype, length, 12, width, dropout)
    assert (attention.chosen(request).name == "cuDNN") == (obstacle is None)
    assert obstacle is None or obstacle in attention.why_plain(request)


@pytest.mark.parametrize(
    ("device", "changes", "choice", "name"),
    [
        (gpu(), {}, "plain", "plain"),
        (gpu(), {}, "fused", "cuDNN"),
        (gpu("TPU v5 lite"), {}, "auto", "the TPU kernel"),
        (gpu("TPU v6 lite"), {"dropout": 0.1}, "fused", "the TPU kernel"),
        (gpu("TPU v5 lite"), {"length": 127}, "auto", "plain"),
        (gpu("TPU v5 lite"), {}, "plain", "plain"),
        (gpu("TPU v5 lite"), {"cached": True, "length": 1}, "fused", "decode"),
        (gpu("TPU v5 lite"), {"probabilities": True}, "fused", "plain"),
        (gpu("cpu"), {}, "auto", "plain"),
    ],
)
def test_a_choice_of_kernels_is_kept(device, changes, choice, name):
    request = attention.Request(device, "bfloat16", 512, 12, 64)._replace(**changes)
    assert attention.chosen(request, choice).name == name


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (gpu("cpu"), "no fused kernel for a cpu"),
        (gpu(), "cuDNN not used: it supports no dropout in JAX, and model.attention_dropout is 0.1"),
        (
            gpu("TPU v4"),
            "the TPU kernel not used: it was compiled for TPU v5 lite, TPU v5, TPU v6 lite, and the device",
        ),
        (gpu("TPU v5"), "the TPU kernel not used: it needs a length that is a multiple of 128 up to 512"),
    ],
)
def test_a_fused_kernel_that_is_asked_for_but_cannot_serve_is_refused(device, reason):
    request = attention.Request(device, "bfloat16", 640, 12, 64, dropout=0.1)
    message = r"^model.attention is fused, but attention must be plain here \(.*\); set model.attention=auto$"
    with pytest.raises(InputError, match=message) as error:
        attention.chosen(request, "fused")
    assert f"({reason}" in str(error.value)
    assert attention.why_plain(request, "plain") == "by model.attention"
    with pytest.raises(InputError, match="model.attention is 'plian'; it must be one of auto, plain, fused"):
        attention.chosen(request, "plian")


def test_a_model_with_fused_attention_makes_its_parameters_from_one_token():
    """As a run does at its beginning, `plan` and `save_pretrained`; only rows of a real length must be fused."""
    model = BertModel(bert_tiny(), attention="fused")
    ids = jnp.zeros((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)
    with pytest.raises(InputError, match="model.attention is fused"):
        jax.eval_shape(model.apply, params, ids)


@pytest.mark.parametrize(
    ("request_of", "name"),
    [
        ({}, "cuDNN"),
        ({"probabilities": True}, "plain"),
        ({"dropout": 0.1}, "plain"),
        ({"dtype": "float32"}, "plain"),
        ({"cached": True}, "plain"),
        ({"cached": True, "length": 1}, "decode"),
        ({"cached": True, "length": 1, "dropout": 0.1}, "plain"),
        ({"cached": True, "length": 1, "probabilities": True}, "plain"),
    ],
)
def test_the_first_kernel_that_can_serve_is_taken(request_of, name):
    request = attention.Request(gpu(), "bfloat16", 512, 12, 64)._replace(**request_of)
    assert attention.chosen(request).name == name


def test_on_a_chosen_cpu_attention_is_plain_beside_a_gpu(monkeypatch):
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in (QUERY, KEY, VALUE))
    plain = attention.attend(query, key, value, causal=True).mixed
    with jax.default_device(jax.devices()[0]):
        monkeypatch.setattr(attention.jax, "devices", lambda _: [gpu()])
        np.testing.assert_array_equal(attention.attend(query, key, value, causal=True).mixed, plain)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("attention_mask", "pack_ids"), MASKS)
def test_a_block_lowers_to_cudnn_from_here(monkeypatch, causal, attention_mask, pack_ids, deterministic):
    """On a machine without a GPU: JAX's look at the GPU is answered for it, and its checks of shapes and dtypes run."""
    checks = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(checks, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(checks, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(checks, "is_cuda_compute_capability_equal", lambda capability: False)
    monkeypatch.setattr(attention.jax, "devices", lambda _: [gpu()])
    config = dataclasses.replace(CONFIG, attention_dropout=0.1)
    module = attention.Attention(config, causal, jnp.bfloat16)
    x = jnp.ones((2, 6, 16))
    params = jax.eval_shape(module.init, jax.random.key(0), x, attention_mask, pack_ids)

    def loss(params, key):
        return module.apply(params, x, attention_mask, pack_ids, deterministic, rngs={"dropout": key})[0].sum()

    names = ["__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax"]
    calls = [jax.export.DisabledSafetyCheck.custom_call(name + end) for name in names for end in ("", "Backward")]
    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=["cuda"], disabled_checks=calls)
    program = exported(params, jax.random.key(0)).mlir_module()
    assert ("__cudnn$fmha" in program) == deterministic  # with dropout the plain form serves
    assert ("ScaleBias" in program) == (deterministic and (attention_mask is not None or pack_ids is not None))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_output_and_no_gradient(remat, x):
    config = dataclasses.replace(CONFIG, num_layers=2)
    params = blocks.Stack(config).init(jax.random.key(0), x)

    def loss(params, remat):
        stack = blocks.Stack(config, remat=remat)
        layers_out, *_ = stack.apply(params, x, ATTENTION_MASK, PACK_IDS, False, rngs={"dropout": jax.random.key(1)})
        return (layers_out[-1] ** 2).sum(), layers_out

    (gradient, outputs), (expected, expected_outputs) = (
        jax.jit(jax.grad(functools.partial(loss, remat=policy), has_aux=True))(params) for policy in (remat, "none")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gradient, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), outputs, expected_outputs)
