"""Checkpoints of a run: written in the background, moved into place at the end, the newest few and the best kept."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bertgpt.errors import InputError
from train import hosts
from train.state import TrainState

METRIC = "loss"  # the held-out one; the lowest is the best


class Checkpoints:
    """The numbered checkpoints in a folder. What is not an array (row, config, tokenizer) lies beside the arrays."""

    def __init__(self, folder: Path, keep: int, read_only: bool = False) -> None:
        """Opens or makes the folder; unless `read_only`, half-written checkpoints of a killed run are removed."""
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what goes wrong is raised; the log would repeat it
        self.folder = folder.absolute()
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        self.manager = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            cleanup_tmp_directories=not read_only,
        )

    def save(self, step: int, state: TrainState, extra: dict[str, Any], loss: float | None) -> None:
        """Copies the state to the host and writes it in the background; first an earlier write is finished and hashed.

        Args:
            step: its number.
            state: as `Strategy.saved` gives it.
            extra: JSON values.
            loss: the held-out loss at this step; None where it was not measured: never the best.
        """
        metrics = None if loss is None else {METRIC: loss}
        self.wait()
        self.manager.save_async(step, _tree(state), force=True, metrics=metrics, custom_metadata=extra)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return [checkpoint.step for checkpoint in self.manager.checkpoints]

    def best(self) -> int | None:
        """The step of lowest held-out loss, or the newest where none has one."""
        scored = [(c.metrics[METRIC], c.step) for c in self.manager.checkpoints if c.metrics]
        return min(scored)[1] if scored else max(self.steps(), default=None)

    def verify(self, step: int) -> None:
        """
        Raises:
            ValueError: a file of the checkpoint is not what was written; names it.
        """
        digests = self._digests(step)
        if digests.exists():  # a run that is killed in the moment between leaves a checkpoint without
            for name, expected in json.loads(digests.read_text(encoding="utf-8")).items():
                file = self.folder / str(step) / name
                if not file.is_file() or _hash(file) != expected:
                    raise ValueError(f"{name} is missing or changed")

    def fault(self, step: int) -> Exception | None:
        """What `verify` raises, if it tells of damage."""
        try:
            self.verify(step)
        except Exception as error:
            if not is_damage(error):
                raise
            return error
        return None

    def load(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the extra values of one checkpoint.

        Args:
            step: its number.
            like: a state whose shapes it must have: `jax.ShapeDtypeStruct`s, each with a sharding, which it is read
                into, or without one, for an array on the host.
        """
        tree = self.manager.load(step, _tree(_empty(like)))
        return TrainState(**tree), self.extra(step)

    def load_params(self, step: int, like: Any) -> Any:
        """The parameters alone."""
        partial = ocp.options.PyTreeOptions(loading=ocp.options.PyTreeOptions.Loading(partial_load=True))
        with ocp.Context(pytree_options=partial):
            return self.manager.load(step, {"params": _empty(like)})["params"]

    def extra(self, step: int) -> dict[str, Any]:
        """The JSON values saved with a checkpoint."""
        return self.manager.metadata(step).custom_metadata

    def set_aside(self, step: int) -> Path:
        """Moves a damaged checkpoint out of the way, so that its step can be saved again; nothing is deleted."""
        target = self.folder.parent / f"damaged_checkpoint_{step}"
        if hosts.is_first():
            while target.exists():
                target = target.with_name(target.name + "_again")
            (self.folder / str(step)).rename(target)
        hosts.sync(f"checkpoint {step} set aside")
        self.manager.reload()
        return target

    def wait(self) -> None:
        """Until everything is on disk and its files' hashes are noted; raises what went wrong in the background."""
        self.manager.wait()
        for step in self.steps() if hosts.is_first() else ():
            if not self._digests(step).exists():
                found = (self.folder / str(step)).rglob("*")
                files = [file for file in found if file.is_file() and file.stem != "digests"]
                digests = {str(file.relative_to(self.folder / str(step))): _hash(file) for file in files}
                temporary = self._digests(step).with_suffix(".tmp")
                temporary.write_text(json.dumps(digests), encoding="utf-8")
                temporary.replace(self._digests(step))

    def close(self) -> None:
        """Waits and lets go."""
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
    """The newest checkpoint that can be read; damaged ones are set aside, and `warn` is told.

    Raises:
        InputError: there are checkpoints, and all are damaged.
    """
    for step in reversed(checkpoints.steps()):
        fault: Any = checkpoints.fault(step) if hosts.is_first() else None
        if not hosts.agreed(fault is not None):
            try:
                return checkpoints.load(step, like)
            except Exception as error:
                if hosts.several() or not is_damage(error):
                    raise
                fault = error
        place = checkpoints.set_aside(step)
        warn(f"checkpoint {step} is damaged ({_first_line(fault)}); moved to {place}, going on from the one before")
    damaged = sorted(path.name for path in checkpoints.folder.parent.glob("damaged_checkpoint_*"))
    if damaged:
        raise InputError(f"{checkpoints.folder.parent}: only {', '.join(damaged)}; start again with another out")
    return None


def is_damage(error: Exception) -> bool:
    """Whether a failed load tells of its files: the storage raises many kinds, but memory and rights are no damage."""
    return not isinstance(error, MemoryError | PermissionError) and "RESOURCE_EXHAUSTED" not in str(error)


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


def _empty(like: Any) -> Any:
    """Host arrays to load into, where no sharding says otherwise."""
    sharded = lambda x: isinstance(x, jax.ShapeDtypeStruct) and x.sharding is not None  # noqa: E731
    return jax.tree.map(lambda x: x if sharded(x) else np.empty(x.shape, x.dtype), like)


def _tree(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state, "key": state.key}


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
