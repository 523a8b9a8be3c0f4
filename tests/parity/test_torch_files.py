"""pytorch_model.bin is read through torch's weights-only unpickler, and nothing else."""

import json
import pickle
import zipfile

import jax
import numpy as np
import pytest
import torch
from reference import make_reference

import bertgpt
from bertgpt.errors import InputError


class Command:
    """What a malicious file holds."""

    def __reduce__(self):
        return (open, ("/tmp/should_not_be_there", "w"))


@pytest.fixture
def folder(tmp_path):
    """(folder, the parameters in its safetensors file), with the same weights in torch's format."""
    reference = make_reference("BertForPreTraining")
    reference.save_pretrained(tmp_path)
    params = bertgpt.load_pretrained(tmp_path)[1]
    (tmp_path / "model.safetensors").unlink()
    return tmp_path, params, reference.state_dict()


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("new", [True, False])
def test_one_file_in_either_format(folder, new):
    folder, params, state = folder
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    assert_equal(bertgpt.load_pretrained(folder)[1], params)


def test_bfloat16(folder):
    folder, params, state = folder
    torch.save({key: value.bfloat16() for key, value in state.items()}, folder / "pytorch_model.bin")
    found = bertgpt.load_pretrained(folder)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), found, params)


def test_shards(folder):
    folder, params, state = folder
    halves = (dict(list(state.items())[:20]), dict(list(state.items())[20:]))
    weight_map = {}
    for number, half in enumerate(halves):
        torch.save(half, folder / f"pytorch_model-{number}.bin")
        weight_map |= dict.fromkeys(half, f"pytorch_model-{number}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(bertgpt.load_pretrained(folder)[1], params)


def test_parameters_that_want_a_gradient(folder):
    folder, params, state = folder
    torch.save({key: torch.nn.Parameter(value) for key, value in state.items()}, folder / "pytorch_model.bin")
    assert_equal(bertgpt.load_pretrained(folder)[1], params)


@pytest.mark.parametrize("kind", ["expanded", "meta", "whole numbers", "sparse"])
def test_a_tensor_that_only_claims_to_be_there_is_refused(folder, kind):
    folder, _, state = folder
    value = {
        "expanded": torch.zeros(1).expand(16),
        "meta": torch.zeros(16, device="meta"),
        "whole numbers": torch.zeros(16, dtype=torch.int32),
        "sparse": torch.zeros(16).to_sparse(),
    }[kind]
    torch.save(state | {"bert.pooler.dense.bias": value}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: bert\.pooler\.dense\.bias is not a plain array"):
        bertgpt.load_pretrained(folder)


@pytest.mark.parametrize("content", [pickle.dumps(Command()), b"", b"nonsense", pickle.dumps([1, 2])])
def test_anything_else_is_refused(folder, content, tmp_path):
    folder = folder[0]
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"pytorch_model\.bin: (not a weight file|contains something other)"):
        bertgpt.load_pretrained(folder)


def test_code_in_torchs_own_format_is_refused(folder):
    torch.save({"a": Command()}, folder[0] / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: not a weight file that can be read safely"):
        bertgpt.load_pretrained(folder[0])


@pytest.mark.parametrize(
    ("content", "method", "message"),
    [
        (b"}" * 1000, zipfile.ZIP_DEFLATED, "data.pkl is compressed"),  # a few kilobytes could be gigabytes of names
        (b"}" * (1 << 23), zipfile.ZIP_STORED, "its names and shapes take over 4194304 bytes"),
        (b"c" + b"A" * 70_000 + b"\nB\n", zipfile.ZIP_STORED, "a name of over 1000 characters"),
        (b"\x80", zipfile.ZIP_STORED, ""),
    ],
)
def test_a_zip_with_what_would_take_long_or_much_is_refused(folder, content, method, message):
    folder, _, state = folder
    torch.save(state, folder / "whole.bin")
    with zipfile.ZipFile(folder / "whole.bin") as whole, zipfile.ZipFile(folder / "pytorch_model.bin", "w") as out:
        for record in whole.infolist():
            pickled = record.filename.endswith("data.pkl")
            raw = b"\x80\x02" + content if pickled else whole.read(record)
            out.writestr(record.filename, raw, method if pickled else zipfile.ZIP_STORED)
    with pytest.raises(
        InputError, match=rf"pytorch_model\.bin: not a weight file that can be read safely: .*{message}"
    ):
        bertgpt.load_pretrained(folder)


def test_a_long_name_in_the_format_before_1_6_is_refused(folder):
    folder, _, _ = folder
    torch.save({"A" * 70_000: 1}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="not a weight file that can be read safely: a name of over 1000 characters"):
        bertgpt.load_pretrained(folder)
