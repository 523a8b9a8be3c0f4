"""OpenAI's release of GPT-1: its arrays in a row, its shapes, its vocabulary."""

import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bertgpt
from bertgpt.errors import InputError

CONFIG = bertgpt.presets.gpt1(
    hidden_size=128, num_layers=2, num_heads=2, mlp_size=512, max_positions=16, vocab_size=40, classifier_dropout=0.1
)
VOCABULARY = {"<unk>": 0, "l": 1, "o": 2, "w</w>": 3, "lo": 4, "low</w>": 5}


def block(p):
    """A block's arrays in the order in which train.py makes its variables; Conv1D weights are [1, in, out]."""
    attention, feed_forward = p["attention"], p["feed_forward"]
    joined = [np.concatenate([attention[n][k] for n in ("query", "key", "value")], -1) for k in ("kernel", "bias")]
    parts = [*joined, attention["out"]["kernel"], attention["out"]["bias"]]
    parts += [p["attention_norm"]["scale"], p["attention_norm"]["bias"]]
    parts += [feed_forward[n][k] for n in ("up", "down") for k in ("kernel", "bias")]
    parts += [p["feed_forward_norm"]["scale"], p["feed_forward_norm"]["bias"]]
    return [np.asarray(x)[None] if x.ndim == 2 else np.asarray(x) for x in parts]


@pytest.fixture
def release(tmp_path):
    """(folder, parameters): as OpenAI's model/ folder lies there."""
    model = bertgpt.OpenAIGPTLMHeadModel(CONFIG)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    transformer = params["transformer"]
    arrays = [transformer["position"]["embedding"], transformer["token"]["embedding"]]
    arrays += [x for layer in range(2) for x in block(transformer["stack"][f"block_{layer}"])]
    flat = np.concatenate([x.reshape(-1) for x in arrays])
    for number, part in enumerate(np.array_split(flat, 10)):
        np.save(tmp_path / f"params_{number}.npy", part)
    (tmp_path / "params_shapes.json").write_text(json.dumps([x.shape for x in arrays]))
    (tmp_path / "encoder_bpe_40000.json").write_text(json.dumps(VOCABULARY))
    (tmp_path / "vocab_40000.bpe").write_text("#version: 0.2\nl o\nlo w</w>\n")
    return tmp_path, params


def test_the_release_is_a_language_model(release):
    folder, params = release
    model, found = bertgpt.load_pretrained(folder)
    assert model == bertgpt.OpenAIGPTLMHeadModel(CONFIG)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_the_release_has_a_tokenizer(release):
    assert bertgpt.load_tokenizer(release[0]).encode("LOW lo").ids == [5, 1, 0]
    (release[0] / "vocab_40000.bpe").unlink()
    with pytest.raises(InputError, match=r"encoder_bpe_40000\.json: needs vocab_40000\.bpe in the same folder"):
        bertgpt.load_tokenizer(release[0])


def test_the_release_becomes_a_hugging_face_folder(release, tmp_path):
    folder, params = release
    bertgpt.save_pretrained(tmp_path / "out", *bertgpt.load_pretrained(folder), bertgpt.load_tokenizer(folder))
    jax.tree.map(np.testing.assert_array_equal, bertgpt.load_pretrained(tmp_path / "out")[1], params)
    assert bertgpt.load_tokenizer(tmp_path / "out").encode("LOW lo").ids == [5, 1, 0]


def change_shapes(folder, change):
    file = folder / "params_shapes.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shapes: shapes[:-1], "not the shapes of a GPT-1"),
        (lambda shapes: shapes[:2], "not the shapes of a GPT-1"),
        (lambda shapes: {}, "not the shapes of a GPT-1"),
        (lambda shapes: [[16, 64], *shapes[1:]], "not the shapes of a GPT-1"),
        (lambda shapes: ["a", *shapes[1:]], "'a' is not a shape"),
        (lambda shapes: [[-1, 128], *shapes[1:]], r"\[-1, 128\] is not a shape"),
        (lambda shapes: [*shapes[:-1], [10**12]], r"contain \d+ numbers, and params_shapes.json lists 1000000"),
        (lambda shapes: [*shapes[:-2], [127], [129]], r"ln_2.weight has shape \(127,\)"),
    ],
)
def test_shapes_that_are_not_gpts_are_refused(release, change, message):
    change_shapes(release[0], change)
    with pytest.raises(InputError, match=message):
        bertgpt.load_pretrained(release[0])


def test_parts_that_are_missing_or_damaged_are_named(release):
    folder = release[0]
    (folder / "params_9.npy").rename(folder / "kept")
    with pytest.raises(InputError, match="numbers, and params_shapes.json lists"):
        bertgpt.load_pretrained(folder)
    (folder / "params_9.npy").write_bytes((folder / "kept").read_bytes()[:200])
    with pytest.raises(InputError, match=r"params_9\.npy: missing, damaged or not a plain array"):
        bertgpt.load_pretrained(folder)
    np.save(folder / "params_9.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"params_9\.npy: missing, damaged or not a plain array"):
        bertgpt.load_pretrained(folder)
    np.save(folder / "params_9.npy", np.zeros(4, [("a", "f4")]))
    with pytest.raises(InputError, match=r"params_9\.npy: .*not floating-point"):
        bertgpt.load_pretrained(folder)
    with zipfile.ZipFile(folder / "params_9.npy", "w") as archive:
        archive.writestr("a.npy", b"")
    with pytest.raises(InputError, match=r"params_9\.npy: missing, damaged or not a plain array"):
        bertgpt.load_pretrained(folder)
    (folder / "params_9.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'shape': (((((((\n")
    with pytest.raises(InputError, match=r"params_9\.npy: missing, damaged or not a plain array"):
        bertgpt.load_pretrained(folder)
    (folder / "params_0.npy").unlink()
    with pytest.raises(InputError, match=r"params_0\.npy: no such file"):
        bertgpt.load_pretrained(folder)
