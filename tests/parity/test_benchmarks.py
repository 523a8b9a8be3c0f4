"""The benchmarks' other side: it does the same work, and runs where nothing can be compiled."""

import warnings

import jax
import pytest
import torch

import bertgpt
from benchmarks import generate, train_step
from bertgpt.config import ModelConfig
from train.jobs import objectives
from train.step import apply

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "mlp_size": 64, "max_positions": 64, "vocab_size": 64}
CONSTANTS = {"bert": {}, "gpt": {"layer_norm_eps": 1e-5, "activation": "gelu_tanh"}}


def tiny(architecture, **changes):
    return ModelConfig(architecture=architecture, **SIZES, **CONSTANTS[architecture], **changes)


@pytest.mark.parametrize("architecture", ["bert", "gpt"])
def test_both_sides_learn_from_the_same_loss(architecture, tmp_path):
    """Also where padding is cut off."""
    config = tiny(architecture, hidden_dropout=0.0, attention_dropout=0.0, initializer_range=0.2)
    reference = train_step.their_model(config).cpu().eval()
    reference.save_pretrained(tmp_path)
    model, params = bertgpt.load_pretrained(tmp_path)
    objective = objectives.make_objective({"bert": "mlm_nsp", "gpt": "clm"}[architecture], model)
    losses = jax.jit(lambda batch: objective.losses(apply(objective, params, batch), batch))
    for batch in train_step.make_batches(config, "random", 4, 32, False)[0][:2]:
        ours = float(objective.total({name: value.mean() for name, value in losses(batch).items()}))
        shorter = train_step.shorten(batch) if architecture == "bert" else batch
        for given in (batch, shorter):
            inputs = {name: torch.tensor(x, dtype=torch.long) for name, x in train_step.their_inputs(given).items()}
            assert abs(reference(**inputs).loss.item() - ours) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["bert", "gpt"])
def test_their_step_runs_without_a_compiler_and_says_so(architecture, dtype, monkeypatch):
    def fail(**_):
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda model: fail)
    config = tiny(architecture)
    work = train_step.theirs(config, dtype, train_step.make_batches(config, "random", 4, 32, False)[0])
    assert work.about["runs"].startswith("torch.compile, ")
    for number in range(2):
        work.step(number)
    work.wait()
    attention = {"bert": "SDPA", "gpt": "eager attention"}[architecture]
    assert work.about["runs"] == f"eager, since torch.compile failed (no C++ compiler), {attention}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["OpenAIGPT", "GPT2"])
def test_their_generation_adds_what_is_counted(name, dtype):
    prompt = generate.make_prompt(tiny("gpt"), 2, 4)
    work = generate.theirs(tiny("gpt"), name, dtype, prompt, [(4, 8), (10, 4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work.step(0)
    work.wait()
    assert work.amounts == [{"tokens": 24}]
    assert work.about["model"] == name
