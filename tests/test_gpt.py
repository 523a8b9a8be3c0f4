"""GPT-1: no prefix is ever cut, the head is tied, nothing is normalised outside the blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bertgpt

IDS = np.random.default_rng(0).integers(0, 64, (2, 9)).astype(np.int32)


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
    """(params, **inputs) -> output with hidden states."""
    return jax.jit(lambda params, **inputs: tiny_gpt.apply({"params": params}, output_hidden_states=True, **inputs))


@pytest.fixture(scope="module")
def output(run, params):
    return run(params, input_ids=IDS)


def test_no_prefix_is_ever_cut(tiny_gpt, params):
    # One causal pass over 4 tokens against 4 passes over 1, 2, 3 and 4 tokens, each scored at its last.
    model = bertgpt.OpenAIGPTLMHeadModel(dataclasses.replace(tiny_gpt.config, num_layers=1))
    ids, labels = IDS[:1, :4], IDS[0, 1:5]

    def by_one_pass(params):
        log = jax.nn.log_softmax(model.apply({"params": params}, ids).logits)
        losses = -log[0, np.arange(4), labels]
        return losses.sum(), losses

    def by_prefixes(params):
        lasts = [model.apply({"params": params}, ids[:, : t + 1]).logits[0, -1] for t in range(4)]
        losses = jnp.stack([-jax.nn.log_softmax(last)[label] for last, label in zip(lasts, labels, strict=True)])
        return losses.sum(), losses

    (grads, losses), (summed, separate) = (
        jax.jit(jax.grad(function, has_aux=True))(params) for function in (by_one_pass, by_prefixes)
    )
    np.testing.assert_allclose(losses, separate, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), grads, summed)


def test_logits_do_not_change_with_later_tokens(run, params, output):
    changed = IDS.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % 64
    np.testing.assert_array_equal(run(params, input_ids=changed).logits[:, :5], output.logits[:, :5])


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
    expected = transformer["token"]["embedding"][IDS] + transformer["position"]["embedding"][:9]
    np.testing.assert_allclose(output.hidden_states[0], expected, rtol=1e-6)


def test_there_are_layers_plus_one_hidden_states_and_the_last_is_last(output):
    assert len(output.hidden_states) == 3
    np.testing.assert_array_equal(output.hidden_states[-1], output.last_hidden_state)


def test_hidden_states_come_only_when_asked_for(tiny_gpt, params):
    assert jax.eval_shape(tiny_gpt.apply, {"params": params}, IDS).hidden_states is None


def test_positions_default_to_their_order_and_matter(run, params, output):
    order = np.arange(9)[None]
    np.testing.assert_allclose(run(params, input_ids=IDS, position_ids=order).logits, output.logits, rtol=1e-5)
    assert abs(run(params, input_ids=IDS, position_ids=order[:, ::-1]).logits - output.logits).max() > 1e-2


def test_a_packed_row_is_its_examples_apart(run, params):
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed = run(params, input_ids=IDS, position_ids=positions, pack_ids=np.array([[0] * 4 + [1] * 5] * 2))
    apart = [run(params, input_ids=part).logits for part in (IDS[:, :4], IDS[:, 4:])]
    np.testing.assert_allclose(packed.logits, np.concatenate(apart, axis=1), rtol=1e-4, atol=1e-5)


def test_left_padding_is_hidden_by_the_attention_mask(run, params):
    mask, positions = np.array([[0] * 3 + [1] * 6] * 2), np.array([[0, 0, 0, 0, 1, 2, 3, 4, 5]])
    padded = run(params, input_ids=IDS, attention_mask=mask, position_ids=positions)
    short = run(params, input_ids=IDS[:, 3:])
    np.testing.assert_allclose(padded.logits[:, 3:], short.logits, rtol=1e-4, atol=1e-5)


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
    config = dataclasses.replace(tiny_gpt.config, hidden_dropout=0.5)
    model, rngs = bertgpt.OpenAIGPTLMHeadModel(config), {"dropout": jax.random.key(0)}
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

    zero, along = jnp.zeros(2), jnp.array([1.0, -0.5])
    _, slope = jax.jit(lambda x: jax.jvp(loss, (x,), (along,)))(zero)
    gradient = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(slope, gradient(zero) @ along, rtol=1e-4)
    hessian = jax.jit(jax.hessian(loss))(zero)
    finite = (gradient(1e-2 * along) - gradient(-1e-2 * along)) / 2e-2
    np.testing.assert_allclose(hessian @ along, finite, rtol=2e-2, atol=2e-3)
