"""Small models, and their folders changed on disk, for the tests of loading and saving."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import to_bytes
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

import bertgpt
from bertgpt.checkpoints import hf_mapping
from bertgpt.model.inputs import takes_choices

TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_positions": 32, "vocab_size": 64, "num_labels": 3}
BERT = bertgpt.presets.bert_tiny(**TINY, mlp_size=32, labels=("no", "maybe", "yes"))
GPT = bertgpt.presets.gpt1(**TINY, mlp_size=64, classifier_dropout=0.2)
FAMILY = {name: family for family in hf_mapping.FAMILIES.values() for name in family.architectures}


def make(name, seed=0):
    """A model with parameters that are all different."""
    model = getattr(bertgpt, name)(BERT if name.startswith("Bert") else GPT)
    ids = jnp.zeros((1, 1, 2) if takes_choices(name) else (1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids)["params"]
    rng = np.random.default_rng(seed)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def rewrite(folder, change):
    """Passes a folder's tensors through a function."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)


def change_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def to_flax(tensors):
    """The tree that transformers 4's Flax classes save for these tensors of torch's."""
    flat = {}
    for name, value in tensors.items():
        *module, leaf = name.split(".")
        if leaf == "weight":
            leaf = "scale" if module[-1] == "LayerNorm" else "embedding" if "_embeddings" in module[-1] else "kernel"
        flat["/".join([*module, leaf])] = value.T if leaf == "kernel" else value
    return flat


def write_flax(folder, shards=1):
    """Replaces a folder's model.safetensors by flax_model.msgpack, or by this number of shards and their index."""
    flat = to_flax(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    if shards == 1:
        (folder / "flax_model.msgpack").write_bytes(to_bytes(unflatten_dict(flat, sep="/")))
        return
    names = [f"flax_model-{number:05}-of-{shards:05}.msgpack" for number in range(1, shards + 1)]
    weight_map = {name: names[number % shards] for number, name in enumerate(flat)}
    for shard in names:
        part = {name: value for name, value in flat.items() if weight_map[name] == shard}
        (folder / shard).write_bytes(to_bytes(unflatten_dict(part, sep="/")))
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map}))
