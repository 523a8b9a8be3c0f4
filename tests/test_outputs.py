"""The fields of every class are those of docs/outputs.md, and attention probabilities are returned when asked for."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_folders import make

import bertgpt
from bertgpt.model.inputs import example_ids
from bertgpt.model.outputs import ModelOutput

PAGE = (Path(__file__).parent.parent / "docs" / "outputs.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
LOGITS = [name for name in dir(ModelOutput) if name.endswith("logits")]
AXES = {"B": 2, "T": 7, "C": 3, "V": 64, "2": 2, "num_labels": 3}


def test_the_table_lists_every_class():
    classes = {name for name in bertgpt.__all__ if hasattr(getattr(bertgpt, name), "init")}
    assert {name for name, *_ in TABLE} == classes


@pytest.mark.parametrize(("name", "theirs", "ours"), TABLE, ids=[name for name, *_ in TABLE])
def test_a_class_has_the_fields_of_the_table(name, theirs, ours):
    model, params = make(name)
    rows = jax.ShapeDtypeStruct((2, *([3] if example_ids(name).ndim == 3 else []), 7), jnp.int32)
    output = jax.eval_shape(lambda ids: model.apply({"params": params}, ids), rows)
    shapes = re.findall(r"`(\w+)` \[(.*?)\]", theirs)
    for field, axes in shapes:
        assert getattr(output, field).shape == tuple(AXES[axis] for axis in axes.split()), field
    named = {field for field, _ in shapes} | set(re.findall(r"`(\w+)`", ours))
    assert {field for field in LOGITS if getattr(output, field) is not None} == named
    for field, alias in zip([field for field, _ in shapes], re.findall(r"`(\w+)`", ours), strict=False):
        assert getattr(output, field) is getattr(output, alias)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("name", ["BertModel", "OpenAIGPTModel", "BertForMultipleChoice", "OpenAIGPTLMHeadModel"])
def test_attentions_are_the_probabilities_of_each_block(name, remat):
    model, params = make(name)
    shape = (2, 3, 7) if name == "BertForMultipleChoice" else (2, 7)
    ids = np.random.default_rng(0).integers(0, 64, shape)
    mask = np.ones(shape, np.int32)
    mask[..., 5:] = 0
    model = model.clone(remat=remat)
    output = model.apply({"params": params}, ids, mask, output_attentions=True)
    assert len(output.attentions) == model.config.num_layers
    for probabilities in output.attentions:
        assert probabilities.shape == (np.prod(shape[:-1]), model.config.num_heads, 7, 7)
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
        assert not probabilities[..., :5, 5:].any()
        assert np.triu(probabilities[0, 0], 1).any() != name.startswith("OpenAI")
    plain = model.apply({"params": params}, ids, mask)
    assert plain.attentions is None
    np.testing.assert_array_equal(plain.last_hidden_state, output.last_hidden_state)
