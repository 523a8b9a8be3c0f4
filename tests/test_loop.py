"""What the loop checks on the host, and what it writes down."""

import types

import numpy as np
import pytest

import bertgpt
from train.evaluation import validated
from train.job import CompiledSteps
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
    strategy = types.SimpleNamespace(scalar=float, devices=1)
    job = types.SimpleNamespace(model=tiny_gpt)
    return Window(CompiledSteps(None, job, strategy, None, None, float))


def add(window: Window, step: int, loss: float) -> None:
    batch = {"input_ids": np.ones((1, 8), np.int32), "loss_mask": np.ones((1, 8), np.float32)}
    window.add(step, {"loss": loss, "grad_norm": 2 * loss}, batch)


def test_a_row_of_metrics_is_the_mean_over_its_steps(window):
    for step, loss in enumerate((1.0, 2.0, 6.0), 1):
        add(window, step, loss)
    window.check()  # as before a checkpoint: the row stays whole
    add(window, 4, 3.0)
    found = window.figures()
    assert (found["loss"], found["grad_norm"], found["learning_rate"]) == (3.0, 6.0, 3.0)
    add(window, 5, 7.0)
    assert window.figures()["loss"] == 7.0


def test_a_loss_that_is_no_number_is_named_by_its_step(window):
    add(window, 1, 1.0)
    add(window, 2, float("nan"))
    with pytest.raises(NotFiniteError, match="step 2: loss nan"):
        window.check()
