"""Writes tests/goldens/google: checkpoints and outputs of google-research/bert, computed by TensorFlow.

    python -m venv /tmp/google
    /tmp/google/bin/pip install tensorflow-cpu==2.21.0 tf-keras==2.21.0 safetensors six
    /tmp/google/bin/pip install --no-deps bert-tensorflow==1.0.4
    /tmp/google/bin/python tests/parity/make_google_goldens.py

bert-tensorflow is Google's package of that code. Every folder contains bert_config.json, a checkpoint of small random
weights, and expected.safetensors: `input/NAME` and `output/NAME`. TensorFlow 2 has no tf.contrib, so its layer_norm is
replaced. The GELU is the one of the releases of 2018 (erf), except in `squad`, which keeps today's (tanh). `kinds` has
variables of many kinds, and no model.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
import tensorflow.compat.v1 as tf

FOLDER = Path(__file__).parent.parent / "goldens" / "google"
CONFIG = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 8,
    "initializer_range": 0.02,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 32,
}
LENGTH = 12
WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "a", "b", "c", "d", "e", "i", "s", "t", "##s", "##ing"),
    *("the", "cat", "dog", "sat", "on", "mat", "and", "is", "it", "was", "film", "fine", "dull", "not", "of"),
)
STEPS = 2  # of `training`


def layer_norm(inputs, begin_norm_axis, begin_params_axis, scope=None):
    """tf.contrib.layers.layer_norm, with its names and its epsilon."""
    with tf.variable_scope(scope, "LayerNorm"):
        shape = inputs.shape[begin_params_axis:]
        beta = tf.get_variable("beta", shape, initializer=tf.zeros_initializer())
        gamma = tf.get_variable("gamma", shape, initializer=tf.ones_initializer())
        mean, variance = tf.nn.moments(inputs, [inputs.shape.ndims + begin_norm_axis], keep_dims=True)
        return tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, 1e-12)


def google(name):
    """A module of Google's code."""
    layers = types.ModuleType("tensorflow.contrib.layers")
    layers.layer_norm = layer_norm
    contrib = types.ModuleType("tensorflow.contrib")
    contrib.layers = layers
    sys.modules |= {"tensorflow.contrib": contrib, "tensorflow.contrib.layers": layers}
    return importlib.import_module(f"bert.{name}")


def erf_gelu(x):
    """The GELU of Google's code before 2019-02."""
    return x * 0.5 * (1.0 + tf.erf(x / tf.sqrt(2.0)))


def inputs():
    """Ids, mask and segments [4 12]; positions and labels of masked tokens [4 3]; a label for each row."""
    rng = np.random.default_rng(1)
    ids = rng.integers(5, len(WORDS), (4, LENGTH))
    mask = np.arange(LENGTH) < np.array([12, 7, 9, 5])[:, None]
    arrays = {
        "input_ids": np.where(mask, ids, 0),
        "attention_mask": mask,
        "token_type_ids": mask & (np.arange(LENGTH) > 3),
        "masked_positions": np.array([[1, 3, 9], [2, 3, 6], [1, 5, 8], [1, 2, 4]]),
        "labels": rng.integers(0, len(WORDS), (4, 3)),
        "row_labels": np.array([0, 1, 1, 0]),
    }
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def encoder(batch, config):
    """Google's model and its outputs."""
    features = (batch[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
    model = google("modeling").BertModel(config, False, *features)
    states = [model.get_embedding_output(), *model.get_all_encoder_layers()]
    return model, {f"hidden_states/{i}": x for i, x in enumerate(states)} | {"pooler_output": model.get_pooled_output()}


def pretraining(batch, config):
    """run_pretraining's two heads: the loss, and log probabilities as outputs."""
    code = google("run_pretraining")
    model, outputs = encoder(batch, config)
    positions, labels = batch["masked_positions"], batch["labels"]
    weights = tf.ones(labels.shape)
    table, states = model.get_embedding_table(), model.get_sequence_output()
    mlm, _, tokens = code.get_masked_lm_output(config, states, table, positions, labels, weights)
    nsp, _, pairs = code.get_next_sentence_output(config, model.get_pooled_output(), batch["row_labels"])
    shape = (*batch["labels"].shape, config.vocab_size)
    return mlm + nsp, outputs | {"mlm_log_probabilities": tf.reshape(tokens, shape), "nsp_log_probabilities": pairs}


def classifier(batch, config):
    """run_classifier's logits of three classes."""
    features = (batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "row_labels"))
    loss, _, logits, _ = google("run_classifier").create_model(config, False, *features, 3, False)
    return loss, {"logits": logits}


def squad(batch, config):
    """run_squad's logits of starts and ends."""
    features = (batch[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
    start, end = google("run_squad").create_model(config, False, *features, False)
    return None, {"start_logits": start, "end_logits": end}


def shards(batch, config):
    """The encoder alone, its variables on two devices."""
    count = iter(range(1000))
    with tf.device(lambda op: f"/cpu:{next(count) % 2}" if op.type in ("VariableV2", "VarHandleOp") else op.device):
        return None, encoder(batch, config)[1]


MODELS = {  # name -> what makes it, the checkpoint's name
    "pretraining": (pretraining, "bert_model.ckpt"),
    "training": (pretraining, "model.ckpt"),
    "classifier": (classifier, "model.ckpt"),
    "squad": (squad, "model.ckpt"),
    "shards": (shards, "bert_model.ckpt"),
}


def randomize(session):
    """Gives every variable values that show in the outputs."""
    rng = np.random.default_rng(2)
    for variable in sorted(tf.trainable_variables(), key=lambda variable: variable.name):
        noise = rng.normal(size=variable.shape).astype(np.float32) * 0.3
        variable.load(noise + ("gamma" in variable.name), session)


def write(name):
    make, checkpoint = MODELS[name]
    folder = FOLDER / name
    folder.mkdir(parents=True)
    (folder / "bert_config.json").write_text(json.dumps(CONFIG, indent=2, sort_keys=True) + "\n")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    if name != "squad":
        google("modeling").gelu = erf_gelu
    batch = inputs()
    tf.disable_eager_execution()
    tf.disable_v2_tensorshape()  # run_classifier and run_squad read `.value` of a size
    tf.set_random_seed(0)
    config = google("modeling").BertConfig.from_dict(CONFIG)
    loss, outputs = make({key: tf.constant(value) for key, value in batch.items()}, config)
    step = google("optimization").create_optimizer(loss, 1e-2, 100, 0, False) if name == "training" else None
    saver = tf.train.Saver(sharded=name == "shards", max_to_keep=2, save_relative_paths=True)  # as the Estimator does
    with tf.Session(config=tf.ConfigProto(device_count={"CPU": 2})) as session:
        session.run(tf.global_variables_initializer())
        randomize(session)
        numbered = checkpoint == "model.ckpt"
        for number in range(STEPS + 1 if step is not None else 1):
            saver.save(session, str(folder / checkpoint), number if numbered else None, write_meta_graph=False)
            found = session.run(outputs)
            if step is not None:
                session.run(step)
    expected = {f"input/{key}": value for key, value in batch.items()}
    save_file(expected | {f"output/{key}": value for key, value in found.items()}, folder / "expected.safetensors")
    if not numbered:
        (folder / "checkpoint").unlink()  # a release has none


def write_kinds():
    """Variables of every kind that a reader meets."""
    folder = FOLDER / "kinds"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    arrays = {kind: rng.normal(size=(2, 3)).astype(kind) for kind in ("float64", "float32", "float16")}
    arrays |= {f"{'deep/' * (number % 9)}variable_{number}": np.float32([number]) for number in range(20)}
    tf.disable_eager_execution()
    for name, array in arrays.items():
        tf.get_variable(name, initializer=array)
    tf.get_variable("bfloat16", initializer=tf.cast(arrays["float32"], tf.bfloat16))
    tf.get_variable("int64", initializer=np.arange(3))
    tf.get_variable("string", initializer=np.array(["a", "b"], object))
    halves = tf.fixed_size_partitioner(2)
    tf.get_variable("partitioned", initializer=tf.constant(np.ones((4, 2), np.float32)), partitioner=halves)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(folder / "kinds.ckpt"), write_meta_graph=False, write_state=False)
    save_file(arrays, folder / "expected.safetensors")


if __name__ == "__main__":
    if sys.argv[1:] == ["kinds"]:
        write_kinds()
    elif sys.argv[1:]:
        write(sys.argv[1])
    else:
        shutil.rmtree(FOLDER, ignore_errors=True)
        for name in (*MODELS, "kinds"):  # each in a process: Google's scripts define the same flags
            subprocess.run([sys.executable, __file__, name], check=True)
