"""What the loop checks on the host."""

import numpy as np
import pytest

import bertgpt
from train.loop import validated


@pytest.mark.parametrize("name", ["input_ids", "labels"])
def test_an_id_beyond_the_vocabulary_is_seen_under_a_mask_too(name):
    batch = {"input_ids": np.array([[2, 63]]), "labels": np.array([[63]])}
    assert validated(batch, tuple(batch), 64) is batch
    with pytest.raises(bertgpt.InputError, match="token id 64 is beyond the vocabulary of 64"):
        validated({**batch, name: np.array([[64]])}, tuple(batch), 64)
