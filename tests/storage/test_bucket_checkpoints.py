"""Checkpoints in a bucket: what is complete, what is kept, what is damaged, and what a late listing changes."""

import base64
import dataclasses
import json
import re
import time
import types

import google_crc32c
import jax
import numpy as np
import optax
import pytest

from bertgpt.errors import InputError
from train.folders.bucket_checkpoints import BucketCheckpoints
from train.folders.checkpoints import restore_newest
from train.state import create_state


@pytest.fixture(scope="module")
def state(tiny_gpt):
    return create_state(tiny_gpt, optax.adam(1e-3), seed=0)


@pytest.fixture
def saved(request, bucket, state):
    """The address of a run with checkpoints 4, 8 and 12; the first is the best."""
    address = "gs://bucket/" + re.sub(r"\W", "_", request.node.name)
    with BucketCheckpoints(address, keep=3) as checkpoints:
        for step, loss in ((4, 1.0), (8, 2.0), (12, 3.0)):
            checkpoints.save(step, state, {"row": step}, loss)
        checkpoints.wait()
    return address


def names(bucket, address: str, step: int) -> list[str]:
    return bucket.names(f"{address.removeprefix('gs://bucket/')}/checkpoints/{step}/")


def array_file(bucket, address: str, step: int) -> str:
    """The largest object of a checkpoint: it has the arrays."""
    return max(names(bucket, address, step), key=lambda name: len(bucket.objects[name].content))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_the_newest_and_the_best_are_kept_and_read_back(bucket, state):
    with BucketCheckpoints("gs://bucket/kept", keep=2) as checkpoints:
        for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)):
            checkpoints.save(step, state, {"row": 8 * step}, loss)
        checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best() == 2
    assert {name.split("/")[2] for name in bucket.names("kept/checkpoints/")} == {"2", "4", "5"}
    loaded, extra = BucketCheckpoints("gs://bucket/kept").load(5, jax.eval_shape(lambda: state))
    assert extra == {"row": 40}
    assert all(map(np.array_equal, jax.tree.leaves(loaded.params), jax.tree.leaves(state.params)))


def test_the_marker_has_the_checksum_of_every_file_and_nothing_is_downloaded_for_it(bucket, state):
    with BucketCheckpoints("gs://bucket/marker") as checkpoints:
        large = {"x": np.random.default_rng(0).random(125_000)}
        checkpoints.save(3, dataclasses.replace(state, params=large), {}, None)
        checkpoints.wait()
    arrays = array_file(bucket, "gs://bucket/marker", 3)
    assert len(bucket.objects[arrays].content) > 900_000
    assert sum(bucket.sent.values()) < 300_000
    files = json.loads(bucket.objects["marker/checkpoints/3/digests.json"].content)["files"]
    written = names(bucket, "gs://bucket/marker", 3)
    assert {f"marker/checkpoints/3/{name}" for name in files} == set(written) - {"marker/checkpoints/3/digests.json"}
    size, checksum = files[arrays.removeprefix("marker/checkpoints/3/")].split()
    content = bucket.objects[arrays].content
    assert int(size) == len(content)
    assert int.from_bytes(base64.b64decode(checksum), "big") == google_crc32c.value(content)


@pytest.mark.parametrize("fault", ["changed", "missing", "cut", "marker", "another's marker"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_loaded(fault, bucket, state, saved):
    arrays = array_file(bucket, saved, 12)
    marker = arrays.split("/checkpoints/")[0] + "/checkpoints/12/digests.json"
    if fault == "missing":
        del bucket.objects[arrays]
    elif "marker" in fault:
        other = bucket.objects[marker.replace("/12/", "/8/")].content
        bucket.put(marker, b"{" if fault == "marker" else other)
    else:
        content = bucket.objects[arrays].content
        bucket.put(arrays, flipped(content) if fault == "changed" else content[: len(content) // 2])
    told: list[str] = []
    checkpoints = BucketCheckpoints(saved, keep=3)
    _, extra = restore_newest(checkpoints, jax.eval_shape(lambda: state), told.append)
    assert extra == {"row": 8}
    assert len(told) == 1
    assert told[0].startswith("checkpoint 12 is damaged (")
    assert told[0].endswith(f"moved to {saved}/damaged_checkpoint_12")
    assert checkpoints.steps() == [4, 8]
    assert checkpoints.damaged() == ["damaged_checkpoint_12"]
    with checkpoints:  # the step can be saved again
        checkpoints.save(12, state, {"row": 13}, None)
        checkpoints.wait()
    assert BucketCheckpoints(saved).extra(12) == {"row": 13}


def test_a_checkpoint_without_its_marker_is_never_seen_and_removed_before_the_next_one(bucket, state, saved):
    del bucket.objects[saved.removeprefix("gs://bucket/") + "/checkpoints/12/digests.json"]
    with BucketCheckpoints(saved, keep=3) as checkpoints:
        assert checkpoints.steps() == [4, 8]
        checkpoints.save(12, state, {"row": 14}, None)
        checkpoints.wait()
    assert checkpoints.extra(12) == {"row": 14}


def test_a_deletion_that_is_cut_short_leaves_no_checkpoint_that_seems_complete(bucket, state, saved):
    def refuse(method: str, path: str) -> int | None:
        return 403 if "/checkpoints/4/" in path and method == "DELETE" and "digests" not in path else None

    bucket.fault = lambda method, path: refuse(method, path) or (403 if path.startswith("/batch") else None)
    checkpoints = BucketCheckpoints(saved, keep=3)
    bucket.log.clear()
    with pytest.raises(InputError, match="no permission"):
        checkpoints._remove(4)
    deletions = [path for method, path in bucket.log if method == "DELETE" or path.startswith("/batch")]
    assert "digests.json" in deletions[0]
    bucket.fault = lambda method, path: None
    assert names(bucket, saved, 4)
    assert checkpoints.steps() == [8, 12]


def test_a_late_listing_hides_no_checkpoint(bucket, state, saved):
    bucket.lag = time.monotonic() - min(found.written for found in bucket.objects.values()) + 3  # shows nothing yet
    checkpoints = BucketCheckpoints(saved)
    assert checkpoints.remote.folders() == []
    assert checkpoints.steps() == [4, 8, 12]
    newest = bucket.objects[array_file(bucket, saved, 12)].written
    bucket.lag = time.monotonic() - newest + 2
    assert restore_newest(checkpoints, jax.eval_shape(lambda: state), pytest.fail)[1] == {"row": 12}


def test_no_listing_is_taken_from_a_cache(bucket, state, saved):
    checkpoints = BucketCheckpoints(saved)
    list(checkpoints.folder.iterdir())
    assert checkpoints.remote.folders() == ["12", "4", "8"]
    bucket.put(saved.removeprefix("gs://bucket/") + "/checkpoints/16/x", b"of another process")
    assert checkpoints.remote.folders() == ["12", "16", "4", "8"]
    assert {path.name for path in checkpoints.folder.iterdir()} == {"12", "16", "4", "8"}


def test_arrays_that_orbax_does_not_join_make_no_checkpoint(bucket, state, monkeypatch):
    """It lists what the processes wrote, and a listing might lack some."""
    checkpoints = BucketCheckpoints("gs://bucket/joined")
    checkpoints.save(1, state, {}, None)
    checkpoints.wait()
    monkeypatch.setattr(checkpoints, "_metadata", lambda step: types.SimpleNamespace(metadata={"step": state.step}))
    checkpoints.save(2, state, {}, None)
    with pytest.raises(InputError, match="gs://bucket/joined/checkpoints/2: not all arrays were written"):
        checkpoints.wait()
    assert checkpoints.steps() == [1]
    checkpoints.close()
