"""Checkpoints of google-research/bert: their outputs, what is read from a training folder, and damaged files."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import bertgpt

GOLDENS = Path(__file__).parent / "goldens" / "google"


def run(folder, name, architecture=None):
    """(model, {output: ours}, {output: TensorFlow's}, attention mask) for the inputs of a golden folder."""
    arrays = load_file(GOLDENS / name / "expected.safetensors")
    given = {key.removeprefix("input/"): value for key, value in arrays.items() if key.startswith("input/")}
    wanted = {key.removeprefix("output/"): value for key, value in arrays.items() if key.startswith("output/")}
    model, params = bertgpt.load_pretrained(folder, architecture)
    inputs = {key: given[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    masked = {"masked_positions": given["masked_positions"]} if "Pre" in type(model).__name__ else {}
    output = model.apply({"params": params}, **inputs, **masked, output_hidden_states=True)
    found = {f"hidden_states/{layer}": x for layer, x in enumerate(output.hidden_states)}
    found |= {field: getattr(output, field, None) for field in ("pooler_output", "logits", "start_logits", "end_logits")}
    if masked:
        found["mlm_log_probabilities"] = jax.nn.log_softmax(output.mlm_logits)
        found["nsp_log_probabilities"] = jax.nn.log_softmax(output.nsp_logits)
    return model, found, wanted, given["attention_mask"]


def largest_difference(found, wanted, mask):
    """At real positions."""
    assert wanted
    differences = []
    for key, value in wanted.items():
        real = mask.astype(bool) if value.shape[:2] == mask.shape else slice(None)
        differences.append(np.abs(np.asarray(found[key]).reshape(value.shape)[real] - value[real]).max())
    return max(differences)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("pretraining", "BertForPreTraining"),
        ("training", "BertForPreTraining"),
        ("classifier", "BertForSequenceClassification"),
        ("shards", "BertModel"),
    ],
)
def test_outputs_are_those_of_googles_code(name, architecture):
    model, found, wanted, mask = run(GOLDENS / name, name)
    assert type(model).__name__ == architecture
    assert largest_difference(found, wanted, mask) < 1e-5
