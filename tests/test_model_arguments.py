"""`inputs_embeds` in place of ids, and an `attention_mask` for each query."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from model_folders import FAMILY, make

import bertgpt
from bertgpt.model import attention
from bertgpt.model.attention import empty_cache
from bertgpt.model.inputs import takes_choices

T = 6


@functools.cache
def made(name):
    model, params = make(name)
    # far from their initial values, so that every parameter shows
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    run = jax.jit(lambda params, inputs: jax.tree.leaves(model.apply({"params": params}, **inputs)))
    return model, params, run


def token_table(params):
    inner = params.get("transformer") or params.get("bert") or params
    return inner.get("embeddings", inner)["token"]["embedding"]


def ids_of(name):
    return np.random.default_rng(0).integers(0, 64, (2, 3, T) if takes_choices(name) else (2, T)).astype(np.int32)


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_embeddings_of_ids_give_the_outputs_of_the_ids(name):
    _, params, run = made(name)
    ids = ids_of(name)
    mask = np.arange(T) < np.arange(2, 2 + ids.size // T).reshape(*ids.shape[:-1], 1)
    expected = run(params, {"input_ids": ids, "attention_mask": mask})
    embeds = np.asarray(token_table(params))[ids]
    assert_equal(run(params, {"inputs_embeds": embeds, "attention_mask": mask}), expected)


@pytest.mark.parametrize("name", ["BertModel", "OpenAIGPTModel"])
def test_initialization_from_embeddings_has_every_parameter(name):
    model, params, _ = made(name)
    embeds = jnp.zeros((1, 1, model.config.hidden_size))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs_embeds=embeds))["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "OpenAIGPTLMHeadModel"])
def test_the_gradient_of_embeddings_is_the_slope_of_the_loss(name):
    model, params, _ = made(name)
    embeds = np.asarray(token_table(params))[ids_of(name)]
    direction = np.random.default_rng(1).normal(size=embeds.shape).astype(np.float32)

    @jax.jit
    def loss(embeds):
        return jax.nn.log_softmax(model.apply({"params": params}, inputs_embeds=embeds).logits)[..., 3].sum()

    slope = (jax.grad(loss)(embeds) * direction).sum()
    step = 2e-3
    measured = (loss(embeds + step * direction) - loss(embeds - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, measured, rtol=2e-2)
    _, forward = jax.jvp(loss, (embeds,), (direction,))
    np.testing.assert_allclose(slope, forward, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILY)
def test_a_mask_repeated_for_each_query_is_the_mask_of_keys(name):
    _, params, run = made(name)
    ids = ids_of(name)
    mask = np.arange(T) < np.arange(3, 3 + ids.size // T).reshape(*ids.shape[:-1], 1)
    expected = run(params, {"input_ids": ids, "attention_mask": mask})
    for_queries = np.broadcast_to(mask[..., None, :], (*ids.shape, T))
    assert_equal(run(params, {"input_ids": ids, "attention_mask": for_queries.astype(np.int32)}), expected)
    if not takes_choices(name):
        assert_equal(run(params, {"input_ids": ids, "attention_mask": for_queries[:, None]}), expected)


def written_out(params, config, ids, allowed):
    """The last hidden state of a GPT-1, in loops over rows, heads and queries; allowed [B T S]."""

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.layer_norm_eps) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    width = config.hidden_size // config.num_heads
    result = []
    for row, queries in zip(ids, allowed, strict=True):
        x = params["token"]["embedding"][row] + params["position"]["embedding"][: len(row)]
        for layer in range(config.num_layers):
            block = params["stack"][f"block_{layer}"]
            query, key, value = (dense(x, block["attention"][part]) for part in ("query", "key", "value"))
            mixed = np.zeros_like(x)
            for head in range(config.num_heads):
                columns = slice(head * width, (head + 1) * width)
                for t in range(len(row)):
                    seen = [s for s in range(t + 1) if queries[t, s]]
                    scores = np.exp([query[t, columns] @ key[s, columns] / np.sqrt(width) for s in seen])
                    mixed[t, columns] = scores / scores.sum() @ value[seen, columns]
            x = norm(x + dense(mixed, block["attention"]["out"]), block["attention_norm"])
            up = dense(x, block["feed_forward"]["up"])
            gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
            x = norm(x + dense(gelu, block["feed_forward"]["down"]), block["feed_forward_norm"])
        result.append(x)
    return np.stack(result)


@given(arrays(bool, (2, T, T)), st.booleans())
def test_gpt_attends_to_the_earlier_keys_that_the_mask_allows(mask, four_axes):
    model, params, _ = made("OpenAIGPTModel")
    mask = mask | np.eye(T, dtype=bool)  # a query without any key is undefined
    ids = ids_of("OpenAIGPTModel")
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    expected = written_out(exact, model.config, ids, mask)
    found = hidden(params, ids, mask[:, None] if four_axes else mask)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@jax.jit
def hidden(params, ids, mask):
    return made("OpenAIGPTModel")[0].apply({"params": params}, ids, mask).last_hidden_state


@pytest.mark.parametrize("axes", [3, 4])
def test_a_mask_for_each_query_works_with_a_cache(axes):
    model, params, _ = made("OpenAIGPTModel")
    ids = ids_of("OpenAIGPTModel")
    mask = np.random.default_rng(2).random((2, T, T)) < 0.5
    mask |= np.eye(T, dtype=bool)
    expected = hidden(params, ids, mask)
    cache, found = empty_cache(model.config, 2, T, jnp.float32), []
    for start, stop in ((0, 3), (3, 4), (4, 6)):  # several tokens, and one, which has a kernel of its own
        queries = mask[:, start:stop] if axes == 3 else mask[:, None, start:stop]
        output = jax.jit(model.apply)({"params": params}, ids[:, start:stop], queries, cache=cache)
        cache = output.cache
        found.append(output.last_hidden_state)
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, atol=1e-5)


def test_a_cached_mask_for_each_query_has_one_value_per_slot():
    model, params, _ = made("OpenAIGPTModel")
    cache = empty_cache(model.config, 2, 8, jnp.float32)
    with pytest.raises(bertgpt.InputError, match=r"attention_mask must be an array \[B T S\] = \[2 6 8\], not bool"):
        model.apply({"params": params}, ids_of("OpenAIGPTModel"), np.ones((2, T, T), bool), cache=cache)


@pytest.mark.parametrize("shape", [(1, 128, 128), (1, 1, 128, 128)])
def test_the_tpu_kernel_leaves_a_mask_for_each_query_to_plain_attention(shape, monkeypatch):
    tpu = types.SimpleNamespace(device_kind="TPU v5 lite")
    monkeypatch.setattr(attention, "target_device", lambda: tpu)
    x = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)
    options = {"causal": False, "attention_mask": jnp.ones(shape, bool)}
    with pytest.raises(bertgpt.InputError, match="it supports no attention_mask of queries and keys"):
        attention.attend(x, x, x, **options, choice="fused")
    assert attention.attend(x, x, x, **options).probabilities is not None  # plain


def test_the_last_token_of_a_classifier_is_the_last_that_is_attended_to():
    _, params, run = made("OpenAIGPTForSequenceClassification")
    ids = ids_of("OpenAIGPTForSequenceClassification")
    mask = np.arange(T) < np.array([[3], [5]])
    expected = run(params, {"input_ids": ids, "attention_mask": mask})[-1]
    for for_queries in (np.broadcast_to(mask[:, None], (2, T, T)), np.tril(np.ones((T, T), bool)) & mask[:, None]):
        assert_equal(run(params, {"input_ids": ids, "attention_mask": for_queries})[-1:], [expected])
