"""What is kept, what is best, what is read back, and what counts as damage."""

import errno
import json
import shutil

import jax
import numpy as np
import optax
import pytest
from conftest import TINY

import bertgpt
from train.folders.checkpoints import Checkpoints, restore_newest
from train.state import create_state


@pytest.fixture(scope="module")
def first_state(tiny_gpt):
    return create_state(tiny_gpt, optax.adam(1e-3), seed=0)


@pytest.fixture
def state(first_state):
    return jax.tree.map(jax.numpy.copy, first_state)  # a test may donate it


@pytest.fixture(scope="module")
def three(first_state, tmp_path_factory):
    """A folder with checkpoints 4, 8 and 12; the first is the best."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    with Checkpoints(folder, keep=3) as checkpoints:
        for step, loss in ((4, 1.0), (8, 2.0), (12, 3.0)):
            checkpoints.save(step, first_state, {"row": step}, loss)
        checkpoints.wait()
    return folder


@pytest.fixture
def saved(three, tmp_path):
    """A copy of it."""
    return Checkpoints(shutil.copytree(three, tmp_path / "checkpoints"))


def flip(file) -> None:
    """One bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_the_newest_two_and_the_best_are_kept(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)):
        checkpoints.save(step, state, {"row": 8 * step}, loss)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best() == 2
    checkpoints.close()


def test_a_selection_loss_under_its_old_name_is_still_ranked(saved, state):
    """Checkpoints of earlier versions call it `loss`."""
    metrics = saved.folder / "4" / "metrics" / "metrics"
    assert json.loads(metrics.read_text()) == {"selection_loss": 1.0}
    metrics.write_text(json.dumps({"loss": 1.0}))
    (saved.folder / "4" / "digests.json").unlink()  # it has the hash of the new name
    assert saved.best() == 4
    with Checkpoints(saved.folder, keep=1) as again:
        again.save(16, state, {}, 1.5)
        again.wait()
        assert (again.steps(), again.best()) == ([4, 16], 4)


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
    with pytest.raises(ValueError, match="all checkpoints are damaged .damaged_checkpoint_1"):
        restore_newest(checkpoints, state, lambda text: None)
    with pytest.raises(ValueError, match="all checkpoints are damaged .damaged_checkpoint_1"):
        restore_newest(checkpoints, state, lambda text: None)  # and does not begin anew in silence
    checkpoints.close()
    assert (tmp_path / "damaged_checkpoint_1").is_dir()


@pytest.mark.parametrize("name", ["metrics/metrics", "_CHECKPOINT_METADATA", "state/_METADATA"])
@pytest.mark.parametrize("step", [4, 12])
def test_a_damaged_small_file_costs_its_own_checkpoint_alone(saved, state, name, step):
    flip(saved.folder / str(step) / name)
    sound = [number for number in (4, 8, 12) if number != step]
    assert saved.best() == sound[0]
    told = []
    loaded, extra = restore_newest(saved, jax.eval_shape(lambda: state), told.append)
    assert extra == {"row": sound[-1]}
    assert saved.steps() == sound
    (line,) = told
    assert line.startswith(f"checkpoint {step} is damaged ({name} is missing or changed); moved to ")
    saved.save(16, loaded, {}, None)  # the manager reads every checkpoint's metrics
    saved.wait()
    saved.close()


def test_a_missing_file_is_damage(saved):
    (saved.folder / "8" / "state" / "_METADATA").unlink()
    assert str(saved.fault(8)) == "state/_METADATA is missing or changed"


@pytest.mark.parametrize("arrays", [True, False])
def test_the_arrays_are_looked_at_where_asked(saved, arrays):
    flip(max((saved.folder / "8").rglob("d/*"), key=lambda file: file.stat().st_size))
    assert (saved.fault(8, arrays) is not None) == arrays


def test_hashes_belong_to_one_step(saved):
    shutil.rmtree(saved.folder / "12")
    shutil.copytree(saved.folder / "8", saved.folder / "12")
    assert str(saved.fault(12)) == "digests.json belongs to another checkpoint"
    assert saved.fault(8) is None


NO_HASHES = (
    *("", "[]", "[1", "[" * 100_000, "{}", '{"files": 3}', '{"files": "abc"}'),
    *('{"step": 8, "files": ["a"]}', '{"step": 8, "files": {}}', '{"step": 8, "files": {"../4/metrics/metrics": ""}}'),
)


@pytest.mark.parametrize("text", NO_HASHES, ids=range(len(NO_HASHES)))
def test_hashes_that_are_none_are_damage(saved, text):
    (saved.folder / "8" / "digests.json").write_text(text)
    assert "digests.json" in str(saved.fault(8))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"loss": "low"}', '{"selection_loss": "low"}'])
def test_a_broken_loss_without_hashes_costs_its_own_checkpoint_alone(saved, state, text):
    (saved.folder / "8" / "digests.json").unlink()
    (saved.folder / "8" / "metrics" / "metrics").write_text(text)
    assert "metrics/metrics" in str(saved.fault(8, arrays=False))
    assert saved.best() != 8
    with Checkpoints(saved.folder) as again:
        assert restore_newest(again, state, lambda text: None) is not None
        assert again.manager is not None


def test_hashes_without_their_step_are_read_as_before(saved):
    file = saved.folder / "8" / "digests.json"
    file.write_text(json.dumps(json.loads(file.read_text())["files"]))
    assert saved.fault(8) is None
    flip(saved.folder / "8" / "metrics" / "metrics")
    assert saved.fault(8) is not None


def test_arrays_of_another_shape_are_the_users_mistake(saved, state):
    wide = create_state(
        bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**{**TINY, "mlp_size": 48})), optax.adam(1e-3), 0
    )
    where = r"checkpoints/12 has params/\S*/down/kernel in shape \(32, 16\), and this run needs \(48, 16\)"
    with pytest.raises(bertgpt.InputError, match=where):
        restore_newest(saved, jax.eval_shape(lambda: wide), print)
    with pytest.raises(bertgpt.InputError, match=where):
        saved.load_params(12, jax.eval_shape(lambda: wide).params)
    assert saved.steps() == [4, 8, 12]
    plain = create_state(bertgpt.OpenAIGPTLMHeadModel(bertgpt.presets.gpt1(**TINY)), optax.sgd(1.0, momentum=0.9), 0)
    with pytest.raises(bertgpt.InputError, match=r"checkpoints/12 has no opt_state/0/trace/"):
        restore_newest(saved, jax.eval_shape(lambda: plain), print)


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EIO, "I/O error"), OSError(errno.ESTALE, "stale"), ImportError("zstandard")]
)
def test_what_goes_wrong_while_reading_is_no_damage(saved, state, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("train.folders.checkpoints.ocp.load", fail)
    with pytest.raises(type(error)):
        restore_newest(saved, jax.eval_shape(lambda: state), print)
    monkeypatch.setattr("train.folders.checkpoints._hash", fail)
    with pytest.raises(type(error)):
        restore_newest(saved, jax.eval_shape(lambda: state), print)
    assert saved.steps() == [4, 8, 12]


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
