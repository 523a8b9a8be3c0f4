"""Writes tests/goldens: what Hugging Face computes for small random models and texts, frozen for tests without torch.

    python tests/parity/make_goldens.py

A folder an architecture has their config.json and model.safetensors, and expected.safetensors: `input/NAME`,
`output/NAME` (hidden states as `output/hidden_states/LAYER`), and for the two pretraining models `gradient/THEIR_NAME`
of `loss` for `input/labels` (and `input/next_sentence_label`), with `losses`, those of 10 updates by torch's AdamW. A
folder a tokenizer has their vocabulary and expected.json: texts with ids and offsets.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from reference import ARCHITECTURES, LENGTH, VOCAB, make_inputs, make_reference, to_torch
from safetensors.numpy import save_file
from test_tokenizers import ODD, SETTINGS, TEXTS

from bertgpt.tokenizers import export_tokenizer, train_bpe, train_wordpiece

GOLDENS = Path(__file__).parent.parent / "goldens"
SMALL = {
    "Bert": {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 16, "max_position_embeddings": 16},
    "Open": {"n_embd": 8, "n_layer": 2, "n_positions": 16},
}
LEARNING_RATE, UPDATES = 1e-2, 10


def labels(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Labels at about half of the real positions, -100 elsewhere."""
    rng = np.random.default_rng(2)
    chosen = (rng.random((4, LENGTH)) < 0.5) & (inputs["attention_mask"] > 0)
    result = {"labels": np.where(chosen, rng.integers(0, VOCAB, (4, LENGTH)), -100)}
    return result | ({"next_sentence_label": np.array([0, 1, 1, 0])} if name == "BertForPreTraining" else {})


def training(name: str, reference: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The loss, its gradients, and the losses of some updates, all on one batch."""
    batch = {key: torch.tensor(value) for key, value in inputs.items()}
    optimizer = torch.optim.AdamW(reference.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    losses, result = [], {}
    for update in range(UPDATES):
        optimizer.zero_grad()
        loss = reference(**batch).loss
        loss.backward()
        losses.append(loss.item())
        if update == 0:
            result = {f"gradient/{key}": value.grad.numpy().copy() for key, value in reference.named_parameters()}
        optimizer.step()
    return result | {"losses": np.array(losses, np.float32)}


def write_model(name: str) -> None:
    folder = GOLDENS / name
    reference = make_reference(name, **SMALL[name[:4]])
    reference.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    inputs = make_inputs(name, "right padding")
    pretraining = name in ("BertForPreTraining", "OpenAIGPTLMHeadModel")
    expected = {f"input/{key}": value.astype(np.int32) for key, value in inputs.items()}
    with torch.no_grad():
        output = reference(**to_torch(name, inputs), output_hidden_states=True)
    for key, value in output.items():
        layers = {f"{key}/{layer}": x for layer, x in enumerate(value)} if isinstance(value, tuple) else {key: value}
        expected |= {f"output/{place}": x.numpy().copy() for place, x in layers.items()}
    if pretraining:
        inputs |= labels(name, inputs)
        expected |= {f"input/{key}": value.astype(np.int32) for key, value in inputs.items()}
        expected |= training(name, reference, inputs)
    save_file(expected, folder / "expected.safetensors")


def write_tokenizer(name: str) -> None:
    folder = GOLDENS / "tokenizers" / name.split(",")[0].replace(" ", "_")
    folder.mkdir(parents=True)
    bpe = name == "gpt"
    tokenizer = train_bpe(TEXTS * 3, 400) if bpe else train_wordpiece(TEXTS * 3, 420, lowercase=False)
    export_tokenizer(tokenizer, folder, 512)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    kind = transformers.OpenAIGPTTokenizer if bpe else transformers.BertTokenizer
    theirs = kind.from_pretrained(folder, **({} if bpe else SETTINGS[name]))
    if not bpe:
        (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS[name]) + "\n", encoding="utf-8")
    cases = []
    for text in (*TEXTS, ODD, "", "a" * 101, "[MASK] x[SEP]y"):
        encoding = theirs(text, return_offsets_mapping=True)
        cases.append({"text": text, "ids": encoding["input_ids"], "offsets": encoding["offset_mapping"]})
    (folder / "expected.json").write_text(json.dumps(cases) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for folder in (*ARCHITECTURES, "tokenizers"):
        shutil.rmtree(GOLDENS / folder, ignore_errors=True)
    for architecture in ARCHITECTURES:
        write_model(architecture)
    for setting in (*SETTINGS, "gpt"):
        write_tokenizer(setting)
