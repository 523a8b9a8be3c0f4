"""Weights files: floats of every kind, shards, damage, and indices that lie."""

import itertools
import json
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from model_folders import assert_equal, make, rewrite
from safetensors.numpy import load_file

import bertgpt
from bertgpt.errors import InputError


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_are_read_to_float32(saved, dtype):
    folder, _, params = saved("BertModel")
    rewrite(folder, lambda tensors: {key: value.astype(dtype) for key, value in tensors.items()})
    found = bertgpt.load_pretrained(folder)[1]
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert_equal(found, jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(dtype).astype(np.float32)), params))


def test_shards_are_written_and_read(tmp_path):
    model, params = make("BertForPreTraining")
    bertgpt.save_pretrained(tmp_path / "out", model, params, shard_bytes=3000)
    shards = sorted(file.name for file in (tmp_path / "out").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(shards) > 3
    assert set(index["weight_map"].values()) == set(shards)
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    sizes = [sum(x.nbytes for x in load_file(tmp_path / "out" / shard).values()) for shard in shards]
    assert index["metadata"]["total_size"] == sum(sizes) == 4 * sum(x.size for x in jax.tree.leaves(params))
    assert max(sizes) <= 4096  # the largest array, which has a shard of its own
    assert all(first + second > 3000 for first, second in itertools.pairwise(sizes))  # none that would fit together
    assert_equal(bertgpt.load_pretrained(tmp_path / "out")[1], params)


def test_files_are_sharded_above_5_gb():
    assert bertgpt.save_pretrained.__kwdefaults__["shard_bytes"] == 5_000_000_000


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_is_named(saved, keep):
    folder, _, _ = saved("BertModel")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors: damaged or truncated"):
        bertgpt.load_pretrained(folder)


def test_a_header_that_lies_about_its_size_is_refused_before_anything_is_allocated(saved):
    folder, _, _ = saved("BertModel")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=r"model\.safetensors: damaged or truncated"):
        bertgpt.load_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", "9" * 5000])
def test_a_configuration_that_is_no_json_object_is_named(saved, text):
    folder, _, _ = saved("BertModel")
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json: not"):
        bertgpt.load_pretrained(folder)


@pytest.mark.parametrize(
    "shard", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a" * 400]
)
def test_an_index_reaches_no_other_folder(saved, shard):
    folder, _, _ = saved("BertModel")
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"pooler.dense.bias": shard}}))
    with pytest.raises(InputError, match=r"index\.json: .* is outside the folder"):
        bertgpt.load_pretrained(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"weight_map": {"pooler.dense.bias": "gone.safetensors"}},
            "'gone.safetensors' is missing; copy the",
        ),
        ({"weight_map": {"unheard": "one.safetensors"}}, "lacks unheard, which model.safetensors.index.json lists"),
        ({"weight_map": ["one.safetensors"]}, "has no weight_map"),
        ({"weight_map": {"pooler.dense.bias": 1}}, "has no weight_map"),
        ({}, "has no weight_map"),
    ],
)
def test_an_index_that_does_not_hold_is_refused(saved, index, message):
    folder, _, _ = saved("BertModel")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError) as caught:
        bertgpt.load_pretrained(folder)
    assert message in str(caught.value)


def test_an_eight_bit_float_is_refused_by_name(saved):
    folder, _, _ = saved("BertModel")
    rewrite(folder, lambda tensors: tensors | {"pooler.dense.bias": np.zeros(16, ml_dtypes.float8_e4m3fn)})
    with pytest.raises(InputError, match=r"model\.safetensors: pooler\.dense\.bias has dtype F8_E4M3"):
        bertgpt.load_pretrained(folder)


def test_links_as_the_hubs_cache_has_them_are_followed(saved, tmp_path):
    folder, _, params = saved("BertModel")
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert_equal(bertgpt.load_pretrained(folder)[1], params)


def test_without_torch_its_file_is_told_how_to_convert(saved, monkeypatch):
    folder, _, _ = saved("BertModel")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pytorch_model\.bin: reading torch's format needs torch; install it, or"):
        bertgpt.load_pretrained(folder)
