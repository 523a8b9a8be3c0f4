"""A model as StableHLO runs where this library is not, at any batch and length."""

import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import bertgpt
from bertgpt.inference.stablehlo import export_program, export_stablehlo
from bertgpt.model import attention
from bertgpt.model.inputs import takes_choices

RUN = """
import sys
sys.modules["bertgpt"] = None  # importing it fails
import jax.export, numpy as np
from safetensors.numpy import load_file, save_file
jax.config.update("jax_default_matmul_precision", "highest")
program = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
weights = load_file("weights.safetensors")
for case in ("short", "long"):
    output = program.call(weights, load_file(f"{case}.safetensors"))
    save_file({name: np.asarray(value) for name, value in output.items()}, f"{case}.out.safetensors")
assert sys.modules["bertgpt"] is None
"""
CASES = {"short": (1, 5), "long": (3, 32)}


def inputs(model, shape):
    rng = np.random.default_rng(0)
    names = ["input_ids", "attention_mask"] + ([] if model.config.causal else ["token_type_ids"])
    mask = np.broadcast_to(np.arange(shape[-1]) < shape[-1] - 1, shape)
    values = {"input_ids": rng.integers(0, 64, shape), "attention_mask": mask, "token_type_ids": mask & (shape[-1] > 8)}
    return {name: np.ascontiguousarray(values[name], np.int32) for name in names}


@pytest.mark.parametrize("kind", ["tiny_bert", "tiny_gpt"])
def test_another_process_without_the_library_gets_equal_outputs(kind, request, tmp_path, wordpiece):
    from safetensors.numpy import load_file, save_file

    model = request.getfixturevalue(kind)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    export_stablehlo(tmp_path / "out", model, params, wordpiece)
    for case, shape in CASES.items():
        save_file(inputs(model, shape), tmp_path / "out" / f"{case}.safetensors")
    done = subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path / "out", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for case, shape in CASES.items():
        found = load_file(tmp_path / "out" / f"{case}.out.safetensors")
        output = jax.jit(lambda p, x: model.apply({"params": p}, **x))(params, inputs(model, shape))
        wanted = {name: value for name, value in vars(output).items() if value is not None}
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert bertgpt.load_tokenizer(tmp_path / "out").to_str() == wordpiece.to_str()


@pytest.mark.parametrize("name", [name for name in bertgpt.__all__ if name.startswith(("Bert", "OpenAI"))])
def test_every_architecture_is_a_program_for_three_platforms(name, tiny_bert, tiny_gpt):
    config = (tiny_bert if name.startswith("Bert") else tiny_gpt).config
    model = getattr(bertgpt, name)(config)
    ids = jnp.zeros((1, 1, 2) if takes_choices(name) else (1, 2), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)["params"]
    program = export_program(model, params)
    assert program.platforms == ("cpu", "cuda", "tpu")
    shapes = [aval.shape for aval in program.in_avals if aval.dtype == jnp.int32]
    assert {str(size) for size in shapes[0]} == set(
        ["batch", "choices", "length"] if ids.ndim == 3 else ("batch", "length")
    )


def test_a_program_that_is_exported_on_a_tpu_runs_anywhere(monkeypatch):
    """In bfloat16, with heads and a length that the TPU's attention kernel takes."""
    config = bertgpt.presets.gpt1(hidden_size=128, num_heads=2, num_layers=1, mlp_size=32, vocab_size=64)
    model = bertgpt.OpenAIGPTLMHeadModel(config, jnp.bfloat16)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    monkeypatch.setattr(attention, "target_device", lambda: SimpleNamespace(device_kind="TPU v5 lite"))
    assert "tpu_custom_call" not in export_program(model, params).mlir_module()
    ids = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 128"), jnp.int32)
    exported = jax.export.export(jax.jit(lambda ids: model.apply({"params": params}, ids)), platforms=["cpu"])(ids)
    assert exported.call(np.ones((2, 128), np.int32)).logits.shape == (2, 128, 64)


def test_a_text_beyond_the_positions_is_refused(tiny_gpt):
    params = jax.jit(tiny_gpt.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    program = export_program(tiny_gpt, params)
    weights = {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    with pytest.raises(ValueError, match="length"):
        program.call(weights, inputs(tiny_gpt, (1, 33)))


def test_the_readme_beside_it_runs(tiny_bert, tmp_path, monkeypatch, capsys):
    params = jax.jit(tiny_bert.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    export_stablehlo(tmp_path, tiny_bert, params)
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)[1], {})
    assert "'mlm_logits': (1, 8, 64)" in capsys.readouterr().out
