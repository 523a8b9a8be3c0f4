"""Writes tests/goldens/flax: what transformers 4's Flax classes save and compute for small random models.

transformers 5 has no Flax classes, so the script needs an environment of its own, with Python 3.11:

    python3.11 -m venv old
    old/bin/pip install transformers==4.38.2 flax==0.8.1 "jax[cpu]==0.4.25" "numpy<2" "scipy<1.13"
    old/bin/python tests/parity/make_flax_goldens.py

A folder per class has its config.json and flax_model.msgpack, and expected.safetensors: `input/NAME`, `output/NAME`
(hidden states as `output/hidden_states/LAYER`). Further folders have the same in shards, bfloat16 and float16; their
outputs are computed in float32 from the rounded weights.
"""

import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from safetensors.numpy import save_file

GOLDENS = Path(__file__).parent.parent / "goldens" / "flax"
ARCHITECTURES = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
VOCAB, LENGTH = 64, 12
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "initializer_range": 0.2,
}


def make_model(name: str) -> transformers.FlaxPreTrainedModel:
    """A model whose every parameter is far from its initial value."""
    labels = 2 if name == "BertForQuestionAnswering" else 3
    model = getattr(transformers, f"Flax{name}")(transformers.BertConfig(**SMALL, num_labels=labels), seed=0)
    rng = np.random.default_rng(0)
    model.params = jax.tree_util.tree_map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), model.params)
    return model


def make_inputs(name: str) -> dict[str, np.ndarray]:
    """Ids, padded on the right, with masks, segments and positions."""
    rng = np.random.default_rng(1)
    ids = rng.integers(1, VOCAB, (2, 3, LENGTH) if name == "BertForMultipleChoice" else (4, LENGTH))
    lengths = rng.integers(4, LENGTH, ids.shape[:-1])[..., None]
    mask = np.arange(LENGTH) < lengths
    positions = np.broadcast_to(np.arange(LENGTH) + 2, ids.shape)
    inputs = {"input_ids": np.where(mask, ids, 0), "attention_mask": mask, "position_ids": positions}
    inputs["token_type_ids"] = mask & (np.arange(LENGTH) > 5)
    return {key: np.ascontiguousarray(value, np.int32) for key, value in inputs.items()}


def write_model(name: str, folder: Path, dtype: str = "float32", shard: str = "10GB") -> None:
    model = make_model(name)
    rounded = jax.tree_util.tree_map(lambda x: x.astype(dtype), model.params)
    model.params = jax.tree_util.tree_map(lambda x: x.astype(jnp.float32), rounded)
    inputs = make_inputs(name)
    expected = {f"input/{key}": value for key, value in inputs.items()}
    with jax.default_matmul_precision("float32"):
        output = model(**inputs, output_hidden_states=True)
    for key, value in output.items():
        layers = {f"{key}/{layer}": x for layer, x in enumerate(value)} if isinstance(value, tuple) else {key: value}
        expected |= {f"output/{place}": np.array(x) for place, x in layers.items()}
    model.save_pretrained(folder, params=rounded, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for architecture in ARCHITECTURES:
        write_model(architecture, GOLDENS / architecture)
    write_model("BertForPreTraining", GOLDENS / "sharded", shard="4KB")
    write_model("BertForNextSentencePrediction", GOLDENS / "bfloat16", dtype="bfloat16")
    write_model("BertForNextSentencePrediction", GOLDENS / "float16", dtype="float16")
