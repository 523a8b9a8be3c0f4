"""A masked language model of transformers', continued here and handed back."""

import json

import numpy as np
import pytest
import torch
import transformers
from reference import BERT

import bertgpt
from bertgpt.tokenizers import export_tokenizer
from train.__main__ import main


@pytest.fixture
def theirs(wordpiece, tmp_path):
    """A folder as transformers writes it, with a tokenizer."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**BERT | {"vocab_size": wordpiece.get_vocab_size()})
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "theirs")
    export_tokenizer(wordpiece, tmp_path / "theirs", config.max_position_embeddings)
    return tmp_path / "theirs"


def test_a_continued_model_is_read_without_missing_or_unexpected_keys(theirs, corpus_file, tmp_path, measured):
    run, out = tmp_path / "run", tmp_path / "out"
    values = {
        "model": {"init_from": str(theirs)},
        "data": {"train": str(corpus_file), "eval_fraction": 0.1, "sequence_length": 16, "pack": True, "workers": 1},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 20, "batch_size": 8, "eval_every": 20, "eval_examples": 16},
        "out": str(run),
    }
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    assert main(["pretrain", str(tmp_path / "run.yaml")]) == 0  # the heads of the folder decide the objective
    assert main(["export", str(run), str(out)]) == 0

    reference, told = transformers.AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert type(reference) is transformers.BertForMaskedLM
    assert not any(told.values()), told
    model, params = bertgpt.load_pretrained(out)
    inputs = dict(transformers.AutoTokenizer.from_pretrained(out)(["abc de fgh", "i j"], padding=True))
    inputs = {name: np.array(value) for name, value in inputs.items()}
    ours = model.apply({"params": params}, **inputs).mlm_logits
    with torch.no_grad():
        logits = reference.eval()(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.numpy()
    real = inputs["attention_mask"].astype(bool)
    assert measured("continued", "logits", float(abs(ours - logits)[real].max())) <= 1e-5
    before = transformers.AutoModelForMaskedLM.from_pretrained(theirs)
    new, old = (torch.cat([p.flatten() for p in each.parameters()]) for each in (reference, before))
    assert (new != old).float().mean() > 0.8  # it was trained
