"""Cached continuations against plain forward passes over the whole text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

import bertgpt
from bertgpt.inference import decoding, sampling
from bertgpt.model import attention

WIDE = TINY | {"vocab_size": 200, "initializer_range": 0.5}  # tokens differ in likelihood
PROMPTS = np.array([[3, 14, 15], [92, 65, 35]])
RAGGED = [[7], [3, 14, 15, 92, 65], list(range(40, 60)), [9, 8]]


@pytest.fixture(scope="module")
def gpt():
    """A model and its parameters."""
    model = bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**WIDE))
    return model, jax.jit(model.init)(jax.random.key(0), PROMPTS)["params"]


@pytest.fixture(scope="module")
def greedy(gpt):
    return np.asarray(bertgpt.generate(*gpt, PROMPTS, max_new_tokens=4))


@pytest.fixture(scope="module")
def plain(gpt):
    """(ids, count) -> the ids with the likeliest tokens of one plain forward pass each."""
    model, params = gpt
    logits = jax.jit(lambda p, ids: model.apply({"params": p}, ids).logits)

    def run(ids, count):
        ids = list(ids)
        for _ in range(count):
            padded = np.array([ids + [0] * (32 - len(ids))])  # what follows is causal-masked
            ids.append(int(logits(params, padded)[0, len(ids) - 1].argmax()))
        return ids

    return run


def test_greedy_takes_the_likeliest_token_of_each_plain_forward_pass(gpt, greedy):
    model, params = gpt
    ids = PROMPTS
    for _ in range(4):
        token = jax.jit(model.apply)({"params": params}, ids).logits[:, -1].argmax(-1)
        ids = np.concatenate([ids, np.asarray(token)[:, None]], axis=1)
    np.testing.assert_array_equal(greedy, ids)
    assert len(np.unique(greedy[:, 3:])) > 2


def test_a_batch_is_its_rows_apart(gpt, greedy):
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_array_equal(bertgpt.generate(*gpt, prompt[None], max_new_tokens=4), greedy[row : row + 1])


def test_sampling_hangs_on_the_key(gpt):
    first, again, other = (
        np.asarray(bertgpt.generate(*gpt, PROMPTS, 4, temperature=1.0, key=jax.random.key(seed))) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[:, :3], PROMPTS)
    assert (first != other).any()


def test_sampling_follows_the_softmax_of_logits_over_temperature(gpt):
    model, params = gpt
    logits = jax.jit(model.apply)({"params": params}, PROMPTS[:1]).logits[0, -1]
    tokens = bertgpt.generate(*gpt, np.repeat(PROMPTS[:1], 4000, 0), 1, temperature=2.0, key=jax.random.key(0))[:, -1]
    frequencies = np.bincount(tokens, minlength=200) / 4000
    np.testing.assert_allclose(frequencies, jax.nn.softmax(logits / 2), atol=0.02)
    assert abs(frequencies - jax.nn.softmax(logits)).max() > 0.05


def test_every_position_of_the_model_may_be_filled(gpt):
    assert bertgpt.generate(*gpt, PROMPTS, max_new_tokens=29).shape == (2, 32)


def test_a_text_over_the_positions_is_refused(gpt):
    with pytest.raises(bertgpt.InputError, match="3 tokens and 30 new ones exceed the model's 32 positions"):
        bertgpt.generate(*gpt, PROMPTS, max_new_tokens=30)


def test_an_empty_prompt_is_refused(gpt):
    with pytest.raises(bertgpt.InputError, match="no tokens"):
        bertgpt.generate(*gpt, np.zeros((1, 0), int), 4)


def test_sampling_without_a_key_is_refused(gpt):
    with pytest.raises(bertgpt.InputError, match="needs a key"):
        bertgpt.generate(*gpt, PROMPTS, 4, temperature=1.0)


def test_ids_beyond_the_vocabulary_are_refused(gpt):
    with pytest.raises(bertgpt.InputError, match="do not fit the vocabulary of 200"):
        bertgpt.generate(*gpt, np.array([[200]]), 4)


@pytest.mark.parametrize("count", [1, 7, 12])
def test_prompts_of_different_lengths_go_on_as_each_alone(gpt, plain, count):
    together = bertgpt.generate(*gpt, RAGGED, count)
    for prompt, row in zip(RAGGED, together, strict=True):
        assert row.tolist() == plain(prompt, count)
        assert bertgpt.generate(*gpt, [prompt], count)[0].tolist() == row.tolist()


def test_a_stream_gives_the_same_tokens_one_by_one(gpt):
    for options in ({}, {"temperature": 1.5, "key": jax.random.key(4), "top_k": 50, "top_p": 0.9}):
        whole = bertgpt.generate(*gpt, RAGGED[1:2], 9, **options)[0].tolist()
        assert RAGGED[1] + list(bertgpt.stream(*gpt, RAGGED[1], 9, **options)) == whole


def test_nothing_is_added_after_the_end_token(gpt, plain):
    ends = [plain(prompt, 8)[len(prompt) :] for prompt in RAGGED]
    end = ends[1][3]
    rows = bertgpt.generate(*gpt, RAGGED, 8, end_id=end)
    for prompt, row, full in zip(RAGGED, rows, ends, strict=True):
        kept = full[: full.index(end) + 1] if end in full else full
        assert row.tolist() == prompt + kept
    assert list(bertgpt.stream(*gpt, RAGGED[1], 8, end_id=end)) == ends[1][:4]
    array = np.asarray(bertgpt.generate(*gpt, np.array([RAGGED[1]]), 8, end_id=end))[0]
    assert array.tolist() == RAGGED[1] + ends[1][:4] + [end] * 4


def test_a_prompt_without_room_is_cut_on_the_left_when_asked(gpt, plain):
    prompt = [*range(100, 140)]
    with pytest.raises(bertgpt.InputError, match="lower max_new_tokens, or set cut_left"):
        bertgpt.generate(*gpt, [prompt], 4)
    (row,) = bertgpt.generate(*gpt, [prompt], 4, cut_left=True)
    assert row.tolist() == plain(prompt[-28:], 4)
    assert list(bertgpt.stream(*gpt, prompt, 4, cut_left=True)) == row[-4:].tolist()


def test_one_program_serves_a_bucket_of_lengths_and_every_setting(gpt):
    decoding._run.clear_cache()
    key = jax.random.key(0)
    for prompt, count in ((3, 5), (16, 16), (1, 1), (9, 12)):
        bertgpt.generate(*gpt, np.ones((2, prompt), int), count)
    assert decoding._run._cache_size() == 1
    for settings in ({"top_k": 3}, {"top_k": 9, "top_p": 0.5}, {"top_p": 0.2, "temperature": 0.1}):
        bertgpt.generate(*gpt, np.ones((2, 4), int), 5, **({"temperature": 1.0, "key": key} | settings))
    assert decoding._run._cache_size() == 2
    bertgpt.generate(*gpt, np.ones((2, 4), int), 17)
    assert decoding._run._cache_size() == 3


def test_only_the_likeliest_tokens_are_kept():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.1, 0.1]]))

    def kept(top_k, top_p):
        return np.isfinite(sampling.filter_top_k_top_p(logits, top_k, top_p)).tolist()

    assert kept(4, 1.0) == [[True] * 4, [True] * 4]
    assert kept(2, 1.0) == [[False, True, False, True], [True] * 4]  # equal ones stand or fall together
    assert kept(1, 1.0) == [[False, True, False, False], [True, False, False, False]]
    assert kept(4, 0.69) == [[False, True, False, True], [True, False, False, False]]
    assert kept(4, 0.75) == [[False, True, True, True], [True] * 4]
    assert kept(3, 0.5) == [[False, True, False, True], [True, False, False, False]]
    assert kept(4, 1e-9) == [[False, True, False, False], [True, False, False, False]]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.integers(1, 12), st.floats(0.01, 1.0))
def test_what_is_kept_is_the_fewest_that_reach_top_p(values, top_k, top_p):
    logits = np.array(values, np.float32)
    kept = np.isfinite(np.asarray(sampling.filter_top_k_top_p(jnp.asarray(logits)[None], top_k, top_p))[0])
    assert kept[logits.argmax()]
    assert logits[kept].min() >= logits[~kept].max(initial=-np.inf)
    order = np.sort(logits)[::-1][:top_k]
    shares = np.exp(order - order[0]) / np.exp(order - order[0]).sum()
    fewest = int((np.cumsum(shares) - shares < top_p - 1e-5).sum())
    assert kept.sum() >= fewest
    assert len({*logits[kept].tolist()}) <= int((np.cumsum(shares) - shares < top_p + 1e-5).sum())


def test_every_token_is_drawn_anew(gpt):
    # So hot that all tokens are about equally likely: one key for all would draw one token again and again.
    row = np.asarray(bertgpt.generate(*gpt, PROMPTS[:1], 12, temperature=9999.0, key=jax.random.key(0)))[0, 3:]
    assert len(set(row.tolist())) > 6


def test_sampling_keeps_to_top_k(gpt):
    model, params = gpt
    logits = np.asarray(jax.jit(model.apply)({"params": params}, PROMPTS[:1]).logits[0, -1])
    rows = np.repeat(PROMPTS[:1], 500, 0)
    tokens = np.asarray(bertgpt.generate(*gpt, rows, 1, temperature=3.0, key=jax.random.key(0), top_k=3))[:, -1]
    assert set(tokens) == set(np.argsort(-logits)[:3])


@pytest.mark.parametrize("batch", [1, 2])
def test_bfloat16_decodes_as_its_own_plain_pass(gpt, batch):
    model = gpt[0].clone(dtype=jnp.bfloat16)
    ids = np.asarray(bertgpt.generate(model, gpt[1], PROMPTS[:batch], 5))
    logits = np.asarray(jax.jit(model.apply)({"params": gpt[1]}, ids[:, :-1]).logits)[:, 2:]  # of what was added
    chosen = np.take_along_axis(logits, ids[:, 3:, None], axis=-1)[..., 0]
    assert (logits.max(-1) - chosen < 2**-6 * np.ptp(logits)).all()  # roundings differ, so a tie may fall either way
    assert (np.sort(logits)[..., -20] < chosen).all()


def test_what_is_multiplied_is_rounded_once_and_alike_whatever_holds_it(gpt):
    params = gpt[1] | {"head": gpt[1]["transformer"]["token"]["embedding"]}
    as_given = decoding.cast_for_decoding(gpt[1], jnp.float32, 1)
    assert all(mine is other for mine, other in zip(*map(jax.tree.leaves, (as_given, params)), strict=True))
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), gpt[1])
    assert {x.dtype for x in jax.tree.leaves(decoding.cast_for_decoding(narrow, jnp.bfloat16, 2))} == {
        jnp.dtype(jnp.bfloat16)
    }
    assert decoding.cast_for_decoding(narrow, jnp.bfloat16, 1)["head"].dtype == jnp.float32
    alone, several = (decoding.cast_for_decoding(gpt[1], jnp.bfloat16, batch) for batch in (1, 2))
    for (path, whole), one, many in zip(
        jax.tree.leaves_with_path(params), *map(jax.tree.leaves, (alone, several)), strict=True
    ):
        rounded = path[-1].key in ("kernel", "head")
        np.testing.assert_array_equal(one, whole.astype(jnp.bfloat16).astype(jnp.float32) if rounded else whole)
        np.testing.assert_array_equal(np.float32(many), one)
        assert one.dtype == jnp.float32
        assert many.dtype == (jnp.bfloat16 if rounded else jnp.float32)


def test_what_attention_mixed_is_rounded_before_its_product(gpt, monkeypatch):
    config, encoder = gpt[0].config, decoding.encoder_of(gpt[0].clone(dtype=jnp.bfloat16))
    params = decoding.cast_for_decoding(gpt[1], jnp.bfloat16, 1)
    mixed = jax.random.normal(jax.random.key(0), (1, 1, config.num_heads, config.hidden_size // config.num_heads))
    outputs = []
    for values in (mixed, mixed.astype(jnp.bfloat16).astype(jnp.float32), 1.01 * mixed):
        monkeypatch.setattr(attention, "attend", lambda *_, v=values, **__: attention.AttentionOutput(v))
        cache = attention.empty_cache(config, 1, 8, jnp.float32)
        ids, pad = jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32)
        outputs.append(decoding._forward(params, ids, cache, pad, encoder)[0])
    np.testing.assert_array_equal(*outputs[:2])
    assert (outputs[0] != outputs[2]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": 1e-39}, "temperature 1e-39"),
        ({"end_id": 200}, "end_id 200 does not fit the vocabulary of 200"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": 32}, "max_new_tokens is 32; it must be at least 0 and below 32 positions"),
    ],
)
def test_impossible_settings_are_refused(gpt, options, message):
    with pytest.raises(bertgpt.InputError, match=message):
        bertgpt.generate(*gpt, PROMPTS, **{"max_new_tokens": 4, **options})


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([3, 14, 15], "a prompt has 0 axes instead of one; give a list of prompts"),
        (np.array([3, 14]), "a prompt has 0 axes instead of one"),
        ([[[3], [4]]], "a prompt has 2 axes instead of one"),
        ([[1.5, 2.0]], "token ids must be integers, not float64"),
        (np.array([[2**32 + 3]]), "do not fit the vocabulary of 200"),
        ([[2**40]], "do not fit the vocabulary of 200"),
        ([[3, -1]], "do not fit the vocabulary of 200"),
    ],
)
def test_prompts_that_are_none_are_refused(gpt, prompts, message):
    with pytest.raises(bertgpt.InputError, match=message):
        bertgpt.generate(*gpt, prompts, 4)


def test_a_stream_checks_before_its_first_token(gpt):
    with pytest.raises(bertgpt.InputError, match="no tokens"):
        bertgpt.stream(*gpt, [], 2)


def test_a_large_top_k_is_all_tokens(gpt):
    key = jax.random.key(0)
    all_tokens, many = (bertgpt.generate(*gpt, PROMPTS, 3, 1.0, key, top_k=k) for k in (0, 10**12))
    np.testing.assert_array_equal(all_tokens, many)


def test_positions_that_are_no_power_of_two_may_all_be_filled():
    model = bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**WIDE | {"max_positions": 24}))
    params = jax.jit(model.init)(jax.random.key(0), PROMPTS)["params"]
    prompts = [list(range(1, size + 1)) for size in (23, 1, 17)]
    for prompt, row in zip(prompts, bertgpt.generate(model, params, prompts, 1), strict=True):
        logits = model.apply({"params": params}, np.array([prompt])).logits[0, -1]
        assert row.tolist() == [*prompt, int(logits.argmax())]


def test_one_program_serves_a_whole_stream(gpt):
    decoding._next.clear_cache()
    for prompt in ([1, 2], [4, 5, 6]):
        assert len(list(bertgpt.stream(*gpt, prompt, 9))) == 9
    assert decoding._next._cache_size() == 1


def test_no_prompts_and_no_new_tokens_are_no_work(gpt):
    assert bertgpt.generate(*gpt, [], 4) == []
    assert bertgpt.generate(*gpt, np.zeros((0, 3), int), 4).shape == (0, 7)
    np.testing.assert_array_equal(bertgpt.generate(*gpt, PROMPTS, 0), PROMPTS)


def test_a_model_that_does_not_write_is_refused(gpt):
    model = bertgpt.OpenAIGPTModel(gpt[0].config)
    with pytest.raises(bertgpt.InputError, match="OpenAIGPTModel cannot generate text; load a GPT-1 as OpenAI"):
        bertgpt.generate(model, gpt[1]["transformer"], PROMPTS)
