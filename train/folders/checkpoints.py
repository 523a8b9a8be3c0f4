"""Checkpoints of a run: written in the background, moved into place at the end, the newest few and the best kept.

Each has the hashes of its files beside them. A checkpoint is damaged where a file differs from its hash, and only then:
what else goes wrong while one is read is no reason to move it away.
"""

import concurrent.futures
import functools
import hashlib
import json
import logging
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bertgpt.errors import InputError

from .. import hosts
from ..atomic_files import write_whole
from ..state import TrainState

METRIC = "loss"  # the held-out one; the lowest is the best
STATE = "state"  # orbax's name for the arrays' folder
ARRAYS = "d"  # the folders that hold the arrays' numbers; the other files are small


class DamageError(ValueError):
    """A file of a checkpoint is not what was written."""


class Checkpoints:
    """The numbered checkpoints in a folder. What is not an array (row, config, tokenizer) lies beside the arrays."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        """The first `save` makes the folder; reading changes nothing. `keep`: the newest so many, beside the best."""
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what goes wrong is raised; the log would repeat it
        self.folder, self.keep = folder.absolute(), keep
        self.background = concurrent.futures.ThreadPoolExecutor(1)
        self.pending: concurrent.futures.Future[None] | None = None

    @functools.cached_property
    def manager(self) -> ocp.training.Checkpointer:
        """Writes and deletes. It reads the metrics of all checkpoints when it is made, so they must be sound by then.
        Half-written checkpoints of a killed run are removed."""
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        policy = policies.AnyPreservationPolicy([policies.LatestN(self.keep), best])
        return ocp.training.Checkpointer(self.folder, preservation_policy=policy, cleanup_tmp_directories=True)

    def save(self, step: int, state: TrainState, extra: dict[str, Any], loss: float | None) -> None:
        """Copies the state to the host; it is written and hashed in the background, after an earlier one has been.

        Args:
            step: its number.
            state: as `Strategy.saved` gives it.
            extra: JSON values.
            loss: the held-out loss at this step; None where it was not measured: never the best.
        """
        metrics = None if loss is None else {METRIC: loss}
        self.wait()
        written = self.manager.save_async(step, _tree(state), force=True, metrics=metrics, custom_metadata=extra)
        self.pending = self.background.submit(self._finish, written)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdecimal() and path.is_dir())

    def best(self) -> int | None:
        """The step of lowest held-out loss, or the newest where none has one; damaged ones aside."""
        sound = [step for step in self.steps() if self.fault(step, arrays=False) is None]
        scored = [(loss, step) for step in sound if (loss := self._loss(step)) is not None]
        return min(scored)[1] if scored else max(sound, default=None)

    def verify(self, step: int, arrays: bool = True) -> None:
        """
        Args:
            step: of the checkpoint.
            arrays: False: only the small files beside the arrays' numbers.

        Raises:
            DamageError: a file of the checkpoint is not what was written; names it.
            OSError: a file cannot be read.
        """
        digests = self._digests(step)
        if not digests.exists():  # a run that is killed in the moment between leaves a checkpoint without
            self._loss(step)  # its form is all that can be checked
            return
        for name, expected in _read_digests(digests, step).items():
            file = self.folder / str(step) / name
            if (arrays or ARRAYS not in PurePosixPath(name).parts) and not (file.is_file() and _hash(file) == expected):
                raise DamageError(f"{name} is missing or changed")

    def fault(self, step: int, arrays: bool = True) -> DamageError | None:
        """The damage that `verify` finds."""
        try:
            self.verify(step, arrays)
        except DamageError as error:
            return error
        return None

    def load(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the extra values of one checkpoint.

        Args:
            step: its number.
            like: a state whose shapes it must have: `jax.ShapeDtypeStruct`s, each with a sharding, which it is read
                into, or without one, for an array on the host.

        Raises:
            InputError: it has other arrays; names the first.
        """
        self._check_fit(step, _tree(like))
        tree = ocp.load(self.folder / str(step), _tree(_empty(like)), checkpointable_name=STATE)
        return TrainState(**tree), self.extra(step)

    def load_params(self, step: int, like: Any) -> Any:
        """The parameters alone; errors as `load`."""
        self._check_fit(step, {"params": like})
        partial = ocp.options.PyTreeOptions(loading=ocp.options.PyTreeOptions.Loading(partial_load=True))
        with ocp.Context(pytree_options=partial):
            wanted = {"params": _empty(like)}
            return ocp.load(self.folder / str(step), wanted, checkpointable_name=STATE)["params"]

    def extra(self, step: int) -> dict[str, Any]:
        """The JSON values saved with a checkpoint."""
        return self._metadata(step).custom_metadata

    def set_aside(self, step: int) -> Path:
        """Moves a damaged checkpoint out of the way, so that its step can be saved again; nothing is deleted."""
        target = self.folder.parent / f"damaged_checkpoint_{step}"
        if hosts.is_first():
            while target.exists():
                target = target.with_name(target.name + "_again")
            (self.folder / str(step)).rename(target)
        hosts.sync(f"checkpoint {step} set aside")
        if "manager" in vars(self):
            self.manager.reload()
        return target

    def wait(self) -> None:
        """Until everything is on disk and its files' hashes are noted; raises what went wrong in the background."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None
        self.manager.wait()
        self._note_hashes()

    def _finish(self, written: Any) -> None:
        written.result()
        self._note_hashes()

    def _note_hashes(self) -> None:
        """Beside every checkpoint that has none yet."""
        for step in self.steps() if hosts.is_first() else ():
            if not self._digests(step).exists():
                found = (self.folder / str(step)).rglob("*")
                files = [file for file in found if file.is_file() and "digests" not in file.name]
                digests = {str(file.relative_to(self.folder / str(step))): _hash(file) for file in files}
                write_whole(self._digests(step), json.dumps({"step": step, "files": digests}))

    def _metadata(self, step: int) -> Any:
        return ocp.metadata(self.folder / str(step), checkpointable_name=STATE)

    def _loss(self, step: int) -> float | None:
        """The held-out loss that was saved with a checkpoint, from the JSON that orbax writes it to."""
        file = self.folder / str(step) / "metrics" / "metrics"
        try:
            return float(json.loads(file.read_text(encoding="utf-8"))[METRIC]) if file.exists() else None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamageError(f"metrics/metrics does not hold a {METRIC}: {error}") from error

    def _check_fit(self, step: int, like: Any) -> None:
        """
        Raises:
            InputError: the checkpoint lacks an array of `like`, or has it in another shape.
        """
        saved = _shapes(self._metadata(step).metadata)
        parameters_first = sorted(_shapes(like).items(), key=lambda item: not item[0].startswith("params/"))
        for name, shape in parameters_first:
            if saved.get(name) != shape:
                found = f"has {name} in shape {saved[name]}" if name in saved else f"has no {name}"
                advice = "restore the settings that the run began with, or choose another out"
                raise InputError(f"{self.folder / str(step)} {found}, and this run needs {shape}; {advice}")

    def close(self) -> None:
        """Waits and lets go."""
        self.background.shutdown()
        if "manager" in vars(self):
            self.manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not hosts.several() or kind in (None, SystemExit):  # else a process may be gone, for whom this would wait
            self.close()

    def _digests(self, step: int) -> Path:
        """Where the hashes of a checkpoint's files lie: beside its arrays, since damage spares no format."""
        return self.folder / str(step) / "digests.json"


def restore_newest(checkpoints: Checkpoints, like: TrainState, warn: Any) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest checkpoint that is sound; damaged ones are set aside, and `warn` is told. Of those before it only the
    small files are looked at.

    Raises:
        InputError: there are checkpoints, and all are damaged; or the newest does not fit `like`.
    """
    newest: int | None = None
    for step in reversed(checkpoints.steps()):
        fault = checkpoints.fault(step, arrays=newest is None) if hosts.is_first() else None
        if hosts.agreed(fault is not None):
            place = checkpoints.set_aside(step)
            warn(f"checkpoint {step} is damaged ({fault}); moved to {place}")
        elif newest is None:
            newest = step
    if newest is not None:
        return checkpoints.load(newest, like)
    damaged = sorted(path.name for path in checkpoints.folder.parent.glob("damaged_checkpoint_*"))
    if damaged:
        raise InputError(f"{checkpoints.folder.parent}: only {', '.join(damaged)}; start again with another out")
    return None


def _read_digests(file: Path, step: int) -> dict[str, str]:
    """The hash of each file of a checkpoint, by its path in it."""
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))
        files = noted.get("files", noted)  # version 0.1.0 noted the files alone
        outside = [name for name in files if ".." in PurePosixPath(name).parts or name.startswith("/")]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DamageError(f"{file.name} does not hold hashes: {error}") from error
    if not files or not isinstance(files, dict):
        raise DamageError(f"{file.name} does not hold hashes by file")
    if outside or noted.get("step", step) != step:
        raise DamageError(f"{file.name} belongs to another checkpoint")
    return files


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every array in a tree, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


def _empty(like: Any) -> Any:
    """Host arrays to load into, where no sharding says otherwise."""
    sharded = lambda x: isinstance(x, jax.ShapeDtypeStruct) and x.sharding is not None  # noqa: E731
    return jax.tree.map(lambda x: x if sharded(x) else np.empty(x.shape, x.dtype), like)


def _tree(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state, "key": state.key}
