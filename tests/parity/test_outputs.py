"""Every output of every architecture, both ways."""

import jax
import pytest
import torch
import transformers
from reference import ARCHITECTURES, CHOICES, differences, make_inputs, make_reference, to_torch

import bertgpt

MORE = {"output_hidden_states": True, "output_attentions": True}
CASES = ["ids", "right padding", "left padding"]
AUTO = {
    "BertModel": "AutoModel",
    "BertForPreTraining": "AutoModelForPreTraining",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForMultipleChoice": "AutoModelForMultipleChoice",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
    "OpenAIGPTModel": "AutoModel",
    "OpenAIGPTLMHeadModel": "AutoModelForCausalLM",
    "OpenAIGPTDoubleHeadsModel": "OpenAIGPTDoubleHeadsModel",  # they have no Auto class for it
    "OpenAIGPTForSequenceClassification": "AutoModelForSequenceClassification",
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request, tmp_path_factory):
    """(name, their model, ours, our parameters), read from the folder that theirs was saved to."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = make_reference(request.param)
    reference.save_pretrained(folder)
    return request.param, reference, *bertgpt.load_pretrained(folder)


def ours(model, params, inputs):
    return jax.jit(lambda p, x: model.apply({"params": p}, **x, **MORE))(params, inputs)


@pytest.mark.parametrize("case", CASES)
def test_their_folder_gives_their_numbers(pair, case, measured):
    name, reference, model, params = pair
    assert type(model).__name__ == name
    inputs = make_inputs(name, case)
    with torch.no_grad():
        theirs = reference(**to_torch(name, inputs), **MORE)
    found = differences(ours(model, params, inputs), theirs, inputs.get("attention_mask"))
    assert {"hidden_states", "attentions"} <= found.keys()
    for key, difference in found.items():
        assert measured(name, f"outputs, {case}", difference) <= 1e-5, key


def test_our_folder_gives_our_numbers(pair, tmp_path, measured):
    name = pair[0]
    model = type(pair[2])(pair[2].config)
    ids = make_inputs(name, "ids")
    params = model.init(jax.random.key(3), ids["input_ids"])["params"]
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    bertgpt.save_pretrained(tmp_path / "out", model, params)
    kind = getattr(transformers, AUTO[name])
    loaded, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True, attn_implementation="eager")
    assert type(loaded).__name__ == name
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = make_inputs(name, "right padding")
    loaded.config.pad_token_id = 0  # their GPT-1 classifier takes no batch without one
    with torch.no_grad():
        theirs = loaded.eval()(**to_torch(name, inputs), **MORE)
    for key, difference in differences(ours(model, params, inputs), theirs, inputs["attention_mask"]).items():
        assert measured(name, "outputs, exported", difference) <= 1e-5, key


def test_a_model_that_goes_through_us_is_unchanged(pair, tmp_path):
    name, reference, model, params = pair
    bertgpt.save_pretrained(tmp_path / "out", model, params)
    back = getattr(transformers, name).from_pretrained(tmp_path / "out").state_dict()
    expected = reference.state_dict()
    assert back.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(value, back[key]), key


def test_choices_are_rows_of_three_axes():
    assert all(make_inputs(name, "ids")["input_ids"].ndim == (3 if name in CHOICES else 2) for name in ARCHITECTURES)
