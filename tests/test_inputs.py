"""A model's arguments: shapes that do not fit are refused while tracing, and an id outside its range gives NaN."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from model_folders import FAMILY

import bertgpt
from bertgpt.inference import decoding
from bertgpt.inference.sampling import make_sampling
from bertgpt.model.inputs import takes_choices
from bertgpt.model.layers import Embedding, look_up

SIZES = TINY | {"num_layers": 1, "max_positions": 8, "vocab_size": 16, "hidden_size": 8, "mlp_size": 8}
BERT, GPT = bertgpt.presets.bert_tiny(**SIZES), bertgpt.presets.gpt1(**SIZES)
ONE_SEGMENT = dataclasses.replace(BERT, type_vocab_size=1)
B, T, K = 3, 6, 2


def model_of(name, config=None):
    return getattr(bertgpt, name)(config or (BERT if name.startswith("Bert") else GPT))


@functools.cache
def params_of(model):
    ids = jnp.zeros((1, 1, 2) if takes_choices(type(model).__name__) else (1, 2), jnp.int32)
    return jax.jit(model.init)(jax.random.key(0), ids)["params"]


def trace(model, *arguments, **options):
    """Shapes of the outputs, with nothing computed."""
    ids = jnp.zeros((1, 1, 2) if takes_choices(type(model).__name__) else (1, 2), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)["params"]
    return jax.eval_shape(lambda p: model.apply({"params": p}, *arguments, **options), params)


def ids(*shape):
    return np.ones(shape, np.int32)


# Shapes.


@pytest.mark.parametrize("name", FAMILY)
def test_a_row_longer_than_the_positions_is_refused_while_tracing(name):
    axes, shape = ("B C T", (2, 2)) if takes_choices(name) else ("B T", (2,))
    message = rf"input_ids \[{axes}\] = \[{' '.join(map(str, shape))} 9\] is longer than the model's max_positions 8"
    with pytest.raises(bertgpt.InputError, match=message):
        trace(model_of(name), ids(*shape, 9))
    assert trace(model_of(name), ids(*shape, 8)).last_hidden_state.shape[-2:] == (8, 8)


def test_both_orders_of_a_pair_may_not_be_too_long_either():
    with pytest.raises(bertgpt.InputError, match=r"input_ids \[B C T\] = \[3 2 9\] is longer"):
        trace(model_of("OpenAIGPTForSequenceClassification"), ids(3, 2, 9))


WRONG = {  # model, arguments beside input_ids [3 6] (of choices [3 2 6]), what is said
    "a list": ("BertModel", {"input_ids": [[1, 2]]}, "input_ids must be an integer array [B T], not a Python list"),
    "one row without a batch": ("BertModel", {"input_ids": ids(6)}, "integer array [B T], not int32 [6]"),
    "three axes": ("BertModel", {"input_ids": ids(3, 2, 6)}, "integer array [B T], not int32 [3 2 6]"),
    "two axes of choices": (
        "BertForMultipleChoice",
        {"input_ids": ids(3, 6)},
        "integer array [B C T], not int32 [3 6]",
    ),
    "floats": ("OpenAIGPTModel", {"input_ids": np.ones((3, 6), np.float32)}, "[B T], not float32 [3 6]"),
    "truth values": (
        "BertModel",
        {"input_ids": np.ones((3, 6), bool)},
        "input_ids must be an integer array [B T], not bool",
    ),
    "no tokens": ("OpenAIGPTLMHeadModel", {"input_ids": ids(3, 0)}, "input_ids [B T] = [3 0] has no tokens"),
    "a longer mask": (
        "BertForMaskedLM",
        {"attention_mask": ids(3, 7)},
        "attention_mask must be an array [B T] = [3 6], not int32 [3 7]",
    ),
    "a mask for one row": ("OpenAIGPTLMHeadModel", {"attention_mask": ids(1, 6)}, "attention_mask must be an array"),
    "a mask of heads": ("BertModel", {"attention_mask": ids(3, 2, 6, 6)}, "[B 1 T S] = [3 1 6 6], not int32 [3 2 6 6]"),
    "a mask of other queries": (
        "OpenAIGPTModel",
        {"attention_mask": ids(3, 5, 6)},
        "attention_mask must be an array [B T S] = [3 6 6], not int32 [3 5 6]",
    ),
    "a mask of choices without queries": (
        "BertForMultipleChoice",
        {"attention_mask": ids(3, 2, 6, 5)},
        "attention_mask must be an array [B C T S] = [3 2 6 6], not int32 [3 2 6 5]",
    ),
    "a mask that is added to scores": (
        "BertModel",
        {"attention_mask": np.zeros((3, 1, 6, 6), np.float32)},
        "attention_mask is float32 and has an axis for queries and one for keys; give bool or integers, nonzero where",
    ),
    "ids and embeddings": (
        "BertModel",
        {"inputs_embeds": np.zeros((3, 6, 8), np.float32)},
        "give either input_ids or inputs_embeds, and not both",
    ),
    "neither ids nor embeddings": ("OpenAIGPTLMHeadModel", {"input_ids": None}, "give either input_ids or"),
    "embeddings of another width": (
        "OpenAIGPTModel",
        {"input_ids": None, "inputs_embeds": np.zeros((3, 6, 7), np.float32)},
        "inputs_embeds must be an array [B T D] = [B T 8], not float32 [3 6 7]",
    ),
    "ids as embeddings": (
        "BertForMaskedLM",
        {"input_ids": None, "inputs_embeds": ids(3, 6, 8)},
        "inputs_embeds must be float, not int32; give ids as input_ids",
    ),
    "embeddings that are too long": (
        "BertModel",
        {"input_ids": None, "inputs_embeds": np.zeros((3, 9, 8), np.float32)},
        "inputs_embeds [B T D] = [3 9 8] is longer than the model's max_positions 8",
    ),
    "a number as a mask": (
        "BertModel",
        {"attention_mask": 1},
        "attention_mask must be an array [B T] = [3 6], not a Python int",
    ),
    "fewer segments": ("BertForQuestionAnswering", {"token_type_ids": ids(3, 5)}, "token_type_ids must be an integer"),
    "segments of other rows": ("BertModel", {"token_type_ids": ids(2, 6)}, "token_type_ids must be an integer array"),
    "real segments": ("BertModel", {"token_type_ids": np.ones((3, 6), np.float32)}, "not float32 [3 6]"),
    "positions of two rows": (
        "BertForTokenClassification",
        {"position_ids": ids(2, 6)},
        "position_ids must be an integer array [B T] = [3 6], not int32 [2 6]",
    ),
    "longer positions": ("OpenAIGPTModel", {"position_ids": ids(1, 7)}, "[B T] = [1 6], not int32 [1 7]"),
    "positions without a batch": ("OpenAIGPTModel", {"position_ids": ids(6)}, "[B T] = [3 6], not int32 [6]"),
    "packs of another length": ("BertForPreTraining", {"pack_ids": ids(3, 5)}, "pack_ids must be an integer array"),
    "GPT's packs of other rows": ("OpenAIGPTLMHeadModel", {"pack_ids": ids(1, 6)}, "pack_ids must be an integer array"),
    "masked positions of other rows": (
        "BertForPreTraining",
        {"masked_positions": ids(2, 4)},
        "masked_positions must be an integer array [B P] = [3 P], not int32 [2 4]",
    ),
    "flat masked positions": ("BertForMaskedLM", {"masked_positions": ids(4)}, "[B P] = [3 P], not int32 [4]"),
    "a mask of masked positions": ("BertForMaskedLM", {"masked_positions": np.ones((3, 6), bool)}, "not bool [3 6]"),
    "[CLS] of other rows": (
        "BertForSequenceClassification",
        {"cls_positions": ids(1, 2)},
        "cls_positions must be an integer array [B P] = [3 P], not int32 [1 2]",
    ),
    "a choice too many": (
        "OpenAIGPTDoubleHeadsModel",
        {"mc_token_ids": ids(3, 3)},
        "mc_token_ids must be an integer array [B C] = [3 2], not int32 [3 3]",
    ),
    "flat choices": ("OpenAIGPTDoubleHeadsModel", {"mc_token_ids": ids(6)}, "[B C] = [3 2], not int32 [6]"),
    "a mask of flat choices": ("BertForMultipleChoice", {"attention_mask": ids(6, 6)}, "[B C T] = [3 2 6], not int32"),
    "positions of flat choices": ("OpenAIGPTDoubleHeadsModel", {"position_ids": ids(1, 6)}, "[B C T] = [3 2 6], not"),
    "segments of one choice": ("BertForMultipleChoice", {"token_type_ids": ids(3, 1, 6)}, "token_type_ids must be"),
    "a mask of both orders": (
        "OpenAIGPTForSequenceClassification",
        {"input_ids": ids(3, 2, 6), "attention_mask": ids(3, 6)},
        "attention_mask must be an array [B C T] = [3 2 6], not int32 [3 6]",
    ),
}


@pytest.mark.parametrize(("name", "arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_by_name_while_tracing(name, arguments, message):
    given = {"input_ids": ids(3, 2, 6) if takes_choices(name) else ids(3, 6)} | arguments
    with pytest.raises(bertgpt.InputError) as caught:
        trace(model_of(name), **given)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", FAMILY)
def test_every_argument_of_the_right_shape_is_taken(name):
    shape = (3, 2, 6) if takes_choices(name) else (3, 6)
    options = {"attention_mask": np.ones(shape, bool), "position_ids": ids(*(1,) * (len(shape) - 1), 6)}
    if name.startswith("Bert"):
        options |= {"token_type_ids": np.ones(shape, np.uint8)}
    if not takes_choices(name):
        options |= {"pack_ids": ids(*shape)}
    trace(model_of(name), np.ones(shape, np.int16), **options)
    trace(model_of(name), ids(*shape), **options | {"position_ids": ids(*shape)})


@pytest.mark.parametrize("name", ["BertModel", "OpenAIGPTModel"])
def test_with_position_ids_a_packed_row_may_be_longer_than_the_positions(name):
    model = model_of(name)
    text = np.random.default_rng(0).integers(0, 16, (1, 12)).astype(np.int32)
    run = jax.jit(lambda p, text, **options: model.apply({"params": p}, text, **options).last_hidden_state)
    positions, packs = np.arange(12)[None] % 6, np.arange(12)[None] // 6
    packed = run(params_of(model), text, position_ids=positions, pack_ids=packs)
    apart = run(params_of(model), text.reshape(2, 6))
    np.testing.assert_allclose(packed.reshape(2, 6, -1), apart, rtol=1e-5, atol=1e-5)


# Ids.

SPAN = {  # argument: shape, ids that there are
    "input_ids": ((B, T), 16),
    "token_type_ids": ((B, T), 2),
    "position_ids": ((B, T), 8),
    "masked_positions": ((B, K), T),
    "cls_positions": ((B, K), T),
}


@functools.cache
def bert_run(config, compiled):
    """(ids by argument) -> for each row, whether every output of it is finite, and whether any is."""
    model = bertgpt.BertForPreTraining(config)

    def run(params, inputs):
        output = model.apply({"params": params}, **inputs)
        rows = [
            jnp.isfinite(x).reshape(B, -1) for x in (output.last_hidden_state, output.mlm_logits, output.nsp_logits)
        ]
        return [part.all(1) for part in rows], [part.any(1) for part in rows]

    run = jax.jit(run) if compiled else run
    return lambda inputs: jax.tree.map(np.asarray, run(params_of(model), inputs))


def zeros(**changed):
    return {name: np.zeros(shape, np.int32) for name, (shape, _) in SPAN.items()} | changed


def bad(name, beyond):
    """Zeros, but for one id of the second row: -1, or so much over the largest."""
    shape, size = SPAN[name]
    array = np.zeros(shape, np.int32)
    array[1, 1] = -1 if beyond < 0 else size + beyond
    return zeros(**{name: array})


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("beyond", [-1, 0, 5])
@pytest.mark.parametrize("name", SPAN)
def test_an_id_out_of_range_makes_its_row_nan_and_no_other(name, beyond, compiled):
    (hidden, mlm, nsp), some = bert_run(BERT, compiled)(bad(name, beyond))
    affected = {"masked_positions": [mlm], "cls_positions": [nsp]}.get(name, [hidden, mlm, nsp])
    for rows in (hidden, mlm, nsp):
        expected = [True, not any(rows is each for each in affected), True]
        assert rows.tolist() == expected
    if name in ("input_ids", "token_type_ids", "position_ids"):
        assert [rows[1] for rows in some] == [False] * 3  # attention carries it everywhere


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("segment", [-1, 1, 6])
def test_a_table_of_one_row_takes_no_other_id(segment, compiled):
    segments = np.zeros((B, T), np.int32)
    assert all(rows.all() for rows in bert_run(ONE_SEGMENT, compiled)(zeros())[0])
    segments[2, 3] = segment
    assert [rows.tolist() for rows in bert_run(ONE_SEGMENT, compiled)(zeros(token_type_ids=segments))[0]] == [
        [True, True, False]
    ] * 3


@given(st.data())
def test_outputs_are_finite_exactly_where_all_ids_are_in_range(data):
    inputs, right = {}, {}
    for name, (shape, size) in SPAN.items():
        rows = st.lists(st.integers(0, size - 1), min_size=shape[1], max_size=shape[1])
        wild = st.lists(
            st.integers(-3, size + 2) | st.integers(-(2**31), 2**31 - 1), min_size=shape[1], max_size=shape[1]
        )
        inputs[name] = np.array([data.draw(rows | wild) for _ in range(B)], np.int64).astype(np.int32)
        right[name] = ((inputs[name] >= 0) & (inputs[name] < size)).all(1)
    hidden, mlm, nsp = bert_run(BERT, True)(inputs)[0]
    encoded = right["input_ids"] & right["token_type_ids"] & right["position_ids"]
    assert hidden.tolist() == encoded.tolist()
    assert mlm.tolist() == (encoded & right["masked_positions"]).tolist()
    assert nsp.tolist() == (encoded & right["cls_positions"]).tolist()


@functools.cache
def choices_run():
    model = model_of("OpenAIGPTDoubleHeadsModel")

    def run(inputs):
        output = model.apply({"params": params_of(model)}, **inputs)
        return jnp.isfinite(output.logits).all((2, 3)), jnp.isfinite(output.mc_logits)

    return jax.jit(run)


@pytest.mark.parametrize(("name", "size"), [("input_ids", 16), ("position_ids", 8), ("mc_token_ids", T)])
@pytest.mark.parametrize("beyond", [-1, 0, 5])
def test_an_id_of_a_choice_out_of_range_makes_that_choice_nan(name, size, beyond):
    inputs = {"input_ids": np.zeros((2, 2, T), np.int32), "position_ids": np.zeros((2, 2, T), np.int32)}
    inputs |= {"mc_token_ids": np.zeros((2, 2), np.int32)}
    inputs[name].reshape(4, -1)[2, -1] = -1 if beyond < 0 else size + beyond
    text, choice = (np.asarray(x).ravel().tolist() for x in choices_run()(inputs))
    wrong = [True, True, False, True]
    assert (text, choice) == ([True] * 4 if name == "mc_token_ids" else wrong, wrong)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_every_integer_type_is_looked_up_by_its_value(kind):
    table = jnp.arange(200.0)
    wanted = np.array([0, 100, np.iinfo(kind).max, np.iinfo(kind).min], kind)
    expected = [float(i) if 0 <= i < 200 else np.nan for i in wanted.tolist()]
    np.testing.assert_array_equal(look_up(table, wanted), expected)
    np.testing.assert_array_equal(look_up(np.asarray(table), wanted), expected)  # parameters that NumPy holds


@pytest.mark.parametrize(
    "wide", [np.array([2**32 + 5, 5]), np.array([5 - 2**32, 5]), np.array([2**63, 5], np.uint64)], ids=str
)
def test_an_id_of_64_bits_is_not_cut(wide):
    table = jnp.arange(200.0)
    np.testing.assert_array_equal(look_up(table, wide), [np.nan, 5])
    assert np.isnan(look_up(table, wide[0]))
    hidden, mlm, _ = bert_run(BERT, False)(zeros(masked_positions=np.stack([wide] * B)))[0]
    assert (hidden.all(), mlm.any()) == (True, False)


def test_an_id_out_of_range_gives_no_row_a_gradient():
    def total(table, ids):
        return Embedding(4, 3).apply({"params": {"embedding": table}}, ids)[:2].sum()

    gradient = jax.jit(jax.grad(total))(jnp.ones((4, 3)), np.array([1, 1, -1, 4, 3]))
    np.testing.assert_array_equal(gradient[:, 0], [0, 2, 0, 0])
    gradient = jax.grad(total)(jnp.ones((4, 3)), np.array([-1, 4]))
    np.testing.assert_array_equal(gradient, np.zeros((4, 3)))


def test_generation_reads_no_other_row_for_an_id_out_of_range():
    model = model_of("OpenAIGPTLMHeadModel")
    held = decoding.cast_for_decoding(params_of(model), jnp.float32, 2)
    text, pad = np.array([[1, 2, 3], [1, -1, 3]], np.int32), np.zeros(2, np.int32)
    sampling = make_sampling(16)
    state = decoding.prefill(held, text, pad, sampling, encoder=decoding.encoder_of(model), cache_length=4)
    keys = np.isfinite(np.asarray(state.cache[0].key).reshape(2, -1))
    assert keys[0].all()
    assert not keys[1].all()
