"""`inspect` shows what a folder contains, what its class does not use or lacks, and what can be done with it."""

import json

import jax
import ml_dtypes
import pytest
from model_folders import change_config, make, rewrite

import bertgpt
from bertgpt.tokenizers import export_tokenizer
from train.__main__ import main


@pytest.fixture
def folder(saved, wordpiece):
    """A folder with both pretraining heads and a tokenizer of 200 tokens, more than the model's 64."""
    folder, _, _ = saved("BertForPreTraining")
    export_tokenizer(wordpiece, folder, 32)
    return folder


def shown(capsys, *arguments) -> list[str]:
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def line(lines: list[str], start: str) -> str:
    (found,) = [text for text in lines if text.startswith(start)]
    return found.removeprefix(start).strip()


def test_a_folder_is_described_on_one_screen(folder, capsys):
    rewrite(folder, lambda tensors: {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()})
    lines = shown(capsys, folder)
    count = sum(value.size for value in jax.tree.leaves(make("BertForPreTraining")[1]))
    assert lines[0] == f"{folder}: BertForPreTraining, format Hugging Face, {count:,} parameters"
    assert "hidden_size=16  num_layers=2  num_heads=2" in line(lines, "configuration:")
    rows = {text.split()[0]: text for text in lines if text.startswith("  ")}
    assert rows["bert.encoder.layer.{0..1}.attention.self.query.weight"].endswith(
        "[16, 16]  BF16  bert/stack/block_{0..1}/attention/query/kernel"
    )
    assert rows["cls.seq_relationship.weight"].rstrip().endswith("[2, 16]   BF16  nsp_head/kernel")
    assert line(lines, "not used by BertForPreTraining:") == line(lines, "missing:") == "nothing"
    assert line(lines, "tokenizer:") == "WordPiece, 200 tokens, lower-cases text"
    assert line(lines, "  special tokens:") == "[PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4"
    uses = "fill-mask, predict (next sentence), embed, pretrain (train.objective=mlm_nsp), finetune, export"
    assert line(lines, "can be used for:") == uses
    assert len(lines) < 50


def test_unused_and_missing_tensors_are_named(folder, capsys):
    change_config(folder, architectures=["BertForMaskedLM"])
    lines = shown(capsys, folder)
    unused = "bert.pooler.dense.bias, bert.pooler.dense.weight, cls.seq_relationship.bias, cls.seq_relationship.weight"
    assert line(lines, "not used by BertForMaskedLM:") == unused
    # the tensors decide what pretraining continues, not the class
    assert line(lines, "can be used for:") == "fill-mask, embed, pretrain (train.objective=mlm_nsp), finetune, export"
    assert next(text for text in lines if text.startswith("  cls.seq_relationship.weight")).endswith(" -")
    change_config(folder, architectures=["BertForQuestionAnswering"])
    lines = shown(capsys, folder)
    assert line(lines, "missing:") == "qa_outputs.weight, qa_outputs.bias"
    assert "since a BertForQuestionAnswering lacks tensors" in line(lines, "can be used for:")


@pytest.mark.parametrize(
    ("name", "uses"),
    [
        ("BertModel", "embed, pretrain (train.objective=mlm_nsp, new heads), finetune, export"),
        ("BertForMaskedLM", "fill-mask, embed, pretrain (train.objective=mlm), finetune, export"),
        ("BertForTokenClassification", "predict (tagging), embed, pretrain (train.objective=mlm_nsp, new heads), "),
        ("OpenAIGPTLMHeadModel", "generate, embed, pretrain (train.objective=clm), finetune, export"),
    ],
)
def test_what_can_be_done_follows_from_the_heads(name, uses, saved, wordpiece, bpe, capsys):
    folder, _, _ = saved(name)
    export_tokenizer(bpe if name.startswith("OpenAI") else wordpiece, folder, 32)
    assert line(shown(capsys, folder), "can be used for:").startswith(uses)


def test_a_folder_without_a_tokenizer_says_so(saved, capsys):
    folder, _, _ = saved("BertForMaskedLM")
    lines = shown(capsys, folder)
    assert "no tokenizer.json, vocab.txt" in line(lines, "tokenizer:")
    assert line(lines, "can be used for:").startswith("load_pretrained in Python")


def test_layers_that_differ_do_not_share_a_line(folder, capsys):
    name = "bert.encoder.layer.1.output.dense.bias"
    rewrite(folder, lambda tensors: tensors | {name: tensors[name].astype(ml_dtypes.bfloat16)})
    lines = shown(capsys, folder)
    assert [text.split()[0] for text in lines if "output.dense.bias" in text and "attention" not in text] == [
        "bert.encoder.layer.0.output.dense.bias",
        name,
    ]


def test_added_tokens_are_listed(saved, wordpiece, capsys):
    folder, _, _ = saved("BertForMaskedLM")
    export_tokenizer(bertgpt.add_tokens(wordpiece, [f"<{n}>" for n in range(20)]), folder, 32)
    file = folder / "tokenizer.json"
    described = json.loads(file.read_text())
    described["added_tokens"][-1]["special"] = False
    file.write_text(json.dumps(described))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    lines = shown(capsys, folder)
    assert line(lines, "  special tokens:").endswith("and 12 more")
    assert line(lines, "  added tokens:") == "<19> 219"
