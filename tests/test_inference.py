"""Filled masks and sentence pairs against the logits."""

import jax
import numpy as np
import pytest
from conftest import TINY

import bertgpt
from bertgpt.inference import embed as embedding

WIDE = TINY | {"vocab_size": 200, "initializer_range": 0.5}  # tokens differ in likelihood
PROMPTS = np.array([[3, 14, 15], [92, 65, 35]])


@pytest.fixture(scope="module")
def bert():
    """A model and its parameters."""
    model = bertgpt.BertForPreTraining(bertgpt.presets.bert_tiny(**WIDE))
    return model, jax.jit(model.init)(jax.random.key(0), PROMPTS)["params"]


@pytest.fixture(scope="module")
def words(documents):
    """The first words of a document, and of another."""
    return [" ".join(documents[n].split()[:3]) for n in (0, 1)]


def test_fill_mask_gives_the_softmax_at_every_mask_best_first(bert, wordpiece, words):
    model, params = bert
    filled = bertgpt.fill_mask(model, params, wordpiece, f"[MASK] {words[0]} [MASK]", top_k=4)
    ids = wordpiece.encode(words[0], add_special_tokens=False).ids
    cls, sep, mask = (wordpiece.token_to_id(token) for token in ("[CLS]", "[SEP]", "[MASK]"))
    logits = jax.jit(model.apply)({"params": params}, np.array([[cls, mask, *ids, mask, sep]])).mlm_logits[0]
    assert len(filled) == 2
    for pieces, position in zip(filled, (1, -2), strict=True):
        expected = np.asarray(jax.nn.softmax(logits[position]))
        np.testing.assert_allclose([p for _, p in pieces], sorted(expected, reverse=True)[:4], rtol=1e-5)
        for piece, probability in pieces:
            np.testing.assert_allclose(expected[wordpiece.token_to_id(piece)], probability, rtol=1e-5)


def test_a_text_without_a_mask_is_refused(bert, wordpiece, words):
    with pytest.raises(bertgpt.InputError, match=r"no \[MASK\]"):
        bertgpt.fill_mask(*bert, wordpiece, words[0])


def test_a_text_over_berts_positions_is_refused(bert, wordpiece):
    with pytest.raises(bertgpt.InputError, match="33 tokens, over the model's 32 positions"):
        bertgpt.fill_mask(*bert, wordpiece, "[MASK]" * 31)


def test_next_sentence_probability_is_the_softmax_at_zero(bert, wordpiece, words):
    model, params = bert
    halves = [wordpiece.encode(text, add_special_tokens=False).ids for text in words]
    cls, sep = (wordpiece.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    ids = np.array([[cls, *halves[0], sep, *halves[1], sep]])
    segments = np.array([[0] * (len(halves[0]) + 2) + [1] * (len(halves[1]) + 1)])
    logits = jax.jit(model.apply)({"params": params}, ids, token_type_ids=segments).nsp_logits[0]
    probability = bertgpt.next_sentence_probability(model, params, wordpiece, *words)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(logits[1] - logits[0])), rtol=1e-5)
    assert abs(probability - 0.5) > 1e-2


TEXTS = ["one", "two three four five six seven", "three", "four five", "five one two three"]


def test_mean_pooling_is_the_mean_of_a_texts_states(bert, wordpiece):
    model, params = bert
    vectors = bertgpt.embed(model, params, wordpiece, TEXTS, batch_size=2)
    assert (vectors.shape, vectors.dtype) == ((5, 16), np.float32)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = np.array([wordpiece.encode(text).ids])
        states = np.asarray(model.apply({"params": params}, ids).last_hidden_state[0])
        np.testing.assert_allclose(vector, states.mean(0), rtol=1e-4, atol=1e-5)
    first = bertgpt.embed(model, params, wordpiece, TEXTS[:1], "cls")
    states = model.apply({"params": params}, np.array([wordpiece.encode(TEXTS[0]).ids])).last_hidden_state
    np.testing.assert_allclose(first, states[:, 0], rtol=1e-4, atol=1e-5)


def test_every_layer_and_every_token_have_vectors(bert, wordpiece):
    model, params = bert
    layers = [0, 1, -1]
    tokens = bertgpt.embed(model, params, wordpiece, TEXTS, "none", batch_size=2, layer=layers)
    means = bertgpt.embed(model, params, wordpiece, TEXTS, batch_size=2, layer=layers)
    assert means.shape == (5, 3, 16)
    for text, vectors, mean in zip(TEXTS, tokens, means, strict=True):
        ids = np.array([wordpiece.encode(text).ids])
        states = model.apply({"params": params}, ids, output_hidden_states=True).hidden_states
        assert (vectors.shape, vectors.dtype) == ((3, ids.shape[1], 16), np.float32)
        for layer, found, pooled in zip(layers, vectors, mean, strict=True):
            np.testing.assert_allclose(found, states[layer][0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(pooled, states[layer][0].mean(0), rtol=1e-4, atol=1e-5)
    (one,) = bertgpt.embed(model, params, wordpiece, TEXTS[:1], "none", layer=1)
    np.testing.assert_allclose(one, tokens[0][1], rtol=1e-4, atol=1e-5)
    assert bertgpt.embed(model, params, wordpiece, [], layer=layers).shape == (0, 3, 16)


def test_few_texts_are_read_ahead(bert, wordpiece, monkeypatch):
    monkeypatch.setattr(embedding, "SORTED", 4)
    read = []
    texts = (read.append(number) or f"one {'two ' * (number % 3)}" for number in range(100))
    vectors = embedding.embed_each(*bert, wordpiece, texts, batch_size=2)
    first = [next(vectors) for _ in range(5)]
    assert len(read) == 8
    assert len(first + list(vectors)) == 100


def test_a_gpt_embeds_by_the_mean(bpe):
    model = bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**WIDE))
    params = jax.jit(model.init)(jax.random.key(0), PROMPTS)["params"]
    vectors = bertgpt.embed(model, params, bpe, TEXTS)
    states = model.apply({"params": params}, np.array([bpe.encode(TEXTS[3]).ids])).last_hidden_state[0]
    np.testing.assert_allclose(vectors[3], states.mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(bertgpt.InputError, match="pooling is 'cls'; choose mean or none, or for BERT also cls"):
        bertgpt.embed(model, params, bpe, TEXTS, "cls")


def test_texts_that_cannot_be_embedded_are_named_by_number(bert, wordpiece):
    with pytest.raises(bertgpt.InputError, match="text 2 is empty"):
        bertgpt.embed(*bert, wordpiece, ["a", " "])
    with pytest.raises(bertgpt.InputError, match="text 1 has 42 tokens, over the model's 32"):
        bertgpt.embed(*bert, wordpiece, ["a " * 40])
    with pytest.raises(bertgpt.InputError, match="pooling is 'max'"):
        bertgpt.embed(*bert, wordpiece, ["a"], "max")
    with pytest.raises(bertgpt.InputError, match="embed takes a list of texts"):
        bertgpt.embed(*bert, wordpiece, "a")
    with pytest.raises(bertgpt.InputError, match="batch_size is 0; it must be at least 1"):
        bertgpt.embed(*bert, wordpiece, ["a"], batch_size=0)
    with pytest.raises(bertgpt.InputError, match=r"layer 3 does not exist; give 0 \(the embeddings\) to 2, or -1"):
        bertgpt.embed(*bert, wordpiece, ["a"], layer=[1, 3])
    with pytest.raises(bertgpt.InputError, match="there is no layer; give at least one"):
        bertgpt.embed(*bert, wordpiece, ["a"], layer=[])
    assert bertgpt.embed(*bert, wordpiece, []).shape == (0, 16)


@pytest.mark.parametrize("name", ["BertModel", "BertForMultipleChoice", "BertForQuestionAnswering"])
def test_any_head_or_none_gives_the_same_vectors(bert, wordpiece, name):
    params = bert[1]["bert"] if name == "BertModel" else {"bert": bert[1]["bert"], "classifier": {}}
    vectors = bertgpt.embed(getattr(bertgpt, name)(bert[0].config), params, wordpiece, TEXTS)
    np.testing.assert_allclose(vectors, bertgpt.embed(*bert, wordpiece, TEXTS), rtol=1e-5, atol=1e-6)


def test_a_model_without_the_head_is_refused_before_it_runs(bert, wordpiece):
    model = bertgpt.BertForMultipleChoice(bert[0].config)
    with pytest.raises(bertgpt.InputError, match="BertForMultipleChoice has no MLM head; use a BertForPreTr"):
        bertgpt.fill_mask(model, bert[1], wordpiece, "[MASK]")
