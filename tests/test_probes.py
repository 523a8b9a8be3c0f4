"""The probes of the demos: their sentences, what counts as right, and what they are compared with."""

import dataclasses
import sys
import types

import jax
import numpy as np
import pytest

import bertgpt
from benchmarks import probes
from bertgpt.data import TextSource, make_store
from bertgpt.errors import InputError
from train import config as configs
from train.config import text_source


def test_every_probe_is_a_held_out_sentence_of_the_demo_corpus():
    recipe = configs.load("configs/bert_demo.yaml")
    probes.check_absent(recipe)
    held_out = [probes.plain(" ".join(document)) for document in text_source(recipe).documents("eval")]
    for probe in probes.PROBES:
        assert any(probes.filled(probe) in document for document in held_out), probe
        assert probe.answer == probe.answer.lower()


def test_all_demos_read_the_same_text_with_the_same_split():
    sources = {text_source(configs.load(f"configs/bert_demo{kind}.yaml")) for kind in ("", "_long", "_real")}
    assert len(sources) == 1


def test_a_probe_in_the_training_text_is_an_error(tmp_path):
    (tmp_path / "text").write_text(
        "Gujarat is a state along  the WESTERN coast of India. It is large.", encoding="utf-8"
    )
    config = configs.RunConfig()
    config.data.train, config.data.eval_fraction = str(tmp_path / "text"), 0.0
    with pytest.raises(InputError, match=r"data.train contains the probe 'gujarat is .* coast of india\.'"):
        probes.check_absent(config)


def test_the_answer_must_be_among_the_words():
    right = [[probe.answer, "the"] for probe in probes.PROBES]
    assert probes.count_right(right) == 10
    assert probes.count_right([["The", "the"], *right[1:]]) == 9
    assert probes.count_right([["country side"], *right[1:]]) == 9


def test_the_commonest_tokens_are_counted_in_training_rows(tmp_path, wordpiece):
    (tmp_path / "train.txt").write_text("a b a c a b d e f . a b c d e", encoding="utf-8")
    (tmp_path / "eval.txt").write_text("f f f f f f f", encoding="utf-8")
    make_store(tmp_path / "store", TextSource(str(tmp_path / "train.txt"), str(tmp_path / "eval.txt")), wordpiece)
    config = configs.RunConfig()
    config.data.store = str(tmp_path / "store")
    assert probes.commonest(config, wordpiece) == ["a", "b", "c", "d", "e"]


def test_the_command_compares_three(monkeypatch, capsys, wordpiece, tiny_bert, tmp_path):
    """With a model that is certain of one word, and one probe in ten asks for it."""
    sizes = {"vocab_size": wordpiece.get_vocab_size(), "max_positions": 128}
    model = bertgpt.BertForMaskedLM(dataclasses.replace(tiny_bert.config, **sizes))
    params = model.init(jax.random.key(0), np.zeros((1, 8), np.int32))["params"]
    word = wordpiece.token_to_id("a")
    params["mlm_head"]["bias"] = params["mlm_head"]["bias"].at[word].set(1e4)
    run = types.SimpleNamespace(model=model, params=params, tokenizer=wordpiece)
    asked = (probes.Probe("the [MASK] of a", "a"), *probes.PROBES[1:])
    monkeypatch.setattr(probes, "PROBES", asked)
    monkeypatch.setattr(probes, "load_run", lambda _: run)
    monkeypatch.setattr(probes.configs, "load", lambda _: configs.RunConfig())
    monkeypatch.setattr(probes, "check_absent", lambda _: None)
    monkeypatch.setattr(probes, "commonest", lambda *_: ["x"])
    monkeypatch.setattr(sys, "argv", ["probes", str(tmp_path)])
    probes.main()
    assert (
        "right among the first five: 1 of 10; before training 0; the five commonest tokens 0" in capsys.readouterr().out
    )
