"""The log-probability of every token: equal to loops written out, also over several windows; and the command."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

import bertgpt
from bertgpt.inference import score as scoring
from bertgpt.losses.chunked_cross_entropy import LMHead, log_probabilities
from train.__main__ import main

POSITIONS = 12
SIZES = TINY | {"vocab_size": 200, "max_positions": POSITIONS}
WORDS = ["abc", "def", "gh", "ijk", "lm", "nop"]


def large(model):
    """Parameters far from their initial values, so that every token is seen."""
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)


@pytest.fixture(scope="module")
def gpt():
    model = bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**SIZES | {"mlp_size": 64}))
    return model, large(model)


@pytest.fixture(scope="module")
def bert():
    model = bertgpt.BertForMaskedLM(bertgpt.presets.bert_tiny(**SIZES))
    return model, large(model)


@jax.jit
def of_gpt(params, ids):
    logits = (
        bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**SIZES | {"mlp_size": 64}))
        .apply({"params": params}, ids)
        .logits
    )
    return jax.nn.log_softmax(logits)[0]


@jax.jit
def of_bert(params, ids, mask):
    logits = bertgpt.BertForMaskedLM(bertgpt.presets.bert_tiny(**SIZES)).apply({"params": params}, ids, mask).logits
    return jax.nn.log_softmax(logits)[0]


def causal_loop(params, ids, stride):
    """Each token after the longest context that its window gives it."""
    found = [math.nan]
    start, end = 1, min(len(ids), POSITIONS)
    while start < len(ids):
        window = ids[max(0, end - POSITIONS) : end]
        for place in range(start, end):
            inside = place - max(0, end - POSITIONS)
            context = np.zeros((1, POSITIONS), np.int32)
            context[0, :inside] = window[:inside]  # what comes later does not count
            found.append(float(of_gpt(params, context)[inside - 1, ids[place]]))
        start, end = end, min(len(ids), end + stride)
    return found


def masked_loop(params, tokenizer, ids):
    """Each token masked in turn, with as many tokens on both sides as fit."""
    cls, sep, mask = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[MASK]"))
    found, room = [], POSITIONS - 2
    for place, token in enumerate(ids):
        begin = max(0, min(place - room // 2, len(ids) - room))
        window = list(ids[begin : begin + room])
        window[place - begin] = mask
        read = np.pad([cls, *window, sep], (0, room - len(window)))[None]
        real = np.arange(POSITIONS)[None] < len(window) + 2
        found.append(float(of_bert(params, read, real)[place - begin + 1, token]))
    return found


def text_of(tokens):
    return " ".join(WORDS[n % len(WORDS)] for n in range(tokens))


@settings(max_examples=15)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, POSITIONS - 1), st.integers(1, 5))
def test_gpt_scores_each_token_after_the_tokens_before_it(gpt, bpe, lengths, stride, batch_size):
    model, params = gpt
    texts = [text_of(length) for length in lengths]
    scores = bertgpt.score(model, params, bpe, texts, stride=stride, batch_size=batch_size)
    assert len(scores) == len(texts)
    for text, found in zip(texts, scores, strict=True):
        ids = bpe.encode(text).ids
        assert found.ids.tolist() == ids
        np.testing.assert_allclose(found.log_probs, causal_loop(params, ids, stride), rtol=1e-4, atol=1e-4)
        assert found.count == len(ids) - 1


@settings(max_examples=10)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(1, 5))
def test_bert_scores_each_token_masked_in_turn(bert, wordpiece, lengths, batch_size):
    model, params = bert
    texts = [text_of(length) for length in lengths]
    scores = bertgpt.score(model, params, wordpiece, texts, batch_size=batch_size)
    for text, found in zip(texts, scores, strict=True):
        ids = wordpiece.encode(text, add_special_tokens=False).ids
        assert found.ids.tolist() == ids
        np.testing.assert_allclose(found.log_probs, masked_loop(params, wordpiece, ids), rtol=1e-4, atol=1e-4)
        assert found.count == len(ids)


def test_sums_and_perplexity(gpt, bpe):
    (found,) = bertgpt.score(*gpt, bpe, ["abc def gh"])
    values = found.log_probs[1:].astype(np.float64)
    assert found.log_prob == pytest.approx(values.sum())
    assert found.perplexity == pytest.approx(np.exp(-values.mean()))
    loss = bertgpt.losses.lm_loss(
        gpt[0].apply({"params": gpt[1]}, found.ids[None, :-1]).logits,
        {"labels": found.ids[None, 1:], "loss_mask": np.ones((1, len(values)))},
    )
    assert loss.mean() == pytest.approx(-values.mean(), rel=1e-5)
    one = scoring.Score(np.array([3], np.int32), np.array([np.nan], np.float32))
    assert (one.count, one.log_prob) == (0, 0)
    assert math.isnan(one.perplexity)
    assert scoring.perplexity(-1e6, 1) == math.inf


def test_the_default_stride_is_half_of_the_positions(gpt, bpe):
    text = text_of(30)
    default, half = (bertgpt.score(*gpt, bpe, [text], stride=n)[0].log_probs for n in (None, POSITIONS // 2))
    np.testing.assert_array_equal(default, half)
    assert abs(default - bertgpt.score(*gpt, bpe, [text], stride=1)[0].log_probs)[1:].max() > 1e-3


def test_a_model_with_damaged_weights_scores_nothing(gpt, bpe):
    model, params = gpt
    damaged = jax.tree.map(lambda x: x * jnp.nan, params)
    with pytest.raises(bertgpt.InputError, match="text 1: the model's outputs are NaN; its weights are damaged"):
        bertgpt.score(model, damaged, bpe, ["abc def"])


def test_texts_are_scored_as_they_come(gpt, bpe):
    read = []
    texts = (read.append(number) or text_of(3) for number in range(50))
    scores = scoring.score_each(*gpt, bpe, texts, batch_size=4)
    for _ in range(5):
        next(scores)
    assert len(read) <= 9
    assert len(list(scores)) == 45


def test_log_probabilities_are_those_of_the_logits_also_in_blocks():
    rng = np.random.default_rng(0)
    x, embedding, bias = (rng.normal(size=size).astype(np.float32) for size in ((300, 8, 4), (20, 4), (20,)))
    labels = rng.integers(0, 20, (300, 8))
    head = LMHead(x, embedding, bias)
    expected = jax.nn.log_softmax(head.logits())
    expected = jnp.take_along_axis(expected, labels[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(log_probabilities(head, labels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "BertModel",
            {},
            "a BertModel gives tokens no probability; load a BertForMaskedLM, BertForPre",
        ),
        (
            "OpenAIGPTLMHeadModel",
            {"stride": 12},
            "stride is 12; it must be from 1 to 11, the model's positions less",
        ),
        ("BertForMaskedLM", {"stride": 3}, "stride is 3, but it is for GPT-1; a BERT's windows surround"),
        ("OpenAIGPTLMHeadModel", {"stride": 0}, "stride is 0; it must be from 1 to 11"),
        ("OpenAIGPTLMHeadModel", {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ("OpenAIGPTLMHeadModel", {"texts": ["a", " "]}, "text 2 is empty; remove it"),
        ("OpenAIGPTLMHeadModel", {"texts": "a"}, "score takes a list of texts, such as [text]"),
    ],
)
def test_what_cannot_be_scored_is_told_in_a_line(gpt, bert, bpe, name, options, message):
    models = {"OpenAIGPTLMHeadModel": gpt, "BertForMaskedLM": bert}
    model, params = models.get(name, (bertgpt.BertModel(bert[0].config), bert[1]["bert"]))
    with pytest.raises(bertgpt.InputError) as caught:
        bertgpt.score(model, params, bpe, **{"texts": ["abc"]} | options)
    assert message in str(caught.value)


# The commands.


@pytest.fixture(scope="module")
def folders(gpt, bert, bpe, wordpiece, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    for name, (model, params), tokenizer in (("gpt", gpt, bpe), ("bert", bert, wordpiece)):
        bertgpt.save_pretrained(folder / name, model, params, tokenizer)
    (folder / "text.txt").write_text("abc def\ngh\n\nijk lm nop abc\n", encoding="utf-8")
    (folder / "rows.jsonl").write_text('{"body": "abc def"}\n{"body": "gh ijk"}\n', encoding="utf-8")
    return folder


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_the_command_scores_texts_and_files(folders, name, capsys, gpt, bert, bpe, wordpiece):
    given = (*(gpt if name == "gpt" else bert), bpe if name == "gpt" else wordpiece)
    expected = bertgpt.score(*given, ["abc def gh", "ijk lm nop abc"])
    model = str(folders / name)
    assert main(["score", model, "abc def gh", "ijk lm nop abc", "--tokens"]) == 0
    for line, score in zip(lines(capsys), expected, strict=True):
        assert line["tokens"] == score.count
        assert line["log_prob"] == pytest.approx(score.log_prob, abs=1e-4)
        assert line["perplexity"] == pytest.approx(score.perplexity, rel=1e-4)
        values = [math.nan if value is None else value for _, value in line["token_log_probs"]]
        np.testing.assert_allclose(values, score.log_probs, atol=1e-4)
        assert [given[2].token_to_id(piece) for piece, _ in line["token_log_probs"]] == score.ids.tolist()
    out = folders / f"{name}.jsonl"
    assert main(["score", model, "--file", str(folders / "text.txt"), "--out", str(out)]) == 0
    (line,) = lines(capsys)
    total = sum(score.log_prob for score in expected)
    assert line["texts"] == 2
    assert line["log_prob"] == pytest.approx(total, abs=1e-4)
    assert line["perplexity"] == pytest.approx(math.exp(-total / sum(score.count for score in expected)), rel=1e-4)
    written = [json.loads(text) for text in out.read_text().splitlines()]
    assert [row["tokens"] for row in written] == [score.count for score in expected]
    assert main(["score", model, "--file", str(folders / "text.txt"), "--document", "line"]) == 0
    assert lines(capsys)[0]["texts"] == 3


def test_vectors_are_written_to_files(folders, capsys, bert, wordpiece):
    model, rows = str(folders / "bert"), str(folders / "rows.jsonl")
    texts = ["abc def", "gh ijk"]
    common = ["embed", model, "--file", rows, "--text-key", "body"]
    assert main([*common, "--out", str(folders / "mean.npz")]) == 0
    with np.load(folders / "mean.npz", allow_pickle=False) as arrays:
        assert list(arrays) == ["embeddings"]
        np.testing.assert_allclose(arrays["embeddings"], bertgpt.embed(*bert, wordpiece, texts), atol=1e-6)
    options = ["--pooling", "none", "--layer", "0", "--layer", "-1"]
    tokens = bertgpt.embed(*bert, wordpiece, texts, "none", layer=[0, -1])
    assert main([*common, *options, "--out", str(folders / "tokens.npz")]) == 0
    with np.load(folders / "tokens.npz", allow_pickle=False) as arrays:
        ends = arrays["ends"].tolist()
        assert ends == np.cumsum([vectors.shape[1] for vectors in tokens]).tolist()
        for start, end, text, vectors in zip([0, *ends], ends, texts, tokens, strict=False):
            np.testing.assert_allclose(arrays["embeddings"][start:end], vectors.swapaxes(0, 1), atol=1e-6)
            assert arrays["ids"][start:end].tolist() == wordpiece.encode(text).ids
    assert main([*common, *options, "--out", str(folders / "tokens.jsonl")]) == 0
    for line, text, vectors in zip((folders / "tokens.jsonl").read_text().splitlines(), texts, tokens, strict=True):
        found = json.loads(line)
        assert (found["text"], found["tokens"]) == (text, wordpiece.encode(text).tokens)
        np.testing.assert_allclose(found["embedding"], vectors, atol=1e-6)
    assert capsys.readouterr().out == ""


def test_vectors_of_a_gpts_tokens_are_printed(folders, capsys, bpe):
    assert main(["embed", str(folders / "gpt"), "abc def", "--pooling", "none", "--layer", "1"]) == 0
    (line,) = lines(capsys)
    assert line["tokens"] == bpe.encode("abc def").tokens
    assert np.shape(line["embedding"]) == (len(line["tokens"]), 16)


def test_nothing_is_left_of_a_file_that_could_not_be_written_whole(folders, capsys):
    bad = folders / "bad.jsonl"
    bad.write_text('{"text": "abc"}\n{"other": "x"}\n')
    for command, name in (("embed", "half.npz"), ("embed", "half.jsonl"), ("score", "half.jsonl")):
        assert main([command, str(folders / "gpt"), "--file", str(bad), "--out", str(folders / name)]) == 2
        assert "bad.jsonl line 2: no text under 'text' (found keys other); set --text-key" in capsys.readouterr().err
        assert not [path for path in folders.iterdir() if "half" in path.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "a", "--out", "x"], "--out needs --file"),
        (["score", "--file", "text.txt", "--tokens"], "--tokens with --file needs --out, the file to write them to"),
        (["score", "a", "--file", "text.txt"], "give texts as arguments or with --file, not both"),
        (["embed", "--file", "no.txt"], "no.txt: no such file"),
        (["embed", "--file", "empty.txt"], "--file: empty.txt contains no text"),
        (["embed", "a", "--out", "x.csv"], "--out is x.csv; it must end in .jsonl or .npz"),
        (["embed", "a", "--layer", "7"], "layer 7 does not exist; give 0 (the embeddings) to 2, or -1 for the last"),
        (["score", "a", "--stride", "99"], "stride is 99; it must be from 1 to 11"),
        (
            ["score", "--file", "text.txt", "--out", "no/x.jsonl"],
            "no/x.jsonl: there is no folder no; create it, or give",
        ),
        (["embed", "a", "--out", "no/x.npz"], "no/x.npz: there is no folder no; create it, or give another file"),
    ],
)
def test_wrong_arguments_are_one_line(folders, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    (folders / "empty.txt").touch()
    command, *options = arguments
    assert main([command, str(folders / "gpt"), *options]) == 2
    assert message in capsys.readouterr().err
