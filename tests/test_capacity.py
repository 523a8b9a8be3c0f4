"""The least memory of a run, against what its arrays take, and the refusal of what cannot fit."""

from types import SimpleNamespace

import pytest

from bertgpt import presets
from bertgpt.errors import InputError
from train import capacity
from train.jobs import planning

OPTIONS = [
    "train.dtype=float32",
    "train.dtype=bfloat16",
    "train.remat=full",
    "train.freeze=embeddings",
    "parallel.fsdp=8",
]


@pytest.mark.parametrize("preset", ["bert_tiny", "gpt1"])
@pytest.mark.parametrize("option", [*OPTIONS, *(f"optimizer.name={name}" for name in capacity.MOMENTS)])
def test_no_run_takes_less_than_the_least(plan_settings, preset, option):
    config = plan_settings(preset, option)[0]
    plan = planning.make_plan(config)
    figures = planning.exact(plan)
    state, activations = capacity.least_bytes(config, plan.model.config, plan.strategy.devices)
    assert 0 < state <= figures["parameter_bytes"] + figures["optimizer_bytes"]
    assert 0 < activations <= figures["kept_bytes"]


def test_the_least_of_bert_base(plan_settings):
    config = plan_settings("bert_base", "train.batch_size=256", "data.sequence_length=16")[0]
    model = presets.bert_base()
    kernels = 768 * (30_522 + 512 + 2 + 2) + 12 * 12 * 768 * 768
    assert model.approximate_parameters == kernels
    assert capacity.least_bytes(config, model, 4) == (4 * 3 * kernels // 4, 64 * 16 * 768 * 12 * 4)


@pytest.fixture
def machine(monkeypatch):
    """(bytes of a device, bytes of the host) -> a machine with two such devices."""

    def make(device, host):
        found = SimpleNamespace(platform="gpu", memory_stats=lambda: device and {"bytes_limit": device})
        monkeypatch.setattr(capacity.jax, "local_devices", lambda: [found, found])
        monkeypatch.setattr(capacity, "host_memory", lambda: host)

    return make


def test_what_cannot_fit_is_refused_with_the_keys_to_lower(plan_settings, machine):
    strategy = SimpleNamespace(devices=2)
    config = plan_settings("bert_tiny", "data.sequence_length=16", "train.batch_size=2000")[0]
    model = presets.bert_tiny(hidden_size=16, num_layers=2, num_heads=2, vocab_size=64)
    state, activations = capacity.least_bytes(config, model, 2)
    assert state < activations
    machine(activations, 4 * 16 * 2000)
    capacity.check(config, model, strategy)
    machine(activations - 1, 4 * 16 * 2000)
    with pytest.raises(
        InputError, match=r"train.batch_size 2000 with train.accumulate 1 needs .* lower train.batch_size"
    ):
        capacity.check(config, model, strategy)
    machine(state - 1, 4 * 16 * 2000)
    with pytest.raises(InputError, match=r"parameters needs at least .*; choose a smaller model \(model.num_layers"):
        capacity.check(config, model, strategy)
    machine(activations, 4 * 16 * 2000 - 1)
    with pytest.raises(
        InputError, match=r"train.batch_size 2000: a batch of token ids takes .*; lower train.batch_size"
    ):
        capacity.check(config, model, strategy)
    machine(None, 4 * 16 * 2000)  # a device that does not tell its memory
    capacity.check(config, model, strategy)
