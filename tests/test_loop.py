"""What the loop checks on the host, and what it writes down."""

import types

import jax
import numpy as np
import pytest

import bertgpt
from train import loop, parallel
from train.evaluation import validated
from train.job import CompiledSteps
from train.optimizers import make_schedule
from train.sections import RunConfig
from train.step import gpt_objective
from train.window import NotFiniteError, Window


@pytest.mark.parametrize("name", ["input_ids", "labels"])
def test_an_id_beyond_the_vocabulary_is_seen_under_a_mask_too(name):
    batch = {"input_ids": np.array([[2, 63]]), "labels": np.array([[63]])}
    assert validated(batch, tuple(batch), 64) is batch
    with pytest.raises(bertgpt.InputError, match="token id 64 is beyond the vocabulary of 64"):
        validated({**batch, name: np.array([[64]])}, tuple(batch), 64)


@pytest.fixture
def window(tiny_gpt):
    """That of a run whose learning rate is the number of updates before a step."""
    job = types.SimpleNamespace(model=tiny_gpt)
    return Window(CompiledSteps(None, job, parallel.Jit(), None, None, float))


def add(window: Window, step: int, loss: float) -> None:
    batch = {"input_ids": np.ones((1, 8), np.int32), "loss_mask": np.ones((1, 8), np.float32)}
    window.add(step, jax.device_put({"loss": loss, "grad_norm": 2 * loss, "tokens": 8.0}), batch)


def test_a_row_of_metrics_is_the_mean_over_its_steps(window):
    for step, loss in enumerate((1.0, 2.0, 6.0), 1):
        add(window, step, loss)
    window.check()  # as before a checkpoint: the row stays whole
    add(window, 4, 3.0)
    found = window.figures()
    assert (found["loss"], found["grad_norm"], found["learning_rate"]) == (3.0, 6.0, 3.0)
    assert "tokens" not in found
    add(window, 5, 7.0)
    assert window.figures()["loss"] == 7.0


def test_tokens_are_those_of_all_steps_since_the_clock_began(window):
    add(window, 1, 1.0)
    window.check()
    add(window, 2, 1.0)
    window.check()
    assert window.tokens == 16
    window.restart_clock()
    assert window.tokens == 0


def test_a_row_of_metrics_is_one_transfer(window, monkeypatch):
    transfers, get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: (transfers.append(len(jax.tree.leaves(tree))), get(tree))[1])
    for step in range(1, 6):
        add(window, step, 1.0)
    with jax.transfer_guard("disallow_explicit"):  # nothing is sent to the device
        window.figures()
    window.check()  # nothing to fetch
    assert transfers == [15]


def test_the_learning_rate_that_is_logged_is_not_computed_on_the_device(tiny_gpt):
    config = RunConfig()
    config.train.steps, config.optimizer.warmup_steps = 10, 4
    job = types.SimpleNamespace(model=tiny_gpt, objective=gpt_objective(tiny_gpt))
    compiled, _ = loop.build(config, job, parallel.Jit())
    with jax.transfer_guard("disallow_explicit"):
        rates = [float(compiled.schedule(count)) for count in range(10)]
    assert rates == [float(make_schedule(config.optimizer, 10)(count)) for count in range(10)]


def test_a_loss_that_is_no_number_is_named_by_its_step(window):
    add(window, 1, 1.0)
    add(window, 2, float("nan"))
    with pytest.raises(NotFiniteError, match="step 2: loss nan"):
        window.check()
