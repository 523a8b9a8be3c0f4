"""config.json to a ModelConfig and back, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from model_folders import GPT, TINY, change_config, make

import bertgpt
from bertgpt.errors import InputError


@pytest.mark.parametrize(
    ("values", "count", "labels"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, 2, ("a", "b")),
        ({"id2label": {"0": 5, "1": 7}}, 2, ("5", "7")),
        ({"id2label": {"1": "a", "2": "b"}}, 2, ()),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 5}, 5, ()),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, 2, ()),
        ({"id2label": {}}, 2, ()),
        ({"id2label": None, "num_labels": 4}, 4, ()),
        ({"id2label": None}, 2, ()),
    ],
)
def test_labels_are_counted_as_hugging_face_counts(saved, values, count, labels):
    folder, _, _ = saved("BertModel")
    change_config(folder, **values)
    config = bertgpt.load_pretrained(folder)[0].config
    assert (config.num_labels, config.labels) == (count, labels)


def test_keys_that_a_configuration_leaves_out_have_the_published_values(saved):
    folder, _, _ = saved("BertModel")
    config = json.loads((folder / "config.json").read_text())
    kept = ("model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")
    kept += ("num_attention_heads", "intermediate_size")
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in kept}))
    found = bertgpt.load_pretrained(folder)[0].config
    assert found == bertgpt.presets.bert_base(**{k: v for k, v in TINY.items() if k != "num_labels"}, mlp_size=32)


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("BertModel", "gelu", "gelu_erf"),
        ("BertModel", "gelu_new", "gelu_tanh"),
        ("BertModel", "relu", "relu"),
        ("OpenAIGPTModel", "gelu", "gelu_tanh"),
        ("OpenAIGPTModel", "relu", "relu"),
    ],
)
def test_activations_go_by_the_family(saved, name, theirs, ours):
    folder, _, _ = saved(name)
    change_config(folder, **{"hidden_act" if name.startswith("Bert") else "afn": theirs})
    model, params = bertgpt.load_pretrained(folder)
    assert model.config.activation == ours
    bertgpt.save_pretrained(folder, model, params)
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_act" if name.startswith("Bert") else "afn"] == theirs


def test_a_dropout_of_the_embeddings_alone_is_told_of(saved):
    folder, _, _ = saved("OpenAIGPTModel")
    change_config(folder, embd_pdrop=0.3)
    with pytest.warns(UserWarning, match="embd_pdrop is ignored"):
        bertgpt.load_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "swish"}, "config.json: activation 'swish' is unknown; choose one of gelu,"),
        ({"hidden_act": ["gelu"]}, "activation ['gelu'] is unknown"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder True is not supported; it must be False"),
        ({"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False is not supported"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads {'0': [1]} is not supported"),
        ({"hidden_size": "16"}, "config.json: hidden_size is '16'; it must be a whole number"),
        ({"layer_norm_eps": True}, "layer_norm_eps is True; it must be a number"),
        ({"num_attention_heads": 3}, "config.json: model.hidden_size 16 is not divisible by model.num_heads 3"),
        ({"num_hidden_layers": 10**9}, "num_layers is 1000000000; it must be at most 1,000"),
        ({"num_hidden_layers": 1000}, "needs 1000 layers, more than the folder has tensors"),
        ({"num_hidden_layers": 3}, "needs 3 layers, more than the folder has tensors for"),
        (
            {"vocab_size": 65},
            "embeddings.weight has shape (64, 16), and a BertForPreTraining needs (65, 16)",
        ),
        ({"vocab_size": 10**9}, "BertForPreTraining needs (1000000000, 16)"),
        ({"vocab_size": 10**15}, "vocab_size is 1000000000000000; it must be at most 2147483647"),
        ({"model_type": "gpt2"}, "config.json: model_type 'gpt2' is not supported; it must be bert or openai-gpt"),
        ({"architectures": ["BertLMHeadModel"]}, "architecture 'BertLMHeadModel' is unknown; choose one of BertModel,"),
        ({"id2label": ["a", "b"]}, "id2label is ['a', 'b']; it must map 0, 1, 2, ... to names"),
        ({"id2label": 5}, "id2label is 5; it must map"),
        ({"num_labels": 10**7}, "num_labels is 10000000; it must be at most 1000000"),
        ({"model_type": ["bert"]}, "model_type ['bert'] is not supported"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan; it must be at most"),
        ({"initializer_range": float("inf")}, "initializer_range is inf; it must be at most"),
        ({"initializer_range": 10**400}, "it must be at most 2147483647"),
        ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob is nan; it must be at most"),
        ({"attention_probs_dropout_prob": float("-inf")}, "attention_probs_dropout_prob is -inf; it must be at most"),
        ({"num_hidden_layers": float("inf")}, "num_hidden_layers is inf; it must be a whole number"),
        ({"problem_type": "ranking"}, "model.problem_type is 'ranking'"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(saved, values, message):
    folder, _, _ = saved("BertForPreTraining")
    change_config(folder, **values)
    with pytest.raises(InputError) as caught:
        bertgpt.load_pretrained(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_summary_that_cannot_be_followed_is_refused_where_it_is_used(saved):
    folder, _, _ = saved("OpenAIGPTDoubleHeadsModel")
    change_config(folder, summary_activation="tanh")
    with pytest.raises(InputError, match="summary_activation 'tanh' is not supported; it must be None"):
        bertgpt.load_pretrained(folder)
    with pytest.warns(UserWarning, match="does not use multiple_choice_head"):
        bertgpt.load_pretrained(folder, "OpenAIGPTLMHeadModel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_size": 48}, "mlp_size 48 cannot be exported: Hugging Face's GPT-1 always has 4 x hidden_size = 64"),
        ({"activation": "gelu_erf"}, "activation gelu_erf cannot be exported"),
    ],
)
def test_what_their_gpt_cannot_express_is_not_exported(tmp_path, change, message):
    model = bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**TINY | {"mlp_size": 64} | change))
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    with pytest.raises(InputError, match=message):
        bertgpt.save_pretrained(tmp_path / "out", model, params)
    assert not (tmp_path / "out").exists()


def test_dropouts_and_whole_numbers_are_written_as_their_classes_take_them(tmp_path):
    config = dataclasses.replace(GPT, hidden_dropout=0.3, layer_norm_eps=1, initializer_range=1)
    bertgpt.save_pretrained(tmp_path, bertgpt.OpenAIGPTModel(config), make("OpenAIGPTModel")[1])
    text = (tmp_path / "config.json").read_text()
    assert '"layer_norm_epsilon": 1.0,' in text
    assert '"initializer_range": 1.0,' in text
    written = json.loads(text)
    assert (written["embd_pdrop"], written["resid_pdrop"], written["attn_pdrop"]) == (0.3, 0.3, 0.1)
