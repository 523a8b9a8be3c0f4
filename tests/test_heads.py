"""Task heads: dropout, choices, and the token that speaks for a text. Their numbers are in test_goldens.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bertgpt
from bertgpt.model.gpt import last_position

IDS = np.random.default_rng(0).integers(1, 60, (2, 3, 8)).astype(np.int32)
FIELD = {  # what a head adds, and whether dropout stands before it
    "BertForSequenceClassification": ("logits", True),
    "BertForMultipleChoice": ("mc_logits", True),
    "BertForTokenClassification": ("logits", True),
    "BertForQuestionAnswering": ("start_logits", False),
    "OpenAIGPTDoubleHeadsModel": ("mc_logits", True),
    "OpenAIGPTForSequenceClassification": ("logits", True),
}


@pytest.fixture(scope="module", params=FIELD)
def head(request, tiny_bert, tiny_gpt):
    """(model without any dropout, ids, params, field)."""
    config = (tiny_bert if request.param.startswith("Bert") else tiny_gpt).config
    config = dataclasses.replace(config, hidden_dropout=0.0, attention_dropout=0.0, num_labels=5)
    model = getattr(bertgpt, request.param)(config)
    ids = IDS if request.param in ("BertForMultipleChoice", "OpenAIGPTDoubleHeadsModel") else IDS[0]
    return model, ids, jax.jit(model.init)(jax.random.key(0), ids)["params"], FIELD[request.param]


def run(model, params, ids, field, **options):
    return np.asarray(getattr(model.apply({"params": params}, ids, **options), field))


def test_dropout_before_a_head_is_the_classifiers_or_else_the_hidden_one(head):
    model, ids, params, (field, drops) = head
    on = {"deterministic": False, "rngs": {"dropout": jax.random.key(1)}}
    plain = run(model, params, ids, field)
    np.testing.assert_allclose(run(model, params, ids, field, **on), plain, rtol=1e-6)
    changed = type(model)(dataclasses.replace(model.config, classifier_dropout=0.5))
    assert (abs(run(changed, params, ids, field, **on) - plain).max() > 1e-4) == drops
    np.testing.assert_allclose(run(changed, params, ids, field), plain, rtol=1e-6)
    assert dataclasses.replace(model.config, hidden_dropout=0.25).head_dropout == 0.25
    assert dataclasses.replace(model.config, hidden_dropout=0.25, classifier_dropout=0.0).head_dropout == 0.0


def test_a_classifier_is_initialised_as_the_rest_and_its_bias_is_zero(head):
    params = head[2]
    name = next(name for name in params if name not in ("bert", "transformer"))
    assert 0.01 < params[name]["kernel"].std() < 0.03
    assert not params[name].get("bias", jnp.zeros(1)).any()


def test_choices_are_scored_apart(tiny_bert, tiny_gpt):
    for name, config in (("BertForMultipleChoice", tiny_bert.config), ("OpenAIGPTDoubleHeadsModel", tiny_gpt.config)):
        model = getattr(bertgpt, name)(config)
        params = model.init(jax.random.key(0), IDS)["params"]
        together = run(model, params, IDS, "mc_logits")
        assert together.shape == (2, 3)
        alone = run(model, params, IDS[1:, 2:], "mc_logits")
        np.testing.assert_allclose(alone[0, 0], together[1, 2], rtol=1e-5, atol=1e-6)


def test_mc_token_ids_say_which_position_speaks(tiny_gpt):
    model = bertgpt.OpenAIGPTDoubleHeadsModel(tiny_gpt.config)
    params = model.init(jax.random.key(0), IDS)["params"]
    last = run(model, params, IDS, "mc_logits")
    at = np.array([[7, 3, 7], [7, 7, 0]])
    chosen = run(model, params, IDS, "mc_logits", mc_token_ids=at)
    assert ((chosen == last) == (at == 7)).all()
    by_mask = run(model, params, IDS, "mc_logits", attention_mask=np.arange(8) <= at[..., None])
    np.testing.assert_allclose(by_mask, chosen, rtol=1e-5, atol=1e-6)


def test_the_last_real_position_is_found_on_either_side():
    mask = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    x = jnp.zeros((4, 4, 2))
    assert last_position(x, mask).tolist() == [1, 3, 3, 0]
    assert last_position(x, None).tolist() == [3, 3, 3, 3]


def test_models_without_a_pooler_have_no_parameters_for_it(tiny_bert):
    for name, pooled in (("BertForMaskedLM", False), ("BertForQuestionAnswering", False), ("BertModel", True)):
        model = getattr(bertgpt, name)(tiny_bert.config)
        params = jax.eval_shape(model.init, jax.random.key(0), IDS[0])["params"]
        assert ("pooler" in params.get("bert", params)) == pooled
        output = jax.eval_shape(model.apply, {"params": params}, IDS[0])
        assert (output.pooler_output is not None) == pooled


def test_masked_logits_may_be_asked_for_at_some_positions(tiny_bert):
    model = bertgpt.BertForMaskedLM(tiny_bert.config)
    params = model.init(jax.random.key(0), IDS[0])["params"]
    places = np.array([[1, 5], [0, 7], [2, 2]])
    everywhere = run(model, params, IDS[0], "mlm_logits")
    some = run(model, params, IDS[0], "mlm_logits", masked_positions=places)
    np.testing.assert_allclose(some, np.take_along_axis(everywhere, places[..., None], 1), rtol=1e-5, atol=1e-6)


def test_the_two_orders_of_a_pair_are_added_before_the_classifier(tiny_gpt):
    config = dataclasses.replace(tiny_gpt.config, num_labels=3)
    model = bertgpt.OpenAIGPTForSequenceClassification(config)
    mask = np.ones_like(IDS[:2, :2])
    mask[0, 1, 5:] = 0
    params = jax.jit(model.init)(jax.random.key(0), IDS[0])["params"]
    both = run(model, params, IDS[:2, :2], "logits", attention_mask=mask)
    apart = [run(model, params, IDS[:2, order], "logits", attention_mask=mask[:, order]) for order in (0, 1)]
    np.testing.assert_allclose(both, apart[0] + apart[1], atol=1e-6)  # there is no bias
    turned = run(model, params, IDS[:2, 1::-1], "logits", attention_mask=mask[:, ::-1])
    np.testing.assert_allclose(both, turned, atol=1e-6)


def test_next_token_logits_beside_a_classifier_are_the_language_models(tiny_gpt):
    model = bertgpt.OpenAIGPTForSequenceClassification(tiny_gpt.config)
    params = jax.jit(model.init)(jax.random.key(0), IDS[0])["params"]
    found = run(model, params, IDS[0], "lm_logits", output_lm_logits=True)
    expected = run(tiny_gpt, {"transformer": params["transformer"]}, IDS[0], "logits")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert run(model, params, IDS[:2], "lm_logits", output_lm_logits=True).shape == (*IDS[:2].shape, 64)
    assert model.apply({"params": params}, IDS[0]).lm_logits is None
