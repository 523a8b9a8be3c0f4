"""flax_model.msgpack: what flax writes is read, and anything else is refused in one line before memory is taken."""

import json
import shutil
import tracemalloc
from pathlib import Path

import flax.serialization
import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from model_folders import FAMILY, assert_equal, change_config, make, to_flax, write_flax
from safetensors.numpy import load_file

import bertgpt
from bertgpt.checkpoints.formats.flax_msgpack import open_flax
from bertgpt.errors import InputError
from train.__main__ import main

GOLDENS = Path(__file__).parent / "goldens" / "flax"
FILE = "flax_model.msgpack"
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 32, "max_positions": 32, "vocab_size": 200}


@pytest.fixture
def written(saved):
    """name -> (folder, params), with the weights as flax writes them."""

    def write(name, shards=1):
        folder, _, params = saved(name)
        write_flax(folder, shards)
        return folder, params

    return write


def refusal(folder) -> str:
    with pytest.raises(InputError) as caught:
        bertgpt.load_pretrained(folder)
    return str(caught.value)


def put(folder, content) -> str:
    """The message for a file with these bytes, or with these values packed."""
    raw = content if isinstance(content, bytes) else msgpack.packb(content)
    (folder / FILE).write_bytes(raw)
    return refusal(folder)


def packed(shape=(2,), dtype="float32", data=bytes(8), code=1, more=()) -> msgpack.ExtType:
    """An array as flax packs it."""
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data, *more)))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", [name for name in FAMILY if name.startswith("Bert")])
def test_what_flax_writes_is_read(written, name, shards):
    folder, params = written(name, shards)
    model, found = bertgpt.load_pretrained(folder)
    assert type(model).__name__ == name
    assert_equal(found, params)


def test_the_trees_of_these_tests_are_those_of_transformers_classes(tmp_path):
    for name in ("BertModel", "BertForPreTraining", "BertForQuestionAnswering"):
        theirs = flax.serialization.msgpack_restore((GOLDENS / name / FILE).read_bytes())
        bertgpt.save_pretrained(tmp_path, *bertgpt.load_pretrained(GOLDENS / name))
        ours = to_flax(load_file(tmp_path / "model.safetensors"))
        assert flatten_dict(theirs, sep="/").keys() == ours.keys()


ARRAYS = st.tuples(
    array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=7),
    st.sampled_from([np.float16, np.float32, np.float64, ml_dtypes.bfloat16]),
)
TREES = st.dictionaries(st.text("ab_0é", min_size=1, max_size=40), ARRAYS, max_size=6)


@given(tree=TREES, chunk=st.sampled_from([20, 300, 2**30]))
def test_every_tree_of_floats_is_read_as_flax_reads_it(tmp_path_factory, tree, chunk):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(dtype) for name, (shape, dtype) in tree.items()}
    file = tmp_path_factory.mktemp("tree") / FILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flax.serialization, "MAX_CHUNK_SIZE", chunk)
        file.write_bytes(flax.serialization.msgpack_serialize({"a": {"b": dict(arrays)}}))
    found = open_flax(file)
    assert found.keys() == {f"a.b.{name}" for name in arrays}
    for name, value in arrays.items():
        assert found[f"a.b.{name}"].shape == value.shape
        assert found[f"a.b.{name}"].read().dtype == np.float32
        np.testing.assert_array_equal(found[f"a.b.{name}"].read(), value.astype(np.float32))


def test_kernels_are_transposed_and_leaves_renamed(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {"d": {"kernel": kernel, "bias": kernel[0]}, "n": {"scale": kernel[1]}, "e": {"embedding": kernel}}
    (tmp_path / FILE).write_bytes(flax.serialization.to_bytes(tree))
    found = {name: tensor.read() for name, tensor in open_flax(tmp_path / FILE).items()}
    expected = {"d.weight": kernel.T, "d.bias": kernel[0], "n.weight": kernel[1], "e.weight": kernel}
    assert_equal(found, expected)


def test_values_are_read_when_they_are_asked_for(written):
    folder, _ = written("BertModel")
    raw = (folder / FILE).read_bytes()
    tensors = open_flax(folder / FILE)
    data = bytes(bertgpt.load_pretrained(folder)[1]["pooler"]["bias"].tobytes())
    with (folder / FILE).open("r+b") as file:  # in the same place on disk
        file.seek(raw.index(data))
        file.write(bytes(len(data)))
    assert not tensors["pooler.dense.bias"].read().any()


def test_the_first_layout_is_read(written, monkeypatch):
    folder, params = written("BertModel")
    (folder / "pytorch_model.bin").write_bytes(b"not read, and needs torch")
    assert_equal(bertgpt.load_pretrained(folder)[1], params)
    model, other = make("BertModel", seed=1)
    bertgpt.save_pretrained(folder.parent / "other", model, other)
    shutil.copy(folder.parent / "other" / "model.safetensors", folder)
    assert_equal(bertgpt.load_pretrained(folder)[1], other)


def test_an_export_over_it_removes_it(written):
    folder, _ = written("BertModel", 2)
    (folder / FILE).write_bytes(b"")
    model, params = make("BertModel", seed=1)
    bertgpt.save_pretrained(folder, model, params)
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_a_file_that_is_cut_short_is_refused_wherever_it_ends(tmp_path):
    whole = (GOLDENS / "bfloat16" / FILE).read_bytes()
    for size in (*range(0, len(whole), 7), *range(len(whole) - 7, len(whole))):
        (tmp_path / FILE).write_bytes(whole[:size])
        with pytest.raises(
            InputError, match=r"flax_model\.msgpack: damaged, or not a tree of arrays that flax wrote: "
        ):
            open_flax(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="1 bytes follow after its end; copy it again"):
        open_flax(tmp_path / FILE)


CHUNKED = "__msgpack_chunked_array__"
ONES = {str(axis): 1 for axis in range(9)}
NUMBERED = {"0": packed(), "1": packed()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot mmap an empty file"),
        ([1], "before byte 1 it contains list where flax writes map"),
        ({1: packed()}, "it contains number where flax writes text"),
        ({"a": 1}, "a is no array"),
        ({"a": "b"}, "a is no array and no map"),
        ({"a": [packed()]}, "a is no array and no map"),
        ({"a": 1.5}, "byte 3 begins a value that no array has"),
        ({"a": None}, "byte 3 begins a value that no array has"),
        ({"a": -1}, "byte 3 begins a value that no array has"),
        ({"a/b": packed()}, "or a / in this name"),
        (b"\x82\xa1a\x80\xa1a\x80", "it contains a twice"),
        ({"a": packed(code=2)}, "extension type 2"),
        ({"a": packed(code=3)}, "extension type 3"),
        ({"a": packed(more=[1])}, "an array has 4 parts and 1 axes"),
        ({"a": packed(shape=[1] * 9)}, "an array has 3 parts and 9 axes"),
        ({"a": packed(shape=[-2])}, "begins a value that no array has"),
        ({"a": packed(shape=[2.0])}, "begins a value that no array has"),
        ({"a": packed(shape=[[2]])}, "it contains list where flax writes number"),
        ({"a": packed(shape=[3])}, "an array of shape (3,) and dtype float32 has 8 bytes"),
        ({"a": packed(shape=[2**63])}, "an array of shape (9223372036854775808,) and dtype float32 has 8 bytes"),
        ({"a": packed(shape=[2**63, 0, 2**63], data=b"")}, "has 0 bytes"),
        ({"a": packed(dtype="float64")}, "an array of shape (2,) and dtype float64 has 8 bytes"),
        ({"a": msgpack.ExtType(1, packed().data + b"\0")}, "1 bytes follow after its end"),
        ({"a": msgpack.ExtType(1, packed().data[:-1])}, "it ends at byte 20, within a value"),
        ({"n" * 101: packed()}, "a name has 101 bytes, over 100"),
        (b"\x81\xa1\xff\x80", "invalid start byte"),
        ({str(number): {} for number in range(20_001)}, "it has over 20000 names"),
        (b"\x81\xa1a" * 17 + b"\x80", "over 16 levels"),
        (
            b"\x81\xa1a\xdd\x00\x10\x00\x00" + b"\xdd\x00\x10\x00\x00" * 1000,
            "a is no array and no map",
        ),  # 8 GiB for msgpack
        (b"\xdf\xff\xff\xff\xff", "it has over 20000 names"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "it ends at byte 9, within a value"),
        ({"a": {CHUNKED: True}}, "an array in chunks lacks its shape or its chunks"),
        ({"a": {CHUNKED: True, "shape": {"0": 4}, "chunks": {"1": packed()}}}, "lacks its shape or its chunks"),
        ({"a": {CHUNKED: True, "shape": {"0": packed()}, "chunks": NUMBERED}}, "lacks its shape or its chunks"),
        ({"a": {CHUNKED: True, "shape": {"0": 4}, "chunks": {"0": 4}}}, "lacks its shape or its chunks"),
        ({"a": {CHUNKED: True, "shape": {"0": 4}, "chunks": {}}}, "do not have one dtype"),
        (
            {"a": {CHUNKED: True, "shape": ONES, "chunks": {"0": packed([1], data=bytes(4))}}},
            "an array has 9 axes, over 8",
        ),
        ({"a": {CHUNKED: True, "shape": {"0": 5}, "chunks": NUMBERED}}, "shape (5,) and dtype float32 has 16 bytes"),
        (
            {"a": {CHUNKED: True, "shape": {"0": 4}, "chunks": NUMBERED | {"1": packed([4], "float16")}}},
            "do not have one dtype",
        ),
    ],
)
def test_what_flax_does_not_write_is_refused(written, content, message):
    found = put(written("BertModel")[0], content)
    assert message in found
    assert found.endswith("; copy it again")
    assert "flax_model.msgpack: damaged, or not a tree of arrays that flax wrote: " in found


def test_one_tensor_under_two_names_is_refused(written):
    folder, _ = written("BertModel")
    assert "contains a.weight twice; remove one" in put(folder, {"a": {"kernel": packed(), "scale": packed()}})
    assert "contains a.b twice" in put(folder, {"a": {"b": packed()}, "a.b": packed()})


def test_arrays_of_whole_numbers_are_refused_only_where_they_are_needed(written):
    folder, params = written("BertModel")
    tree = flax.serialization.msgpack_restore((folder / FILE).read_bytes())
    tree["embeddings"]["position_ids"] = np.arange(8)
    (folder / FILE).write_bytes(flax.serialization.to_bytes(tree))
    assert_equal(bertgpt.load_pretrained(folder)[1], params)
    for dtype in (np.int32, bool, np.complex64):
        tree["pooler"]["dense"]["bias"] = np.zeros(16, dtype)
        (folder / FILE).write_bytes(flax.serialization.to_bytes(tree))
        assert f"{FILE}: pooler/dense/bias has dtype {np.dtype(dtype)}; it must be one of float64" in refusal(folder)


def test_another_models_file_is_refused(written):
    folder, _ = written("BertForMaskedLM")
    tree = flax.serialization.msgpack_restore((folder / FILE).read_bytes())
    (folder / FILE).write_bytes(flax.serialization.to_bytes({"roberta": tree["bert"], "lm_head": tree["cls"]}))
    assert "a BertForMaskedLM lacks bert.embeddings.word_embeddings.weight, " in refusal(folder)
    change_config(folder, model_type="roberta")
    assert "config.json: model_type 'roberta' is not supported" in refusal(folder)


def test_a_configuration_that_does_not_belong_to_it_is_refused(written):
    folder, _ = written("BertForMaskedLM")
    change_config(folder, num_hidden_layers=3)
    assert "needs 3 layers, more than the folder has tensors for" in refusal(folder)
    change_config(folder, num_hidden_layers=2, intermediate_size=33)
    found = refusal(folder)
    assert "intermediate.dense.weight has shape (32, 16), and a BertForMaskedLM needs (33, 16)" in found


def test_the_causal_class_is_refused(written):
    folder, _ = written("BertForMaskedLM")  # FlaxBertForCausalLM's tree
    change_config(folder, architectures=["BertForCausalLM"], is_decoder=True)
    assert "architecture 'BertForCausalLM' is unknown; choose one of BertModel, " in refusal(folder)
    with pytest.raises(InputError, match="is_decoder True is not supported; it must be False"):
        bertgpt.load_pretrained(folder, "BertForMaskedLM")


def test_shards_that_are_missing_or_outside_the_folder_are_refused(written, tmp_path):
    folder, _ = written("BertModel", 2)
    index = folder / "flax_model.msgpack.index.json"
    found = json.loads(index.read_text())["weight_map"]
    for shard in ("../other.msgpack", "/etc/passwd", "a/b.msgpack"):
        index.write_text(json.dumps({"weight_map": found | {"pooler/dense/bias": shard}}))
        assert f"{shard!r} is outside the folder" in refusal(folder)
    index.write_text(json.dumps({"weight_map": found | {"pooler/dense/gain": "flax_model-00001-of-00002.msgpack"}}))
    assert "00001-of-00002.msgpack: lacks pooler/dense/gain, which flax_model.msgpack.index.json lists" in refusal(
        folder
    )
    index.write_text(json.dumps({"weight_map": found}))
    shard = folder / "flax_model-00002-of-00002.msgpack"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "flax_model-00002-of-00002.msgpack: damaged, or not a tree of arrays" in refusal(folder)
    shard.unlink()
    assert "'flax_model-00002-of-00002.msgpack' is missing; copy the whole folder" in refusal(folder)


def test_opening_takes_no_memory_for_values_and_reading_takes_their_size(tmp_path):
    value = np.zeros((1000, 2000), np.float32)
    (tmp_path / FILE).write_bytes(flax.serialization.to_bytes({"a": {"kernel": value}}))
    tracemalloc.start()
    tensors = open_flax(tmp_path / FILE)
    opened = tracemalloc.get_traced_memory()[1]
    tensors["a.weight"].read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened < 100_000
    assert peak < 1.1 * value.nbytes


@pytest.mark.filterwarnings("ignore:.*randomly initialized, to be trained")
def test_commands_take_such_a_folder(tmp_path, wordpiece, corpus_file, capsys):
    folder = tmp_path / "folder"
    model = bertgpt.BertForPreTraining(bertgpt.presets.bert_tiny(**SIZES))
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    bertgpt.save_pretrained(folder, model, params, wordpiece)
    write_flax(folder)
    small = [f"data.train={corpus_file}", "data.sequence_length=16", "data.workers=1", "train.steps=1"]
    small += ["train.batch_size=8", "train.eval_examples=8", "data.eval_fraction=0.1"]
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    for arguments in (
        ["fill-mask", folder, "a [MASK]"],
        ["export", folder, tmp_path / "exported"],
        ["pretrain", tmp_path / "run.yaml", f"model.init_from={folder}", f"out={tmp_path / 'run'}", *small],
    ):
        assert main([str(argument) for argument in arguments]) == 0
    assert_equal(bertgpt.load_pretrained(tmp_path / "exported")[1], params)
    assert "error" not in capsys.readouterr().err
