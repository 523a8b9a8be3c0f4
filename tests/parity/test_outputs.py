"""Every output of every architecture, both ways."""

import jax
import numpy as np
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


def test_embeddings_in_place_of_ids_give_their_outputs_and_gradients(pair, measured):
    name, reference, model, params = pair
    inputs = make_inputs(name, "right padding")
    table = reference.get_input_embeddings().weight.detach()
    noise = np.random.default_rng(2).normal(size=(*inputs["input_ids"].shape, table.shape[1]))
    embeds = table.numpy()[inputs.pop("input_ids")] + noise.astype(np.float32)
    given = torch.tensor(
        embeds.reshape(-1, *embeds.shape[-2:]) if "DoubleHeads" in name else embeds, requires_grad=True
    )
    others = to_torch(name, inputs)
    if "DoubleHeads" in name:
        others["mc_token_ids"] = others["mc_token_ids"].reshape(-1)
    if name == "OpenAIGPTForSequenceClassification":  # it finds the last token by its id, else it takes the last place
        inputs["attention_mask"][:] = 1
        others["attention_mask"][:] = 1
    theirs = reference(**others, inputs_embeds=given, **MORE)
    last = theirs.hidden_states[-1]
    last[torch.tensor(inputs["attention_mask"].reshape(last.shape[:2]) > 0)].square().sum().backward()

    def squares(embeds):
        output = model.apply({"params": params}, inputs_embeds=embeds, **inputs, **MORE)
        real = inputs["attention_mask"].reshape(*output.last_hidden_state.shape[:2], 1)
        return (output.last_hidden_state**2 * real).sum(), output

    (_, output), gradient = jax.jit(jax.value_and_grad(squares, has_aux=True))(embeds)
    for key, difference in differences(output, theirs, inputs["attention_mask"]).items():
        assert measured(name, "outputs, embeddings", difference) <= 1e-5, key
    expected = given.grad.numpy().reshape(embeds.shape)
    assert abs(expected).max() > 0.1
    assert measured(name, "gradients of embeddings", float(abs(gradient - expected).max())) <= 1e-4


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name.startswith("Bert") and name not in CHOICES])
def test_a_mask_for_each_query_gives_their_outputs(name, tmp_path, measured):
    reference = make_reference(name)
    reference.save_pretrained(tmp_path)
    model, params = bertgpt.load_pretrained(tmp_path)
    ids = make_inputs(name, "ids")["input_ids"]
    rows, length = ids.shape
    mask = np.random.default_rng(3).random((rows, length, length)) < 0.5
    mask |= np.eye(length, dtype=bool)
    added = np.where(mask, 0, np.finfo(np.float32).min)[:, None].astype(np.float32)  # theirs is added to the scores
    with torch.no_grad():
        theirs = reference(torch.tensor(ids), torch.tensor(added), **MORE)
    for given in (mask, mask[:, None]):
        output = ours(model, params, {"input_ids": ids, "attention_mask": given})
        for key, difference in differences(output, theirs, None).items():
            assert measured(name, "outputs, a mask for each query", difference) <= 1e-5, key


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
