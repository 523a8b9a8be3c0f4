"""BERT-base and GPT-1 at their published sizes: outputs, gradients, and the way back."""

import gc

import jax
import numpy as np
import pytest
import torch
import transformers
from reference import differences, to_torch
from test_gradients import mean, next_token, our_gradients, their_gradients

import bertgpt

LENGTH = 128
RNG = np.random.default_rng(0)
MASK = np.stack([np.ones(LENGTH, np.int64), np.arange(LENGTH) < 90])
IDS = np.where(MASK, RNG.integers(1, 30000, (2, LENGTH)), 0)
COUNTS = (RNG.random((2, LENGTH)) < 0.15) & (MASK > 0)
LABELS, PAIR = np.where(COUNTS, IDS, -100), np.array([0, 1])
FULL = {
    "BertForPreTraining": (
        transformers.BertConfig,
        bertgpt.presets.bert_base,
        110_106_428,
        {"labels": LABELS, "next_sentence_label": PAIR},
        lambda out: mean(out.mlm_logits, IDS, COUNTS) + mean(out.nsp_logits, PAIR),
    ),
    "OpenAIGPTLMHeadModel": (
        transformers.OpenAIGPTConfig,
        bertgpt.presets.gpt1,
        116_534_784,
        {"labels": LABELS},
        lambda out: next_token(out.logits, IDS, COUNTS[:, 1:]),
    ),
}


@pytest.fixture(scope="module", params=FULL)
def pair(request, tmp_path_factory):
    """(name, their model, ours, our parameters)."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("full")
    config = FULL[request.param][0](initializer_range=0.04)
    reference = getattr(transformers, request.param)(config).eval()
    reference.save_pretrained(folder)
    yield request.param, reference, *bertgpt.load_pretrained(folder)
    gc.collect()


def test_sizes(pair):
    name, _, model, params = pair
    _, preset, count, _, _ = FULL[name]
    assert model.config == preset(initializer_range=0.04, classifier_dropout=model.config.classifier_dropout)
    assert sum(x.size for x in jax.tree.leaves(params)) == count


def test_outputs(pair, measured):
    name, reference, model, params = pair
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    with torch.no_grad():
        theirs = reference(**to_torch(name, inputs), output_hidden_states=True)
    ours = jax.jit(lambda p: model.apply({"params": p}, **inputs, output_hidden_states=True))(params)
    for key, difference in differences(ours, theirs, MASK).items():
        assert measured(f"{name}, full size", "outputs, right padding", difference) <= 1e-4, key


def test_gradients(pair, measured):
    name, reference, model, params = pair
    labels, our_loss = FULL[name][3:]
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    loss = reference.eval()(**to_torch(name, inputs | labels)).loss  # eval: no dropout
    theirs = their_gradients(reference, loss)
    value, grads = our_gradients(model, params, lambda p: our_loss(model.apply({"params": p}, **inputs)))
    assert measured(f"{name}, full size", "loss", abs(value - loss.item())) <= 1e-4
    for key, gradient in grads.items():
        measured(f"{name}, full size", "gradients", float(abs(gradient - theirs[key]).max()))
        np.testing.assert_allclose(gradient, theirs[key], rtol=1e-4, atol=1e-5, err_msg=key)  # sums of 256 rows


def test_the_way_back(pair, tmp_path):
    name, reference, model, params = pair
    bertgpt.save_pretrained(tmp_path / "out", model, params)
    back = getattr(transformers, name).from_pretrained(tmp_path / "out").state_dict()
    for key, value in reference.state_dict().items():
        assert torch.equal(value, back[key]), key
