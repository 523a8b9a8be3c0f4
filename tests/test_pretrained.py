"""Model folders: written and read back, in every spelling that is about, and refused by name."""

import dataclasses
import importlib.metadata
import json
import os
import re
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_folders import FAMILY, TINY, assert_equal, change_config, make, rewrite
from safetensors import safe_open
from safetensors.numpy import load_file

import bertgpt
from bertgpt.checkpoints import atomic_folder, hf_mapping, load, parameters, runs, save
from bertgpt.errors import InputError
from bertgpt.inference.stablehlo import export_stablehlo
from bertgpt.model.inputs import example_ids
from train.__main__ import main


@pytest.mark.parametrize("name", FAMILY)
def test_what_is_written_is_read_back(saved, name):
    folder, model, params = saved(name)
    loaded, found = bertgpt.load_pretrained(folder)
    assert type(loaded) is type(model)
    assert_equal(found, params)
    dropped = {"num_labels": 2, "labels": ()} if name == "BertForQuestionAnswering" else {}
    for field, value in vars(model.config).items():
        assert getattr(loaded.config, field) == dropped.get(field, value), field


@pytest.mark.parametrize("name", FAMILY)
def test_a_run_of_any_class_is_read_back(name, tmp_path, monkeypatch):
    model, params = make(name)
    if name.startswith("OpenAI"):  # which Hugging Face's files cannot describe
        model = type(model)(dataclasses.replace(model.config, mlp_size=24, activation="gelu_erf"))
        params = model.init(jax.random.key(1), example_ids(name))["params"]
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr(load, "read_run", lambda folder, step: (model, params))
    loaded, found = bertgpt.load_pretrained(tmp_path)
    assert (type(loaded), loaded.config) == (type(model), model.config)
    assert_equal(found, params)


def test_a_run_needs_the_trainer(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").touch()
    message = r'is a run folder; to read it, install the trainer: pip install "bertgpt\[train\]"'
    point = importlib.metadata.EntryPoint("read", "orbax_that_is_missing.reader:read", runs.GROUP)
    for points, end in (([], "$"), ([point], r" \(orbax_that_is_missing is missing\)$")):
        monkeypatch.setattr(runs.metadata, "entry_points", lambda group, points=points: points)
        with pytest.raises(InputError, match=message + end):
            bertgpt.load_pretrained(tmp_path)


@pytest.mark.parametrize("name", FAMILY)
def test_the_table_names_every_parameter_once(name):
    params = make(name)[1]
    family = FAMILY[name]
    paths = [
        path
        for entry in hf_mapping.entries(family, name, 2)
        for path in parameters.parameter_paths(entry, family, name)
    ]
    assert len(paths) == len(set(paths))
    assert set(paths) == set(parameters.flatten(params))


def test_linear_weights_are_transposed_and_conv1d_joined(saved):
    folder, _, params = saved("BertForSequenceClassification")
    tensors = load_file(folder / "model.safetensors")
    query = params["bert"]["stack"]["block_1"]["attention"]["query"]
    np.testing.assert_array_equal(tensors["bert.encoder.layer.1.attention.self.query.weight"], query["kernel"].T)
    assert tensors["classifier.weight"].shape == (3, 16)
    folder, _, params = saved("OpenAIGPTLMHeadModel")
    tensors = load_file(folder / "model.safetensors")
    attention = params["transformer"]["stack"]["block_0"]["attention"]
    joined = np.concatenate([attention[part]["kernel"] for part in ("query", "key", "value")], axis=1)
    np.testing.assert_array_equal(tensors["transformer.h.0.attn.c_attn.weight"], joined)


def test_files_have_the_modes_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        bertgpt.save_pretrained(tmp_path / "out", *make("BertModel"))
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o640}


def test_a_model_card_that_is_there_stays(saved):
    folder, model, params = saved("BertModel")
    (folder / "README.md").write_text("what I wrote")
    bertgpt.save_pretrained(folder, model, params)
    assert (folder / "README.md").read_text() == "what I wrote"


def test_files_say_what_they_are(saved):
    folder, _, _ = saved("BertForMaskedLM")
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["BertForMaskedLM"], "bert")
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    with safe_open(folder / "model.safetensors", "numpy") as handle:
        assert handle.metadata() == {"format": "pt"}
    card = (folder / "README.md").read_text()
    assert "BertForMaskedLM.from_pretrained" in card
    count = sum(x.size for x in jax.tree.leaves(make("BertForMaskedLM")[1]))
    assert f"{count:,} parameters" in card


def old_names(tensors):
    return {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in tensors.items()
    }


def with_tied(tensors):
    if "cls.predictions.bias" in tensors:
        tied = {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"]}
        return tensors | tied | {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"]}
    return tensors | {"lm_head.weight": tensors["transformer.tokens_embed.weight"]}


def only_tied(tensors):
    tensors = with_tied(tensors)
    first = set(hf_mapping.FAMILIES["bert"].tied.values()) | set(hf_mapping.FAMILIES["openai-gpt"].tied.values())
    return {key: value for key, value in tensors.items() if key not in first}


def with_buffers(tensors):
    if "cls.predictions.bias" in tensors:
        return tensors | {"bert.embeddings.position_ids": np.arange(32)[None]}
    causal = np.tril(np.ones((32, 32), np.float32))[None, None]
    return tensors | {"transformer.h.0.attn.bias": causal, "transformer.h.1.attn.bias": causal}


ROW = np.zeros((1, 16), np.float32)


@pytest.mark.parametrize("change", [old_names, with_tied, only_tied, with_buffers])
@pytest.mark.parametrize("name", ["BertForPreTraining", "OpenAIGPTLMHeadModel"])
def test_every_spelling_gives_the_same_parameters(saved, name, change):
    folder, _, params = saved(name)
    rewrite(folder, change)
    assert_equal(bertgpt.load_pretrained(folder)[1], params)


@pytest.mark.parametrize(
    ("headless", "headed"), [("BertModel", "BertForPreTraining"), ("OpenAIGPTModel", "OpenAIGPTLMHeadModel")]
)
def test_the_encoders_prefix_may_be_there_or_not(saved, headless, headed):
    folder, _, params = saved(headless)
    prefix = FAMILY[headless].prefix
    rewrite(folder, lambda tensors: {f"{prefix}.{key}": value for key, value in tensors.items()})
    assert_equal(bertgpt.load_pretrained(folder)[1], params)
    folder, _, params = saved(headed)
    rewrite(folder, lambda tensors: {key.removeprefix(f"{prefix}."): value for key, value in tensors.items()})
    assert_equal(bertgpt.load_pretrained(folder)[1], params)


@pytest.mark.parametrize("first", [3000, 10**9])
def test_another_layout_of_the_weights_is_removed(tmp_path, first):
    model, params = make("BertForMaskedLM")
    bertgpt.save_pretrained(tmp_path, model, params, shard_bytes=first)
    (tmp_path / "pytorch_model.bin").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "tokenizer.json").write_text("mine, too")
    other = make("BertForMaskedLM", seed=1)[1]
    bertgpt.save_pretrained(tmp_path, model, other, shard_bytes=10**9 if first == 3000 else 3000)
    assert_equal(bertgpt.load_pretrained(tmp_path)[1], other)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "tokenizer.json").read_text() == "mine, too"  # no tokenizer was given
    assert not (tmp_path / "pytorch_model.bin").exists()
    assert (tmp_path / "model.safetensors").exists() == (first == 3000)


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_half_written(tmp_path, monkeypatch, wordpiece, there):
    model, params = make("BertForMaskedLM")
    if there:
        bertgpt.save_pretrained(tmp_path / "out", model, params)
    monkeypatch.setattr(save, "export_tokenizer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bertgpt.save_pretrained(tmp_path / "out", model, make("BertForMaskedLM", seed=1)[1], wordpiece)
    assert [file.name for file in tmp_path.iterdir()] == (["out"] if there else [])
    if there:
        assert_equal(bertgpt.load_pretrained(tmp_path / "out")[1], params)


def test_a_kill_amid_the_replacement_leaves_the_old_configuration(tmp_path, monkeypatch):
    model, params = make("BertForMaskedLM")
    bertgpt.save_pretrained(tmp_path, model, params)
    before = (tmp_path / "config.json").read_text()
    replace = atomic_folder.os.replace

    def killed(source, target):
        if target.name == "model.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(atomic_folder.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        bertgpt.save_pretrained(tmp_path, *make("BertForPreTraining", seed=1))
    assert (tmp_path / "config.json").read_text() == before
    assert_equal(bertgpt.load_pretrained(tmp_path)[1], params)
    assert not list(tmp_path.glob(".*"))


def test_a_tokenizer_of_before_does_not_stay_beside_another(tmp_path, wordpiece, bpe):
    bertgpt.save_pretrained(tmp_path, *make("BertForMaskedLM"), wordpiece)
    bertgpt.save_pretrained(tmp_path, *make("OpenAIGPTLMHeadModel"), bpe)
    assert not (tmp_path / "vocab.txt").exists()
    assert bertgpt.load_tokenizer(tmp_path).to_str() == bpe.to_str()


def test_a_folder_that_is_a_link_to_another_disk_is_written(tmp_path):
    model, params = make("BertModel")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        (tmp_path / "link").symlink_to(other)
        bertgpt.save_pretrained(tmp_path / "link", model, params)
        assert_equal(bertgpt.load_pretrained(other)[1], params)


def test_the_format_of_stablehlo_leaves_a_model_folder_whole(tmp_path):
    model, params = make("BertModel")
    bertgpt.save_pretrained(tmp_path, model, params)
    export_stablehlo(tmp_path, model, params)
    assert_equal(bertgpt.load_pretrained(tmp_path)[1], params)


def test_heads_that_are_not_used_are_told_in_one_warning(saved):
    folder, _, params = saved("BertForPreTraining")
    with pytest.warns(UserWarning, match="BertForMaskedLM does not use bert.pooler.dense.bias, .*seq_relation") as told:
        _, found = bertgpt.load_pretrained(folder, "BertForMaskedLM")
    assert len(told) == 1
    assert_equal(found["mlm_head"], params["mlm_head"])
    assert_equal(found["bert"]["stack"], params["bert"]["stack"])


@pytest.mark.parametrize("name", ["BertForPreTraining", "OpenAIGPTLMHeadModel"])
def test_a_research_head_beside_a_whole_model_is_told_and_not_read(saved, name):
    folder, _, params = saved(name)
    odd = {"adapter.weight": ROW, "bert.adapter.bias": np.zeros(4, np.int64), "score.bias": ROW}
    rewrite(folder, lambda tensors: tensors | odd)
    with pytest.warns(UserWarning, match=f"{name} does not use adapter.weight, bert.adapter.bias, score.bias$") as told:
        assert_equal(bertgpt.load_pretrained(folder)[1], params)
    assert len(told) == 1


@pytest.mark.filterwarnings("default::UserWarning")
def test_every_command_tells_in_one_line_of_tensors_that_are_not_used(tmp_path, wordpiece, corpus_file, capsys):
    model = bertgpt.BertForPreTraining(bertgpt.presets.bert_tiny(**TINY | {"vocab_size": 200}, mlp_size=32))
    folder, run = tmp_path / "folder", tmp_path / "run.yaml"
    bertgpt.save_pretrained(
        folder, model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"], wordpiece
    )
    rewrite(folder, lambda tensors: tensors | {f"adapter.{number}\n.weight": ROW for number in range(10, 20)})
    run.write_text("seed: 0\n")
    for arguments in (
        ["embed", folder, "a text"],
        ["fill-mask", folder, "a [MASK]"],
        ["export", folder, tmp_path / "out"],
        ["prepare", run, f"model.init_from={folder}", f"data.train={corpus_file}", f"data.store={tmp_path / 'store'}"],
    ):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
        assert len(told) == 1
        assert re.search(r"BertForPreTraining does not use adapter\.10 \.weight, .*14 \.weight and 5 more$", told[0])


@pytest.mark.parametrize("name", ["BertForMaskedLM", "OpenAIGPTModel"])
def test_a_deeper_model_is_read_up_to_the_configurations_layers(saved, name):
    folder, _, params = saved(name)
    fewer = {"BertForMaskedLM": "num_hidden_layers", "OpenAIGPTModel": "n_layer"}[name]
    change_config(folder, **{fewer: 1})
    count = {"BertForMaskedLM": 16, "OpenAIGPTModel": 12}[name]
    first = {"BertForMaskedLM": r"bert\.encoder\.layer\.1\.a", "OpenAIGPTModel": r"transformer\.h\.1\.a"}[name]
    with pytest.warns(UserWarning, match=rf"does not use {first}.*(, .*){{4}} and {count - 5} more$") as told:
        model, found = bertgpt.load_pretrained(folder)
    assert len(told) == 1
    assert model.config.num_layers == 1
    encoder, found_encoder = (tree.get("bert", tree)["stack"] for tree in (params, found))
    assert_equal(found_encoder, {"block_0": encoder["block_0"]})


def test_a_missing_head_is_made_only_when_asked(saved):
    folder, _, params = saved("BertForMaskedLM")
    change_config(folder, architectures=["BertForSequenceClassification"])
    with pytest.raises(
        InputError, match=r"lacks bert.pooler.dense.weight, bert.pooler.dense.bias, classif.*; name the arch"
    ):
        bertgpt.load_pretrained(folder)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model, found = bertgpt.load_pretrained(folder, "BertForSequenceClassification", num_labels=5)
    assert [str(w.message).split(": ", 1)[1].split(",")[0] for w in told] == [
        "BertForSequenceClassification does not use cls.predictions.bias",
        "randomly initialized",
    ]
    assert found["classifier"]["kernel"].shape == (16, 5)
    assert (model.config.num_labels, model.config.labels) == (5, ())
    assert 0 < abs(found["classifier"]["kernel"]).max() < 0.05  # truncated at two deviations of 0.02
    assert not found["classifier"]["bias"].any()
    assert_equal(found["bert"]["stack"], params["bert"]["stack"])


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "OpenAIGPTForSequenceClassification"])
def test_another_number_of_labels_makes_a_new_classifier(saved, name):
    folder, _, params = saved(name)
    assert_equal(bertgpt.load_pretrained(folder, num_labels=3)[1], params)
    with pytest.warns(UserWarning, match="randomly initialized"):
        _, first = bertgpt.load_pretrained(folder, num_labels=7)
    with pytest.warns(UserWarning, match="randomly initialized"):
        _, second = bertgpt.load_pretrained(folder, num_labels=7, key=jax.random.key(1))
    head = "classifier" if name.startswith("Bert") else "score"
    assert first[head]["kernel"].shape == (16, 7)
    assert (first[head]["kernel"] != second[head]["kernel"]).all()
    encoder = FAMILY[name].prefix
    assert_equal(first[encoder], params[encoder])


def test_a_folder_without_architectures_is_the_bare_model(saved):
    folder, _, params = saved("BertForMaskedLM")
    change_config(folder, architectures=None)
    with pytest.raises(InputError, match=r"a BertModel lacks bert\.pooler\.dense\.weight"):
        bertgpt.load_pretrained(folder)
    folder, _, params = saved("BertModel")
    change_config(folder, architectures=None)
    assert_equal(bertgpt.load_pretrained(folder)[1], params)


def test_old_folders_without_model_type_are_told_by_their_architecture(saved):
    folder, _, params = saved("OpenAIGPTLMHeadModel")
    change_config(folder, model_type=None)
    assert_equal(bertgpt.load_pretrained(folder)[1], params)


def test_a_folder_without_model_type_and_architectures_is_told_by_the_caller(saved):
    folder, _, params = saved("BertForMaskedLM")
    change_config(folder, model_type=None, architectures=None)
    assert_equal(bertgpt.load_pretrained(folder, "BertForMaskedLM")[1], params)
    with pytest.raises(InputError, match="model_type None is not supported"):
        bertgpt.load_pretrained(folder)


def test_a_decoder_of_its_own_does_not_matter_where_none_is_used(saved):
    folder, _, params = saved("BertForPreTraining")
    rewrite(folder, lambda tensors: tensors | {"cls.predictions.decoder.weight": np.ones((64, 16), np.float32)})
    change_config(folder, tie_word_embeddings=False)
    with pytest.warns(UserWarning, match="does not use"):
        assert_equal(bertgpt.load_pretrained(folder, "BertModel")[1], params["bert"])
    change_config(folder, tie_word_embeddings=True)
    with pytest.raises(InputError, match=r"decoder\.weight and .* differ; untied weights are not supported"):
        bertgpt.load_pretrained(folder)


def without(*dropped):
    return lambda tensors: {key: value for key, value in tensors.items() if key not in dropped}


def with_one(name, value):
    return lambda tensors: tensors | {name: value}


POSITIONS = ("position", "token_type")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("bert.pooler.dense.bias", *(f"bert.embeddings.{name}_embeddings.weight" for name in POSITIONS)),
            "lacks bert.embeddings.position_embeddings.weight, bert.embeddings.token_type_embeddings.weight, "
            "bert.pooler.dense.bias",
        ),
        (
            lambda tensors: {name: value for name, value in tensors.items() if "layer.0.attention.s" not in name},
            "lacks bert.encoder.layer.0.attention.self.query.weight, ",
        ),
        (
            without("bert.encoder.layer.0.output.dense.bias"),
            "a BertForPreTraining lacks bert.encoder.layer.0.output.dense.bias",
        ),
        (
            with_one("bert.embeddings.LayerNorm.weight", ROW),
            "has shape (1, 16), and a BertForPreTraining needs (16,)",
        ),
        (with_one("embeddings.LayerNorm.weight", ROW[0]), "under two spellings"),
        (with_one("cls.predictions.decoder.bias", np.ones(64, np.float32)), "differ; untied weights are not supported"),
        (
            with_one("bert.pooler.dense.bias", np.zeros(16, np.int8)),
            "bert.pooler.dense.bias has dtype I8; it must be one of",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(saved, change, message):
    folder, _, _ = saved("BertForPreTraining")
    rewrite(folder, change)
    with pytest.raises(InputError) as caught:
        bertgpt.load_pretrained(folder)
    assert message in str(caught.value)


def test_a_message_is_one_line_whatever_stands_in_the_file(saved):
    folder, _, _ = saved("BertModel")
    names_of = lambda char: f"a{char}b\0\x1b[31m\x9b"  # noqa: E731
    rewrite(folder, lambda tensors: tensors | {names_of("\n"): ROW, "z" * 300: ROW})
    with pytest.warns(UserWarning, match="BertModel does not use") as told:
        bertgpt.load_pretrained(folder)
    assert str(told[0].message).endswith(f"does not use a b??[31m?, {'z' * 100}")
    change_config(folder, architectures=["Bert\n\x1b[31m"])
    with pytest.raises(InputError) as caught:
        bertgpt.load_pretrained(folder)
    assert str(caught.value).isprintable()


def test_a_place_without_a_model_is_named(tmp_path, saved):
    with pytest.raises(InputError, match="nobody/nothing: no such folder, no copy in the hub's cache, and HF_HUB"):
        bertgpt.load_pretrained("nobody/nothing")
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        bertgpt.load_pretrained(tmp_path)
    folder, _, _ = saved("BertModel")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"contains no weights; add model\.safetensors"):
        bertgpt.load_pretrained(folder)


def test_parameters_of_another_model_are_not_exported(tmp_path):
    model, params = make("BertForPreTraining")
    with pytest.raises(InputError, match="params lack nsp_head/bias, unlike a BertForPreTraining"):
        bertgpt.save_pretrained(tmp_path / "out", model, {k: v for k, v in params.items() if k != "nsp_head"})
    with pytest.raises(InputError, match="params have extra, unlike"):
        bertgpt.save_pretrained(tmp_path / "out", model, params | {"extra": jnp.zeros(1)})
    with pytest.raises(InputError, match="nsp_head/kernel has shape"):
        bertgpt.save_pretrained(tmp_path / "out", model, params | {"nsp_head": {"bias": ROW, "kernel": ROW}})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: is a file; give a folder"):
        bertgpt.save_pretrained(tmp_path / "file", model, params)


def test_the_tokenizer_goes_with_the_model(tmp_path, wordpiece, bpe, documents):
    for name, tokenizer, files in (
        ("BertForMaskedLM", wordpiece, {"vocab.txt"}),
        ("OpenAIGPTLMHeadModel", bpe, {"vocab.json", "merges.txt"}),
    ):
        bertgpt.save_pretrained(tmp_path / name, *make(name), tokenizer)
        files |= {"config.json", "README.md", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        assert {file.name for file in (tmp_path / name).iterdir()} == files
        ids = [tokenizer.encode(text).ids for text in documents]
        assert [bertgpt.load_tokenizer(tmp_path / name).encode(text).ids for text in documents] == ids
        (tmp_path / name / "tokenizer.json").unlink()
        assert [bertgpt.load_tokenizer(tmp_path / name).encode(text).ids for text in documents] == ids
        assert json.loads((tmp_path / name / "tokenizer_config.json").read_text())["model_max_length"] == 32


def test_loading_gives_no_warning_where_nothing_is_amiss(saved):
    folder, _, _ = saved("OpenAIGPTDoubleHeadsModel")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bertgpt.load_pretrained(folder)


def test_git_lfs_pointers_are_named(tmp_path, wordpiece):
    model, params = make("BertModel")
    bertgpt.save_pretrained(tmp_path, model, params, wordpiece, shard_bytes=3000)
    shard = sorted(tmp_path.glob("model-*"))[1]
    for file, read in ((shard, bertgpt.load_pretrained), (tmp_path / "tokenizer.json", bertgpt.load_tokenizer)):
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n")
        with pytest.raises(bertgpt.InputError, match=rf"{file.name}: is a git-lfs pointer"):
            read(tmp_path)


def test_a_number_of_labels_needs_a_classifier(saved):
    folder, *_ = saved("BertForPreTraining")
    with pytest.raises(
        bertgpt.InputError, match=r"num_labels is for a classifier, not for BertForPreTraining; name one"
    ):
        bertgpt.load_pretrained(folder, num_labels=3)
