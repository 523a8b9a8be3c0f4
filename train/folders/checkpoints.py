"""Checkpoints of a run, written atomically in the background; the newest few and the best are kept.

Each checkpoint contains the hashes of its files. It is damaged if and only if a file differs from its hash; other
errors while a checkpoint is loaded do not move it away.
"""

import concurrent.futures
import functools
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bertgpt.errors import InputError

from .. import hosts
from ..atomic_files import write_whole
from ..state import TrainState

METRIC = "selection_loss"  # of an evaluation; the lowest is the best
OLD_METRIC = "loss"  # its name in checkpoints of earlier versions
STATE = "state"  # orbax's name for the arrays' folder
DIGESTS = "digests.json"
ARRAYS = "d"  # folders with the values of the arrays; the other files are small


class DamageError(ValueError):
    """A file of a checkpoint is missing or changed."""


class Checkpoints:
    """The numbered checkpoints in a folder: the arrays, and other values (row, config, tokenizer) as JSON."""

    def __init__(self, folder: Path, keep: int = 1, copy: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            folder: created by the first `save`; loading changes nothing.
            keep: number of newest checkpoints to keep, in addition to the best.
            copy: called in the background in the first process, when a checkpoint is complete.
        """
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # errors are raised; the log would repeat them
        self.folder, self.keep, self.copy = folder.absolute(), keep, copy
        self.background = concurrent.futures.ThreadPoolExecutor(1)
        self.pending: concurrent.futures.Future[None] | None = None

    @functools.cached_property
    def manager(self) -> ocp.training.Checkpointer:
        """The orbax checkpointer, which writes and deletes checkpoints.

        When it is created, it loads the metrics of all checkpoints, so these must be intact. It removes incomplete
        checkpoints of a killed run.
        """
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=_selection_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        policy = policies.AnyPreservationPolicy([policies.LatestN(self.keep), best])
        return ocp.training.Checkpointer(self.folder, preservation_policy=policy, cleanup_tmp_directories=True)

    def save(self, step: int, state: TrainState, extra: dict[str, Any], selection_loss: float | None) -> None:
        """Copy the state to the host, then write and hash it in the background; waits for an earlier save.

        Args:
            step: number of the checkpoint.
            state: the result of `Strategy.to_checkpoint`.
            extra: JSON values.
            selection_loss: of the evaluation at this step; None: not evaluated, so never the best.
        """
        metrics = None if selection_loss is None else {METRIC: selection_loss}
        self.wait()
        written = self.manager.save_async(step, tree(state), force=True, metrics=metrics, custom_metadata=extra)
        self.pending = self.background.submit(self._finish, written, step)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, ascending."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdecimal() and path.is_dir())

    def best(self) -> int | None:
        """The intact checkpoint with the lowest selection loss, or the newest if none was evaluated; else None."""
        sound = [step for step in self.steps() if self.fault(step, arrays=False) is None]
        scored = [(loss, step) for step in sound if (loss := self._loss(step)) is not None]
        return min(scored)[1] if scored else max(sound, default=None)

    def verify(self, step: int, arrays: bool = True) -> None:
        """Compare the files of a checkpoint with their hashes.

        Args:
            step: number of the checkpoint.
            arrays: False: only the small files, without the values of the arrays.

        Raises:
            DamageError: a file is missing or changed; the error names it.
            OSError: a file cannot be read.
        """
        digests = self._digests(step)
        if not digests.exists():  # the run was killed before it wrote the hashes
            self._loss(step)  # only the format of the metric can be checked
            return
        for name, expected in parse_digests(digests.read_bytes(), step).items():
            file = self.folder / str(step) / name
            if (arrays or ARRAYS not in PurePosixPath(name).parts) and not (file.is_file() and _hash(file) == expected):
                raise DamageError(f"{name} is missing or changed")

    def fault(self, step: int, arrays: bool = True) -> DamageError | None:
        """The error that `verify` raises for a damaged checkpoint; None if it is intact."""
        try:
            self.verify(step, arrays)
        except DamageError as error:
            return error
        return None

    def load(self, step: int, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Load the state and the extra values of one checkpoint.

        Args:
            step: number of the checkpoint.
            abstract_state: a state of `jax.ShapeDtypeStruct`s with the expected shapes. An array is loaded with its
                sharding, or to the host if it has none.

        Raises:
            InputError: the checkpoint lacks an array or has another shape; the error names the first.
        """
        self._check_fit(step, tree(abstract_state))
        loaded = ocp.load(self.folder / str(step), tree(_empty(abstract_state)), checkpointable_name=STATE)
        return TrainState(**loaded), self.extra(step)

    def load_params(self, step: int, abstract_state: Any) -> Any:
        """Load only the parameters; errors as in `load`."""
        self._check_fit(step, {"params": abstract_state})
        partial = ocp.options.PyTreeOptions(loading=ocp.options.PyTreeOptions.Loading(partial_load=True))
        with ocp.Context(pytree_options=partial):
            wanted = {"params": _empty(abstract_state)}
            return ocp.load(self.folder / str(step), wanted, checkpointable_name=STATE)["params"]

    def extra(self, step: int) -> dict[str, Any]:
        """The JSON values saved with a checkpoint."""
        return self._metadata(step).custom_metadata

    def set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so its step can be saved again, and return its new path; nothing is deleted."""
        target = self.folder.parent / f"damaged_checkpoint_{step}"
        if hosts.is_first():
            while target.exists():
                target = target.with_name(target.name + "_again")
            (self.folder / str(step)).rename(target)
        hosts.sync(f"checkpoint {step} set aside")
        if "manager" in vars(self):
            self.manager.reload()
        return target

    def damaged(self) -> list[str]:
        """The names of the folders that `set_aside` made."""
        return sorted(path.name for path in self.folder.parent.glob("damaged_checkpoint_*"))

    def wait(self) -> None:
        """Wait until all checkpoints and their hashes are on disk; raise an error of the background thread."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None
        self.manager.wait()
        self._note_hashes()

    def _finish(self, written: Any, step: int) -> None:
        """Complete a checkpoint, in the background."""
        written.result()
        self._note_hashes()
        if hosts.is_first():
            self.copy()

    def _note_hashes(self) -> None:
        """Write the hashes of each checkpoint that has none."""
        for step in self.steps() if hosts.is_first() else ():
            if not self._digests(step).exists():
                found = (self.folder / str(step)).rglob("*")
                files = [file for file in found if file.is_file() and "digests" not in file.name]
                digests = {str(file.relative_to(self.folder / str(step))): _hash(file) for file in files}
                write_whole(self._digests(step), json.dumps({"step": step, "files": digests}))

    def _metadata(self, step: int) -> Any:
        return ocp.metadata(self.folder / str(step), checkpointable_name=STATE)

    def _loss(self, step: int) -> float | None:
        """The selection loss of a checkpoint; None if it was not evaluated."""
        return loss_of(self._read(step, "metrics/metrics"))

    def _read(self, step: int, name: str) -> bytes | None:
        """The content of a small file of a checkpoint; None if it is missing."""
        file = self.folder / str(step) / name
        return file.read_bytes() if file.exists() else None

    def _check_fit(self, step: int, abstract_state: Any) -> None:
        """
        Raises:
            InputError: the checkpoint lacks an array of `abstract_state`, or it has another shape.
        """
        saved = shapes(self._metadata(step).metadata)
        parameters_first = sorted(shapes(abstract_state).items(), key=lambda item: not item[0].startswith("params/"))
        for name, shape in parameters_first:
            if saved.get(name) != shape:
                found = f"has {name} in shape {saved[name]}" if name in saved else f"has no {name}"
                advice = "restore the run's settings, or choose another out"
                raise InputError(f"{self.folder / str(step)} {found}, and this run needs {shape}; {advice}")

    def close(self) -> None:
        """Wait for the background thread and close the checkpointer."""
        self.background.shutdown()
        if "manager" in vars(self):
            self.manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not hosts.several() or kind in (None, SystemExit):  # else this might wait for a process that has exited
            self.close()

    def _digests(self, step: int) -> Path:
        """The file with the hashes of a checkpoint's files, in the folder of the checkpoint."""
        return self.folder / str(step) / DIGESTS


def restore_newest(
    checkpoints: Checkpoints, abstract_state: TrainState, warn: Any
) -> tuple[TrainState, dict[str, Any]] | None:
    """Load the newest intact checkpoint; None if there is no checkpoint.

    Damaged checkpoints are set aside with a warning. Of the checkpoints before the newest intact one, only the small
    files are checked.

    Raises:
        InputError: all checkpoints are damaged, or the newest intact one does not fit `abstract_state`.
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
        return checkpoints.load(newest, abstract_state)
    if damaged := checkpoints.damaged():
        raise InputError(
            f"{checkpoints.folder.parent}: all checkpoints are damaged ({', '.join(damaged)}); use another out"
        )
    return None


def loss_of(content: bytes | None) -> float | None:
    """The selection loss in the content of metrics/metrics, a JSON file that orbax writes; None without a file.

    Raises:
        DamageError: it has another form.
    """
    try:
        return None if content is None else float(_selection_loss(json.loads(content)))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError(f"metrics/metrics has no {METRIC}: {error}") from error


def parse_digests(content: bytes, step: int) -> dict[str, str]:
    """The hash of each file of a checkpoint, by its relative path, from the content of its digests.json.

    Raises:
        DamageError: it has another form, or is of another checkpoint.
    """
    try:
        noted = json.loads(content.decode())
        files = noted.get("files", noted)  # version 0.1.0 wrote only the files
        outside = [name for name in files if ".." in PurePosixPath(name).parts or name.startswith("/")]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DamageError(f"{DIGESTS} does not contain hashes: {error}") from error
    if not files or not isinstance(files, dict):
        raise DamageError(f"{DIGESTS} does not contain hashes by file")
    if outside or noted.get("step", step) != step:
        raise DamageError(f"{DIGESTS} belongs to another checkpoint")
    return files


def shapes(arrays: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each array in a tree, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


def _empty(abstract_state: Any) -> Any:
    """Replace each array without a sharding by an empty host array to load into."""
    sharded = lambda x: isinstance(x, jax.ShapeDtypeStruct) and x.sharding is not None  # noqa: E731
    return jax.tree.map(lambda x: x if sharded(x) else np.empty(x.shape, x.dtype), abstract_state)


def _selection_loss(metrics: dict[str, Any]) -> Any:
    """The metric of a checkpoint, under its name or its old name."""
    return metrics[METRIC] if METRIC in metrics else metrics[OLD_METRIC]


def tree(state: TrainState) -> dict[str, Any]:
    """What of a state is saved, by name."""
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state, "key": state.key}
