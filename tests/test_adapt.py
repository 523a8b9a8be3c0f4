"""A pretrained model under another head and vocabulary."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from model_folders import make
from tokenizers import Tokenizer

import bertgpt
from bertgpt.checkpoints.adapt import adapt, add_tokens
from bertgpt.data.tasks.templates import GPT_TASK_TOKENS
from bertgpt.tokenizers import train_bpe, train_wordpiece, vocabulary_size

KEY = jax.random.key(7)
WORDS = train_wordpiece(["a b c"], 30)
LETTERS = train_bpe(["a b c"], 30)


def adapted(old, new, tokenizer=WORDS, **fields):
    model, params = make(old)
    config = dataclasses.replace(model.config, **fields)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = adapt(model, params, new, config, tokenizer, key=KEY)
    return *out, flatten_dict(params, sep="/"), [str(warning.message) for warning in caught]


@pytest.mark.parametrize("old", ["BertForPreTraining", "BertModel", "BertForSequenceClassification"])
def test_the_encoder_is_kept_and_the_head_is_new(old):
    model, params, before, told = adapted(old, "BertForSequenceClassification", num_labels=4, labels=())
    after = flatten_dict(params, sep="/")
    assert after["classifier/kernel"].shape == (16, 4)
    assert 0 < np.abs(after["classifier/kernel"]).max() < 0.1
    assert told == [f"the {old} has no matching classifier: randomly initialized, to be trained"]
    prefix = "" if old == "BertModel" else "bert/"
    kept = [path for path in after if path.startswith("bert/")]
    assert len(kept) == 39
    for path in kept:
        np.testing.assert_array_equal(after[path], before[prefix + path.removeprefix("bert/")])
    assert model.apply({"params": params}, np.ones((1, 3), np.int32)).logits.shape == (1, 4)


def test_a_head_with_the_same_labels_is_kept_and_one_with_others_of_that_number_is_not():
    name = "BertForSequenceClassification"
    _, params, before, told = adapted(name, name, problem_type="single_label_classification")  # what None means
    np.testing.assert_array_equal(params["classifier"]["kernel"], before["classifier/kernel"])
    assert told == []
    _, params, before, told = adapted(name, name, labels=("a", "b", "c"))
    assert not np.array_equal(params["classifier"]["kernel"], before["classifier/kernel"])
    assert "classifier: randomly initialized" in told[0]


@pytest.mark.parametrize(
    ("old", "fields"),
    [
        ("BertForTokenClassification", {}),
        ("BertForSequenceClassification", {"problem_type": "multi_label_classification"}),
    ],
)
def test_a_classifier_of_another_task_is_not_kept(old, fields):
    *_, told = adapted(old, "BertForSequenceClassification", **fields)
    assert "classifier" in told[0]


@pytest.mark.parametrize(
    ("labels", "kept"), [(("0", "1", "2"), True), (("0", "2", "1"), False), (("a", "b", "c"), False)]
)
def test_a_classifier_without_names_is_kept_for_the_numbers_of_its_classes(labels, kept):
    model, params = make("BertForSequenceClassification")
    unnamed = model.clone(config=dataclasses.replace(model.config, labels=()))
    named = dataclasses.replace(model.config, labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, found = adapt(unnamed, params, "BertForSequenceClassification", named, WORDS, key=KEY)
    assert np.array_equal(found["classifier"]["kernel"], params["classifier"]["kernel"]) == kept


def test_ids_with_holes_are_refused():
    description = json.loads(LETTERS.to_str())
    top = max(description["model"]["vocab"], key=description["model"]["vocab"].get)
    description["model"]["vocab"][top] += 1
    with pytest.raises(bertgpt.InputError, match="the tokenizer's ids have holes"):
        add_tokens(Tokenizer.from_str(json.dumps(description)), GPT_TASK_TOKENS)


def test_a_missing_pooler_is_named():
    *_, told = adapted("BertForMaskedLM", "BertForSequenceClassification")
    assert told == ["the BertForMaskedLM has no matching classifier, pooler: randomly initialized, to be trained"]


def test_the_vocabulary_grows_by_rows_drawn_as_at_the_beginning():
    tokenizer = train_bpe(["".join(map(chr, range(97, 97 + 26))), "abc abd abe " * 9], 64)
    tokens = [f"_{number}_" for number in range(70 - vocabulary_size(tokenizer))]
    model, params, before, told = adapted("OpenAIGPTModel", "OpenAIGPTLMHeadModel", add_tokens(tokenizer, tokens))
    rows = np.asarray(params["transformer"]["token"]["embedding"])
    assert (model.config.vocab_size, rows.shape) == (70, (70, 16))
    np.testing.assert_array_equal(rows[:64], before["token/embedding"])
    assert 0 < np.abs(rows[64:]).max() < 0.1
    assert len(np.unique(rows[64:], axis=0)) == 6
    assert told == ["6 new tokens: randomly initialized, to be trained"]


def test_special_tokens_come_last_in_order_and_once():
    size = vocabulary_size(LETTERS)
    tokenizer = add_tokens(LETTERS, GPT_TASK_TOKENS)
    assert [tokenizer.token_to_id(token) for token in GPT_TASK_TOKENS] == [size, size + 1, size + 2]
    assert vocabulary_size(add_tokens(tokenizer, GPT_TASK_TOKENS)) == size + 3
    assert vocabulary_size(LETTERS) == size
    assert tokenizer.encode("a _delimiter_ b").ids.count(size + 1) == 1


@pytest.mark.parametrize("new", ["OpenAIGPTForSequenceClassification", "BertModel", "Nothing"])
def test_another_family_or_a_bare_encoder_is_refused(new):
    with pytest.raises(bertgpt.InputError, match=f"a BertForMaskedLM cannot become a {new}"):
        adapted("BertForMaskedLM", new)
