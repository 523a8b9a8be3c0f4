"""What is kept, what is best, what is read back."""

import jax
import numpy as np
import optax
import pytest

from train.checkpoints import Checkpoints, restore_newest
from train.state import create_state


@pytest.fixture
def state(tiny_gpt):
    return create_state(tiny_gpt, optax.adam(1e-3), seed=0)


def test_the_newest_two_and_the_best_are_kept(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)):
        checkpoints.save(step, state, {"row": 8 * step}, loss)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best() == 2
    checkpoints.close()


def test_a_checkpoint_gives_back_every_array_and_value(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(1, state, {"row": 8, "tokenizer": "{}"}, None)
    checkpoints.wait()
    loaded, extra = checkpoints.load(1, jax.eval_shape(lambda: state))
    checkpoints.close()
    assert extra == {"row": 8, "tokenizer": "{}"}
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True))


def test_a_state_overwritten_after_the_save_is_saved_as_it_was(state, tmp_path):
    """The step that follows reuses (donates) the state's memory while the write is under way."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    before = jax.tree.map(np.array, state.params)
    checkpoints.save(1, state, {}, None)
    jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state))
    checkpoints.wait()
    loaded = checkpoints.load_params(1, before)
    checkpoints.close()
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(before), strict=True))


def test_when_all_are_damaged_the_user_is_told(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert restore_newest(checkpoints, state, print) is None
    checkpoints.save(1, state, {}, None)
    checkpoints.wait()
    for file in (tmp_path / "checkpoints" / "1" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="only damaged_checkpoint_1"):
        restore_newest(checkpoints, state, lambda text: None)
    with pytest.raises(ValueError, match="only damaged_checkpoint_1"):
        restore_newest(checkpoints, state, lambda text: None)  # and does not begin anew in silence
    checkpoints.close()
    assert (tmp_path / "damaged_checkpoint_1").is_dir()


def test_no_memory_is_no_damage(state, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(1, state, {}, None)
    checkpoints.wait()

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(checkpoints, "load", fail)
    with pytest.raises(MemoryError):
        restore_newest(checkpoints, state, print)
    checkpoints.close()
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_hashes_cut_short_by_a_kill_are_made_again(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(1, state, {}, None)
    checkpoints.wait()
    digests = tmp_path / "checkpoints" / "1" / "digests.json"
    digests.rename(digests.with_suffix(".tmp"))
    checkpoints.wait()
    assert digests.exists()
    assert checkpoints.fault(1) is None
    checkpoints.close()
