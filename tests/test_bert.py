"""BERT: embeddings, pooler, heads and initial values."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bertgpt
from bertgpt.model.bert import BertEmbeddings

IDS = np.random.default_rng(0).integers(5, 30, (2, 12)).astype(np.int32)
ABSENT = 40  # a token that no row holds


@pytest.fixture(scope="module")
def fresh(tiny_bert):
    """The initial parameters."""
    return jax.jit(tiny_bert.init)(jax.random.key(0), IDS)["params"]


@pytest.fixture(scope="module")
def params(fresh):
    """Parameters far from the initial ones, so that every bias and gain shows."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), fresh)


@pytest.fixture(scope="module")
def run(tiny_bert):
    """(params, input_ids, **inputs) -> output with hidden states; what is left out is given as the default is told."""
    compiled = jax.jit(lambda p, **inputs: tiny_bert.apply({"params": p}, output_hidden_states=True, **inputs))

    def run(params, input_ids, **inputs):
        zeros = np.zeros_like(input_ids)
        inputs = {"attention_mask": zeros + 1, "token_type_ids": zeros, "pack_ids": zeros} | inputs
        inputs = {"position_ids": zeros + np.arange(input_ids.shape[1], dtype=np.int32)} | inputs
        return compiled(params, input_ids=input_ids, **inputs)

    return run


@pytest.fixture(scope="module")
def output(tiny_bert, params):
    """Of ids alone."""
    return jax.jit(lambda p: tiny_bert.apply({"params": p}, IDS, output_hidden_states=True))(params)


def norm(p, x):
    """LayerNorm in NumPy."""
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return scaled * np.asarray(p["scale"]) + np.asarray(p["bias"])


def test_embeddings_are_the_norm_of_token_position_and_segment(run, params):
    tables = {name: np.asarray(params["bert"]["embeddings"][name]["embedding"]) for name in ("token", "segment")}
    positions = np.asarray(params["bert"]["embeddings"]["position"]["embedding"])
    segments = np.array([[0] * 4 + [1] * 8] * 2, np.int32)
    total = tables["token"][IDS] + tables["segment"][segments] + positions[:12]
    got = run(params, IDS, token_type_ids=segments).hidden_states[0]
    np.testing.assert_allclose(got, norm(params["bert"]["embeddings"]["norm"], total), rtol=1e-4, atol=1e-5)


def test_left_out_inputs_mean_real_tokens_of_one_segment_and_example_in_order(run, params, output):
    np.testing.assert_allclose(run(params, IDS).mlm_logits, output.mlm_logits, rtol=1e-4, atol=1e-5)


def test_segments_matter(run, params, output):
    other = run(params, IDS, token_type_ids=np.ones_like(IDS))
    assert abs(other.mlm_logits - output.mlm_logits).max() > 1e-2


def test_positions_matter(run, params, output):
    backwards = np.repeat(np.arange(12, dtype=np.int32)[None, ::-1], 2, axis=0)
    assert abs(run(params, IDS, position_ids=backwards).mlm_logits - output.mlm_logits).max() > 1e-2


def test_padding_changes_nothing_at_real_positions(run, params):
    padded = run(params, IDS, attention_mask=np.array([[1] * 6 + [0] * 6] * 2, np.int32))
    short = run(params, IDS[:, :6])
    np.testing.assert_allclose(padded.mlm_logits[:, :6], short.mlm_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(padded.nsp_logits, short.nsp_logits, rtol=1e-4, atol=1e-5)


def test_a_packed_row_is_its_examples_apart(run, params):
    positions, examples = (np.array([row] * 2, np.int32) for row in ([*range(6)] * 2, [0] * 6 + [1] * 6))
    packed = run(params, IDS, position_ids=positions, pack_ids=examples)
    apart = [run(params, part).mlm_logits for part in (IDS[:, :6], IDS[:, 6:])]
    np.testing.assert_allclose(packed.mlm_logits, np.concatenate(apart, axis=1), rtol=1e-4, atol=1e-5)


def test_attention_looks_both_ways(run, params, output):
    changed = IDS.copy()
    changed[:, -1] = ABSENT
    assert abs(run(params, changed).mlm_logits - output.mlm_logits)[:, 0].max() > 1e-3


def test_there_are_layers_plus_one_hidden_states_and_the_last_is_last(output):
    assert len(output.hidden_states) == 3
    np.testing.assert_array_equal(output.hidden_states[-1], output.last_hidden_state)
    assert abs(output.hidden_states[1] - output.hidden_states[2]).max() > 1e-2


def test_hidden_states_come_only_when_asked_for(tiny_bert, params):
    shapes = jax.eval_shape(tiny_bert.apply, {"params": params}, IDS)
    assert shapes.hidden_states is None
    assert shapes.last_hidden_state.shape == (2, 12, 16)


def test_pooler_is_tanh_of_a_dense_layer_on_cls(params, output):
    pooler = params["bert"]["pooler"]
    expected = np.tanh(np.asarray(output.last_hidden_state)[:, 0] @ pooler["kernel"] + np.asarray(pooler["bias"])[None])
    np.testing.assert_allclose(output.pooler_output, expected, rtol=1e-5, atol=1e-6)


def test_next_sentence_head_is_a_dense_layer_on_the_pooler(params, output):
    head = params["nsp_head"]
    expected = np.asarray(output.pooler_output) @ head["kernel"] + np.asarray(head["bias"])[None]
    np.testing.assert_allclose(output.nsp_logits, expected, rtol=1e-5, atol=1e-6)


def test_masked_token_head_is_dense_gelu_norm_and_the_token_embeddings(params, output):
    head = jax.tree.map(np.asarray, params["mlm_head"])
    x = np.asarray(output.last_hidden_state) @ head["dense"]["kernel"] + head["dense"]["bias"]
    x = norm(head["norm"], x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2)
    expected = x @ np.asarray(params["bert"]["embeddings"]["token"]["embedding"]).T + head["bias"]
    np.testing.assert_allclose(output.mlm_logits, expected, rtol=1e-4, atol=1e-4)


def test_logits_at_masked_positions_are_the_full_logits_there(tiny_bert, params, output):
    positions = np.array([[1, 11, 0], [7, 2, 2]])
    got = jax.jit(tiny_bert.apply)({"params": params}, IDS, masked_positions=positions).mlm_logits
    expected = np.take_along_axis(np.asarray(output.mlm_logits), positions[:, :, None], axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_gradient_reaches_the_token_embedding_through_the_head(tiny_bert, params):
    model = bertgpt.BertForPreTraining(dataclasses.replace(tiny_bert.config, num_layers=1))
    grads = jax.jit(jax.grad(lambda p: model.apply({"params": p}, IDS).mlm_logits[..., ABSENT].sum()))(params)
    embedding = grads["bert"]["embeddings"]["token"]["embedding"]
    assert abs(embedding[ABSENT]).max() > 1e-2  # no row holds the token: only the head uses its embedding
    np.testing.assert_array_equal(embedding[ABSENT + 1], np.zeros(16))


def test_a_changed_token_embedding_changes_its_logit_alone(run, params, output):
    changed = jax.tree.map(lambda leaf: leaf, params)
    table = changed["bert"]["embeddings"]["token"]
    table["embedding"] = table["embedding"].at[ABSENT].add(1.0)
    difference = abs(run(changed, IDS).mlm_logits - output.mlm_logits).max((0, 1))
    assert np.flatnonzero(difference > 1e-4).tolist() == [ABSENT]


def test_encoder_alone_is_the_encoder_of_the_pretraining_model(tiny_bert, params, output):
    got = jax.jit(bertgpt.BertModel(tiny_bert.config).apply)({"params": params["bert"]}, IDS)
    np.testing.assert_allclose(got.pooler_output, output.pooler_output, rtol=1e-5, atol=1e-6)
    assert got.mlm_logits is None


def test_matrices_start_truncated_at_two_deviations(fresh):
    leaves = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(fresh) if leaf.ndim == 2}
    assert len(leaves) == 3 + 2 * 6 + 3  # embeddings, blocks, pooler and heads
    assert all(0.03 < abs(leaf).max() <= 0.04 for leaf in leaves.values())
    everything = np.concatenate([leaf.ravel() for leaf in leaves.values()])
    np.testing.assert_allclose(everything.std(), 0.02 * 0.8796, rtol=0.05)  # of a normal that is cut at 2


def test_biases_start_at_zero_and_norms_at_one(fresh):
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh):
        if leaf.ndim == 1:
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(path[-1].key == "scale")))
    assert fresh["mlm_head"]["bias"].shape == (64,)


def test_embedding_dropout_follows_the_norm(tiny_bert, params, output):
    config = dataclasses.replace(tiny_bert.config, hidden_dropout=0.5)
    dropped = BertEmbeddings(config).apply(
        {"params": params["bert"]["embeddings"]}, IDS, deterministic=False, rngs={"dropout": jax.random.key(0)}
    )
    ratio = np.asarray(dropped / output.hidden_states[0])
    np.testing.assert_allclose(ratio, 2 * ratio.round().astype(bool), atol=1e-4)  # either 0 or doubled
    np.testing.assert_allclose((ratio == 0).mean(), 0.5, atol=0.1)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_logits(tiny_bert, params, output):
    model = bertgpt.BertForPreTraining(tiny_bert.config, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    low = jax.jit(model.apply)({"params": params}, IDS)
    assert low.last_hidden_state.dtype == jnp.bfloat16
    assert low.mlm_logits.dtype == low.nsp_logits.dtype == jnp.float32
    np.testing.assert_allclose(low.mlm_logits, output.mlm_logits, atol=0.3)
