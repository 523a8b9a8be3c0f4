"""GPT-1: no prefix is ever cut, the head is tied, nothing is normalised outside the blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bertgpt
from bertgpt.model.attention import empty_cache

IDS = np.random.default_rng(0).integers(0, 64, (2, 12)).astype(np.int32)


@pytest.fixture(scope="module")
def fresh(tiny_gpt):
    """The initial parameters."""
    return jax.jit(tiny_gpt.init)(jax.random.key(0), IDS)["params"]


@pytest.fixture(scope="module")
def params(fresh):
    """Parameters far from the initial ones, so that every bias and gain shows."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), fresh)


@pytest.fixture(scope="module")
def run(tiny_gpt):
    """(params, input_ids, **inputs) -> logits; what is left out is given as the default is told."""
    compiled = jax.jit(lambda p, **inputs: tiny_gpt.apply({"params": p}, **inputs).logits)

    def run(params, input_ids, **inputs):
        zeros = np.zeros_like(input_ids)
        inputs = {"attention_mask": zeros + 1, "pack_ids": zeros} | inputs
        inputs = {"position_ids": zeros + np.arange(input_ids.shape[1], dtype=np.int32)} | inputs
        return compiled(params, input_ids=input_ids, **inputs)

    return run


@pytest.fixture(scope="module")
def output(tiny_gpt, params):
    """Of ids alone."""
    return jax.jit(lambda p: tiny_gpt.apply({"params": p}, IDS, output_hidden_states=True))(params)


def test_no_prefix_is_ever_cut(tiny_gpt, params):
    # One causal pass over 3 tokens against 3 passes over 1, 2 and 3 tokens, each scored at its last.
    model = bertgpt.OpenAIGPTLMHeadModel(dataclasses.replace(tiny_gpt.config, num_layers=1))
    ids, labels = IDS[:1, :3], IDS[0, 1:4]

    def by_one_pass(params):
        log = jax.nn.log_softmax(model.apply({"params": params}, ids).logits)
        losses = -log[0, np.arange(3), labels]
        return losses.sum(), losses

    def by_prefixes(params):
        lasts = [model.apply({"params": params}, ids[:, : t + 1]).logits[0, -1] for t in range(3)]
        losses = jnp.stack([-jax.nn.log_softmax(last)[label] for last, label in zip(lasts, labels, strict=True)])
        return losses.sum(), losses

    (grads, losses), (summed, separate) = (
        jax.jit(jax.grad(function, has_aux=True))(params) for function in (by_one_pass, by_prefixes)
    )
    np.testing.assert_allclose(losses, separate, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), grads, summed)


def test_logits_do_not_change_with_later_tokens(run, params):
    changed = IDS.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % 64
    before, after = (run(params, ids) for ids in (IDS, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert abs(before - after)[:, 5:].max() > 1e-2


def test_logits_are_the_hidden_state_times_the_token_embeddings(params, output):
    embedding = np.asarray(params["transformer"]["token"]["embedding"])
    expected = np.asarray(output.last_hidden_state) @ embedding.T
    np.testing.assert_allclose(output.logits, expected, rtol=1e-5, atol=1e-5)
    assert set(params) == {"transformer"}  # no head of its own, and no bias


def test_nothing_is_normalised_outside_the_blocks(params):
    transformer = params["transformer"]
    assert set(transformer) == {"token", "position", "stack"}
    assert set(transformer["token"]) == set(transformer["position"]) == {"embedding"}
    assert set(transformer["stack"]) == {"block_0", "block_1"}
    assert set(transformer["stack"]["block_0"]) == {"attention", "attention_norm", "feed_forward", "feed_forward_norm"}


def test_embeddings_are_token_and_position_added(params, output):
    transformer = jax.tree.map(np.asarray, params["transformer"])
    expected = transformer["token"]["embedding"][IDS] + transformer["position"]["embedding"][:12]
    np.testing.assert_allclose(output.hidden_states[0], expected, rtol=1e-6)


def test_there_are_layers_plus_one_hidden_states_and_the_last_is_last(output):
    assert len(output.hidden_states) == 3
    np.testing.assert_array_equal(output.hidden_states[-1], output.last_hidden_state)


def test_hidden_states_come_only_when_asked_for(tiny_gpt, params):
    assert jax.eval_shape(tiny_gpt.apply, {"params": params}, IDS).hidden_states is None


def test_left_out_inputs_mean_real_tokens_of_one_example_in_order(run, params, output):
    np.testing.assert_allclose(run(params, IDS), output.logits, rtol=1e-4, atol=1e-5)


def test_positions_matter(run, params, output):
    backwards = np.repeat(np.arange(12, dtype=np.int32)[None, ::-1], 2, axis=0)
    assert abs(run(params, IDS, position_ids=backwards) - output.logits).max() > 1e-2


def test_a_packed_row_is_its_examples_apart(run, params):
    positions, examples = (np.array([row] * 2, np.int32) for row in ([*range(6)] * 2, [0] * 6 + [1] * 6))
    packed = run(params, IDS, position_ids=positions, pack_ids=examples)
    apart = [run(params, part) for part in (IDS[:, :6], IDS[:, 6:])]
    np.testing.assert_allclose(packed, np.concatenate(apart, axis=1), rtol=1e-4, atol=1e-5)


def test_left_padding_is_hidden_by_the_attention_mask(run, params):
    mask, positions = (np.array([row] * 2, np.int32) for row in ([0] * 6 + [1] * 6, [0] * 6 + [*range(6)]))
    padded = run(params, IDS, attention_mask=mask, position_ids=positions)
    np.testing.assert_allclose(padded[:, 6:], run(params, IDS[:, 6:]), rtol=1e-4, atol=1e-5)


def test_every_matrix_starts_normal_and_not_truncated(fresh):
    leaves = [leaf for leaf in jax.tree.leaves(fresh) if leaf.ndim == 2]
    assert len(leaves) == 2 + 2 * 6  # token and position embeddings, blocks
    for leaf in leaves:
        assert abs(leaf).max() > 0.045  # 4.6 % of a normal is beyond 2 deviations, 0.04
        np.testing.assert_allclose(leaf.std(), 0.02, rtol=0.15)


def test_biases_start_at_zero_and_norms_at_one(fresh):
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh):
        if leaf.ndim == 1:
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(path[-1].key == "scale")))


def test_embeddings_are_dropped_when_asked_for(tiny_gpt, params, output):
    config = dataclasses.replace(tiny_gpt.config, hidden_dropout=0.5, num_layers=1)
    model, rngs = bertgpt.OpenAIGPTLMHeadModel(config), {"dropout": jax.random.key(0, impl="rbg")}
    apply = jax.jit(
        lambda p: model.apply({"params": p}, IDS, deterministic=False, output_hidden_states=True, rngs=rngs)
    )
    dropped = apply(params)
    ratio = np.asarray(dropped.hidden_states[0] / output.hidden_states[0])
    np.testing.assert_allclose(ratio, 2 * ratio.round().astype(bool), atol=1e-4)  # either 0 or doubled
    np.testing.assert_allclose((ratio == 0).mean(), 0.5, atol=0.1)


def test_forward_and_second_derivatives_exist(tiny_gpt, params):
    model = bertgpt.OpenAIGPTLMHeadModel(dataclasses.replace(tiny_gpt.config, num_layers=1))
    position = params["transformer"]["position"]["embedding"]

    def loss(shift):
        moved = position.at[1, :2].add(shift)
        tree = {"transformer": params["transformer"] | {"position": {"embedding": moved}}}
        return (model.apply({"params": tree}, IDS[:1, :4]).logits[0, 2] ** 2).mean()

    along = jnp.array([1.0, -0.5])
    derive = jax.jit(lambda x: (jax.jvp(loss, (x,), (along,))[1], jax.grad(loss)(x), jax.hessian(loss)(x)))
    (slope, gradient, hessian), (_, ahead, _), (_, behind, _) = (derive(x * along) for x in (0, 1e-2, -1e-2))
    np.testing.assert_allclose(slope, gradient @ along, rtol=1e-4)
    np.testing.assert_allclose(hessian @ along, (ahead - behind) / 2e-2, rtol=2e-2, atol=2e-3)


@pytest.fixture(scope="module")
def step(tiny_gpt):
    """(params, input_ids, cache, **masks) -> logits and the cache."""

    def step(params, input_ids, cache, **masks):
        output = tiny_gpt.apply({"params": params}, input_ids, cache=cache, **masks)
        return output.logits, output.cache

    return jax.jit(step)


def test_tokens_read_through_a_cache_have_the_logits_of_the_whole_text(tiny_gpt, params, run, step):
    cache, parts = empty_cache(tiny_gpt.config, 2, 14, jnp.float32), []
    for start, end in ((0, 5), (5, 6), (6, 12)):
        logits, cache = step(params, IDS[:, start:end], cache)
        parts.append(logits)
    assert int(cache[0].start) == 12
    np.testing.assert_allclose(np.concatenate(parts, 1), run(params, IDS), rtol=1e-4, atol=1e-4)


def test_tokens_beyond_the_last_slot_give_nan(tiny_gpt, params, step):
    logits, cache = step(params, IDS[:, :5], empty_cache(tiny_gpt.config, 2, 8, jnp.float32))
    assert np.isfinite(logits).all()
    assert np.isnan(step(params, IDS[:, 5:10], cache)[0]).all()


@pytest.mark.parametrize(
    ("rows", "slots", "layers", "masks", "message"),
    [
        (2, 8, 2, {"attention_mask": np.ones((2, 12), int)}, r"attention_mask must be an array \[B S\] = \[2 8\]"),
        (2, 8, 2, {"pack_ids": np.ones((2, 1), int)}, r"pack_ids must be an integer array \[B S\] = \[2 8\]"),
        (1, 8, 2, {}, "the cache has 2 layers of 2 heads x 8 slots; tokens .2 3. need 2 of 4 x 3 or more"),
        (2, 2, 2, {}, "the cache has 2 layers of 4 heads x 2 slots"),
        (2, 8, 1, {}, "the cache has 1 layers"),
    ],
)
def test_a_cache_that_does_not_fit_is_rejected(tiny_gpt, params, rows, slots, layers, masks, message):
    cache = empty_cache(tiny_gpt.config, rows, slots, jnp.float32)[:layers]
    with pytest.raises(bertgpt.InputError, match=message):
        tiny_gpt.apply({"params": params}, IDS[:, :3], cache=cache, **masks)


@pytest.mark.parametrize("name", ["OpenAIGPTForSequenceClassification", "OpenAIGPTDoubleHeadsModel"])
def test_heads_that_read_one_position_take_no_cache(tiny_gpt, name):
    model = getattr(bertgpt, name)(tiny_gpt.config)
    ids = IDS[:, None] if "Double" in name else IDS
    cache = empty_cache(tiny_gpt.config, 2, 12, jnp.float32)
    with pytest.raises(bertgpt.InputError, match=f"{name} takes no cache"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), ids, cache=cache))
