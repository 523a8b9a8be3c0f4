"""Checkpoints of a run in a bucket, where no folder can be renamed and a listing may show a file late.

A checkpoint is complete if and only if it has digests.json, which is written last. It contains the size and CRC-32C of
each file, as the bucket computed them while the file was written. checkpoints.json, next to the folder, names the
complete checkpoints, for when a listing does not show them yet. Checkpoints are deleted in the opposite order.
"""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from orbax.checkpoint import v1 as ocp

from bertgpt.errors import InputError

from .. import addresses, hosts
from ..state import TrainState
from .checkpoints import ARRAYS, DIGESTS, Checkpoints, DamageError, parse_digests, shapes, tree

INDEX = "checkpoints.json"
SHOWN = 60  # seconds until a listing shows a file, at most


class BucketCheckpoints(Checkpoints):
    """The numbered checkpoints of a run at an address; see `Checkpoints`."""

    def __init__(self, address: str, keep: int = 1, before_commit: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            address: of the run.
            keep: number of newest checkpoints to keep, in addition to the best.
            before_commit: called in the background in the first process, when all files of a checkpoint are written.
        """
        super().__init__(Path("checkpoints"), keep)
        self.folder = addresses.shared(address) / "checkpoints"
        self.run, self.remote = addresses.Remote(address), addresses.Remote(f"{address}/checkpoints")
        self.before_commit = before_commit

    @functools.cached_property
    def manager(self) -> ocp.training.Checkpointer:
        """The orbax checkpointer, which writes checkpoints; `_prune` deletes them."""
        if hosts.is_first():
            complete = self.steps()
            for name in self.remote.folders():
                if name.isdecimal() and int(name) not in complete:
                    self.remote.remove_folder(name)  # half-written
        hosts.sync("half-written checkpoints are removed")
        sys.excepthook, sys.unraisablehook = _without_orphans(sys.excepthook), _without_orphans(sys.unraisablehook)
        return ocp.training.Checkpointer(self.folder, cleanup_tmp_directories=True)

    def save(self, step: int, state: Any, extra: dict[str, Any], selection_loss: float | None) -> None:
        self.shapes = shapes(tree(state))
        with self._naming("written"):
            super().save(step, state, extra, selection_loss)

    def wait(self) -> None:
        with self._naming("written"):
            super().wait()

    def close(self) -> None:
        with self._naming("written"):
            super().close()

    def load(self, step: int, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        with self._naming("read"):
            return super().load(step, abstract_state)

    def extra(self, step: int) -> dict[str, Any]:
        with self._naming("read"):
            return super().extra(step)

    @contextlib.contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Raise an error of orbax or TensorStore as one line."""
        try:
            yield
        except Exception as error:
            if isinstance(error, InputError) or hosts.is_lost_peer(error):
                raise
            text = f"a checkpoint cannot be {what}: {addresses.reason(error)}; run the command again"
            raise InputError(f"{self.folder}: {text}") from error

    def steps(self) -> list[int]:
        listed = {int(name) for name in self.remote.folders() if name.isdecimal()}
        return sorted(step for step in listed | self._indexed() if self.remote.info(f"{step}/{DIGESTS}"))

    def _indexed(self) -> set[int]:
        try:
            return {int(step) for step in json.loads(self.run.read(INDEX) or b"[]")}
        except (ValueError, TypeError, RecursionError):
            return set()

    def damaged(self) -> list[str]:
        return sorted(name for name in self.run.folders() if name.startswith("damaged_checkpoint_"))

    def verify(self, step: int, arrays: bool = True) -> None:
        """Compare the bucket's sizes and checksums of a checkpoint's files with its marker; nothing is downloaded."""
        content = self.remote.read(f"{step}/{DIGESTS}")
        if content is None:
            raise DamageError(f"{DIGESTS} is missing")
        listed = self.remote.files(str(step))
        late = []
        for name, expected in parse_digests(content, step).items():
            if not arrays and ARRAYS in PurePosixPath(name).parts:
                continue
            found = listed.get(name) or self.remote.info(f"{step}/{name}")
            if found is None or addresses.stamp(found) != expected:
                raise DamageError(f"{name} is missing or changed")
            late += [name] * (name not in listed)
        if late:
            self._wait_until_listed(step, late)

    def _wait_until_listed(self, step: int, names: list[str]) -> None:
        """Wait until a listing shows files that exist: orbax relies on it."""
        end = time.monotonic() + SHOWN
        while missing := set(names) - self.remote.files(str(step)).keys():
            if time.monotonic() > end:
                raise InputError(f"{self.folder / str(step)}: its listing lacks {min(missing)}; try again later")
            time.sleep(1)

    def set_aside(self, step: int) -> Path:
        """Copy a damaged checkpoint to another name within the bucket, and delete it; returns the new path."""
        name = f"damaged_checkpoint_{step}"
        if hosts.is_first():
            taken = self.run.folders()
            while name in taken:
                name += "_again"
            for file in self.remote.files(str(step)):
                self.run.copy(f"checkpoints/{step}/{file}", f"{name}/{file}")
            self._remove(step)
        hosts.sync(f"checkpoint {step} set aside")
        if "manager" in vars(self):
            self.manager.reload()
        return self.folder.parent / name

    def _finish(self, written: Any, step: int) -> None:
        written.result()
        if hosts.is_first():
            self._commit(step)

    def _note_hashes(self) -> None:
        """`_commit` has noted them; a checkpoint without them is incomplete."""

    def _read(self, step: int, name: str) -> bytes | None:
        return self.remote.read(f"{step}/{name}")

    def _commit(self, step: int) -> None:
        """Mark a checkpoint that was written as complete, and delete those that are not kept.

        Raises:
            InputError: the run is no longer its owner, or the checkpoint lacks an array: orbax joins what the processes
                wrote by listings.
        """
        if shapes(self._metadata(step).metadata) != self.shapes:
            raise InputError(f"{self.folder / str(step)}: not all arrays were written; run the command again to resume")
        self.before_commit()
        files = {name: addresses.stamp(info) for name, info in self.remote.files(str(step)).items()}
        self.remote.write(f"{step}/{DIGESTS}", json.dumps({"step": step, "files": files}).encode())
        complete = {*self.steps(), step}
        self._index(complete)
        self._prune(complete)

    def _prune(self, complete: set[int]) -> None:
        """Delete all but the newest and the best checkpoints."""
        scored = [(loss, step) for step in complete if (loss := self._sound_loss(step)) is not None]
        kept = {*sorted(complete)[-self.keep :], *([min(scored)[1]] if scored else [])}
        for step in sorted(complete - kept):
            self._remove(step)

    def _sound_loss(self, step: int) -> float | None:
        with contextlib.suppress(DamageError):
            return self._loss(step)
        return None

    def _remove(self, step: int) -> None:
        """Delete a checkpoint; from the first request on, it is no longer complete."""
        self.remote.remove(f"{step}/{DIGESTS}")
        self._index(set(self.steps()))
        self.remote.remove_folder(str(step))

    def _index(self, steps: set[int]) -> None:
        self.run.write(INDEX, json.dumps(sorted(steps)).encode())


def _without_orphans(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook without the errors of writes that TensorStore ends after orbax has given up: the first one is raised."""

    def filtered(*found: Any) -> None:
        error = found[1] if len(found) > 1 else found[0].exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(*found)

    return filtered
