"""ModelConfig and the presets: sizes, constants and refusals."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest

import bertgpt
from bertgpt import presets

IDS = jax.ShapeDtypeStruct((1, 8), jnp.int32)
SIZES = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "mlp_size": 8, "vocab_size": 8}


def count(model) -> int:
    """Parameters of a model, none of them allocated."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("bert_tiny", 4_385_920),
        ("bert_mini", 11_170_560),
        ("bert_small", 28_763_648),
        ("bert_medium", 41_373_184),
        ("bert_base", 109_482_240),
        ("bert_large", 335_141_888),
    ],
)
def test_encoder_with_pooler_has_the_published_size(preset, parameters):
    assert count(bertgpt.BertModel(presets.get(preset))) == parameters


@pytest.mark.parametrize(("preset", "parameters"), [("bert_base", 110_106_428), ("bert_large", 336_226_108)])
def test_bert_with_both_heads_has_the_published_size(preset, parameters):
    assert count(bertgpt.BertForPreTraining(presets.get(preset))) == parameters


@pytest.mark.parametrize(("preset", "parameters"), [("gpt1", 116_534_784), ("gpt1_762", 96_665_988)])
def test_gpt1_has_the_published_size(preset, parameters):
    assert count(bertgpt.OpenAIGPTLMHeadModel(presets.get(preset))) == parameters


def test_every_preset_is_counted_above():
    sizes = ("tiny", "mini", "small", "medium", "base", "large")
    assert set(presets.ALL) == {*(f"bert_{size}" for size in sizes), "gpt1", "gpt1_762"}


@pytest.mark.parametrize(("preset", "heads"), [("bert_tiny", 2), ("bert_base", 12), ("bert_large", 16), ("gpt1", 12)])
def test_heads_of_released_models_are_64_wide(preset, heads):
    config = presets.get(preset)
    assert (config.num_heads, config.hidden_size // config.num_heads) == (heads, 64)


def test_gpt1_762_has_six_heads_since_twelve_do_not_divide_it():
    assert presets.gpt1_762().num_heads == 6


def test_constants_of_bert():
    config = presets.bert_base()
    assert (config.activation, config.layer_norm_eps, config.initializer_range) == ("gelu_erf", 1e-12, 0.02)
    assert (config.hidden_dropout, config.attention_dropout, config.causal) == (0.1, 0.1, False)


def test_constants_of_gpt1():
    config = presets.gpt1()
    assert (config.activation, config.layer_norm_eps, config.initializer_range) == ("gelu_tanh", 1e-5, 0.02)
    assert (config.hidden_dropout, config.attention_dropout, config.causal) == (0.1, 0.1, True)


def test_a_preset_takes_any_field():
    config = presets.get("gpt1_762", num_layers=3, num_heads=2)
    assert (config.hidden_size, config.num_layers, config.num_heads) == (762, 3, 2)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_heads": 3}, "model.num_heads"),
        ({"activation": "gelu"}, "model.activation"),
        ({"architecture": "t5"}, "model.architecture"),
        ({"hidden_dropout": 1.0}, "model.hidden_dropout"),
        ({"attention_dropout": -0.1}, "model.attention_dropout"),
        ({"layer_norm_eps": 0}, "model.layer_norm_eps is 0; it must be a finite number above 0"),
        ({"num_layers": 0}, "model.num_layers"),
        ({"vocab_size": 0}, "model.vocab_size"),
        ({"num_labels": 0}, "model.num_labels"),
        ({"classifier_dropout": 1.0}, "model.classifier_dropout"),
        ({"problem_type": "ranking"}, "model.problem_type"),
        ({"labels": ["a", "b", "c"]}, "model.labels has 3 names and model.num_labels is 2"),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(change, key):
    with pytest.raises(bertgpt.InputError, match=key):
        bertgpt.ModelConfig(**({"architecture": "bert"} | SIZES | change))


@pytest.mark.parametrize(
    "field", ["layer_norm_eps", "initializer_range", "hidden_dropout", "attention_dropout", "classifier_dropout"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_its_key(field, value):
    with pytest.raises(bertgpt.InputError, match=f"model.{field} is {value}; it must be"):
        bertgpt.ModelConfig("bert", **SIZES, **{field: value})


def test_labels_read_from_json_are_as_those_that_were_written():
    config = bertgpt.ModelConfig("bert", **SIZES, num_labels=2, labels=("no", "yes"))
    again = bertgpt.ModelConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


def test_dropout_zero_is_allowed():
    assert bertgpt.ModelConfig("gpt", **SIZES, hidden_dropout=0.0, attention_dropout=0.0).hidden_dropout == 0


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(bertgpt.InputError, match="model.preset 'bert_huge'"):
        presets.get("bert_huge")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_layers": 1001}, "model.num_layers is 1001; it must be at most 1,000"),
        ({"num_layers": 10**300}, r"model.num_layers is 10{97}\.\.\.0+; it must be at most 1,000"),
        ({"hidden_size": 2 * 10**9}, "model.hidden_size is 2000000000: with it the model has over 1,099,511,627,776"),
        ({"mlp_size": 10**12}, "model.mlp_size is 1000000000000: with it"),
        ({"vocab_size": 10**12}, "model.vocab_size is 1000000000000: with it"),
        ({"max_positions": 10**12}, "model.max_positions is 1000000000000: with it"),
        ({"type_vocab_size": 10**12}, "model.type_vocab_size is 1000000000000: with it"),
    ],
)
def test_sizes_beyond_any_model_are_refused(sizes, message):
    with pytest.raises(bertgpt.InputError, match=message):
        bertgpt.ModelConfig("bert", **SIZES | sizes)


def test_the_largest_models_are_allowed():
    bertgpt.ModelConfig("bert", **SIZES | {"num_layers": 1000})
    bertgpt.ModelConfig("gpt", **SIZES | {"hidden_size": 12_288, "mlp_size": 49_152, "num_layers": 96})  # of GPT-3
