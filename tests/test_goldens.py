"""What Hugging Face computed is what this library computes.

tests/parity/make_goldens.py froze the outputs of torch's classes, make_flax_goldens.py those of Flax's.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import bertgpt
from bertgpt import losses
from bertgpt.checkpoints import hf_mapping, parameters

GOLDENS = Path(__file__).parent / "goldens"
ARCHITECTURES = [name for family in hf_mapping.FAMILIES.values() for name in family.architectures]
FLAX = [f"flax/{folder.name}" for folder in sorted((GOLDENS / "flax").iterdir())]
FIELDS = {  # theirs to ours, where the names differ
    "prediction_logits": "mlm_logits",
    "seq_relationship_logits": "nsp_logits",
    ("BertForMaskedLM", "logits"): "mlm_logits",
    ("BertForNextSentencePrediction", "logits"): "nsp_logits",
    ("BertForMultipleChoice", "logits"): "mc_logits",
}


def expected(name: str, kind: str) -> dict[str, np.ndarray]:
    """What stands under `kind/` in a golden file."""
    arrays = load_file(GOLDENS / name / "expected.safetensors")
    return {key.removeprefix(f"{kind}/"): value for key, value in arrays.items() if key.startswith(f"{kind}/")}


def inputs(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in expected(name, "input").items() if "label" not in key}


def real(value: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What stands at real positions, if there are positions."""
    flat = mask.reshape(-1, mask.shape[-1]).astype(bool)
    if value.ndim < 2 or (value.shape[: mask.ndim] != mask.shape and value.shape[:2] != flat.shape):
        return value
    return value.reshape(*flat.shape, -1)[flat]


@pytest.mark.parametrize("name", [*ARCHITECTURES, *FLAX])
def test_outputs(name):
    model, params = bertgpt.load_pretrained(GOLDENS / name)
    (architecture,) = json.loads((GOLDENS / name / "config.json").read_text())["architectures"]
    assert type(model).__name__ == architecture
    output = jax.jit(lambda p, x: model.apply({"params": p}, **x, output_hidden_states=True))(params, inputs(name))
    mask = inputs(name)["attention_mask"]
    wanted = expected(name, "output")
    assert {"hidden_states/0", "hidden_states/1", "hidden_states/2"} <= wanted.keys()
    for key, value in wanted.items():
        field, _, layer = key.partition("/")
        found = getattr(output, FIELDS.get((architecture, field), FIELDS.get(field, field)))
        found = np.asarray(found[int(layer)] if layer else found).reshape(value.shape)
        np.testing.assert_allclose(real(found, mask), real(value, mask), rtol=0, atol=1e-5, err_msg=key)


def bert_loss(output, given):
    """Theirs is a mean over positions whose label is not -100, plus next sentence's."""
    labels, mask = np.maximum(given["labels"], 0), given["labels"] >= 0
    pair = given["next_sentence_label"]
    nsp = losses.cross_entropy(output.nsp_logits, pair, np.ones(pair.shape))
    return losses.cross_entropy(output.mlm_logits, labels, mask).mean() + nsp.mean()


def gpt_loss(output, given):
    """Theirs shifts the labels by one."""
    labels, mask = np.maximum(given["labels"], 0)[:, 1:], given["labels"][:, 1:] >= 0
    return losses.cross_entropy(output.logits[:, :-1], labels, mask).mean()


def test_there_are_goldens_of_every_flax_class():
    names = {f"flax/{name}" for name in hf_mapping.FAMILIES["bert"].architectures}
    assert names | {"flax/sharded", "flax/bfloat16", "flax/float16"} == set(FLAX)


@pytest.mark.parametrize(
    ("name", "loss"), [("BertForPreTraining", bert_loss), ("OpenAIGPTLMHeadModel", gpt_loss)], ids=["bert", "gpt"]
)
def test_gradients_and_ten_updates(name, loss):
    model, params = bertgpt.load_pretrained(GOLDENS / name)
    given = {key: jnp.asarray(value) for key, value in expected(name, "input").items()}
    step = jax.jit(jax.value_and_grad(lambda p: loss(model.apply({"params": p}, **inputs(name)), given)))
    family = hf_mapping.FAMILIES[hf_mapping.family_of(name)]
    gradients = parameters.to_hf_tensors(family, name, model, step(params)[1])
    wanted = expected(name, "gradient")
    assert gradients.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(gradients[key], value, rtol=1e-4, atol=1e-6, err_msg=key)
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    state, curve = optimizer.init(params), []
    for _ in range(10):
        value, grads = step(params)
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        curve.append(float(value))
    np.testing.assert_allclose(curve, load_file(GOLDENS / name / "expected.safetensors")["losses"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["uncased", "cased", "Chinese", "accents_kept", "gpt"])
def test_tokenizers(name):
    tokenizer = bertgpt.load_tokenizer(GOLDENS / "tokenizers" / name)
    cases = json.loads((GOLDENS / "tokenizers" / name / "expected.json").read_text(encoding="utf-8"))
    assert len(cases) > 8
    for case in cases:
        encoding = tokenizer.encode(case["text"])
        assert encoding.ids == case["ids"], case["text"]
        if name != "gpt":
            assert [list(offset) for offset in encoding.offsets] == case["offsets"], case["text"]


def test_the_golden_files_are_small():
    assert sum(file.stat().st_size for file in GOLDENS.rglob("*")) < 1_000_000
