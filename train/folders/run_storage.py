"""Where a run's files are: in a local folder, in a local folder with a mirror at an address, or in a bucket.

A run in a bucket has a working folder in the user's cache. Its small files are copied to the bucket before each
checkpoint is marked as complete, and at the end; its checkpoints are written to the bucket alone.
"""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from bertgpt.errors import InputError

from .. import addresses, hosts
from ..addresses import Remote
from ..reports import warn
from ..sections import RunConfig
from .bucket_checkpoints import BucketCheckpoints
from .checkpoints import Checkpoints, DamageError, loss_of
from .mirror import Mirror, SmallFiles, complete_steps, download_checkpoint

STATE = ("config.yaml", "tokenizer.json", "metrics.jsonl", "tracking.json")  # what a resumed run reads
OWNER = "owner"  # which run may complete checkpoints in a bucket


class RunStorage:
    """The files of the run in `config.out`.

    Attributes:
        out: the folder on this machine.
    """

    def __init__(self, config: RunConfig) -> None:
        """
        Raises:
            InputError: out and checkpoint.mirror conflict, or a package is missing.
        """
        self.config, self.out = config, addresses.local(config.out)
        self.token = secrets.token_hex(16).encode()
        self.small: SmallFiles | None = None
        self.mirror: Mirror | None = None
        if addresses.is_address(config.out):
            self.small = SmallFiles(self.out, Remote(config.out, "out"))
            if config.checkpoint.mirror is not None:
                raise InputError(
                    f"checkpoint.mirror is for a local out, and out is {config.out}; add checkpoint.mirror=null"
                )
        elif config.checkpoint.mirror is not None:
            self.mirror = Mirror(self.out, Remote(config.checkpoint.mirror, "checkpoint.mirror"), config)

    def check(self) -> None:
        """Check, before any work, that the address can be written and that all processes share `config.out`.

        Raises:
            InputError: it cannot, or they do not.
        """
        for files in (self.small, self.mirror and self.mirror.small):
            if files is not None:
                files.remote.check_writable()
        hosts.check_shared(addresses.shared(self.config.out))

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Get what the address has of the run; at the end copy the small files to it, also after an error."""
        if self.small is not None:
            self._pull()
        elif self.mirror is not None:
            hosts.after_first(self.out, self.mirror.restore, "waiting for the first process, which restores the run")
        hosts.sync("the run's files are here")
        try:
            yield
        finally:
            self._push_last()

    def _pull(self) -> None:
        """Replace the small files here by those in the bucket, and become the run that may write there."""
        assert self.small is not None
        for name in STATE:
            content = self.small.remote.read(name)
            if content is None:
                (self.out / name).unlink(missing_ok=True)
            else:
                (self.out / name).write_bytes(content)
                self.small.note(self.out / name)
        if hosts.is_first():
            self.small.remote.write(OWNER, self.token)

    def _push_last(self) -> None:
        try:
            if self.mirror is not None and hosts.is_first():
                self.mirror.push()
            if self.small is not None and self._owns():
                self.small.push(everything=hosts.is_first())
        except InputError as error:
            warn(str(error))

    def _owns(self) -> bool:
        assert self.small is not None
        return not hosts.is_first() or self.small.remote.read(OWNER) == self.token

    def _before_commit(self) -> None:
        """
        Raises:
            InputError: another run has begun to write to the bucket.
        """
        assert self.small is not None
        if not self._owns():
            raise InputError(
                f"{self.config.out}: another run has begun to write there, so this one ends; it has lost "
                "nothing that the other one cannot make again"
            )
        self.small.push()

    def checkpoints(self, keep: int = 1) -> Checkpoints:
        """The checkpoints of the run."""
        if self.small is not None:
            return BucketCheckpoints(self.config.out, keep, self._before_commit)
        copy = self.mirror.push if self.mirror is not None else lambda: None
        return Checkpoints(self.out / "checkpoints", keep, copy)


def fetched(address: str, step: int | None = None) -> Path:
    """Copy a run with one checkpoint, or a model folder, from an address to this machine; returns the copy.

    It is removed when the process ends.

    Args:
        address: of the folder.
        step: of the checkpoint; None: the best, or the newest if none was evaluated. A damaged one is passed over, with
            a warning.

    Raises:
        InputError: there is neither a run with an intact checkpoint nor a model.
    """
    remote, here = Remote(address), addresses.copied(address)
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    if remote.info("config.yaml") is None:
        _fetch_model(remote, here)
        return here
    _fetch_small(remote, here)
    steps = complete_steps(remote)
    if not steps:
        raise InputError(f"{address}: no checkpoint yet; train until the first checkpoint, or lower checkpoint.every")
    if step is not None and step not in steps:
        raise InputError(f"{address}: no checkpoint {step}; there are {', '.join(map(str, steps))}")
    for number in [step] if step is not None else _best_first(remote, steps):
        try:
            download_checkpoint(remote, number, here / "checkpoints")
        except DamageError as error:
            warn(f"checkpoint {number} of {address} is damaged: {error}")
        else:
            return here
    raise InputError(f"{address}: no intact checkpoint; choose another step, or train again with another out")


def fetched_small(address: str) -> Path:
    """Copy the configuration, tokenizer and metrics of a run from an address to this machine, as `fetched`."""
    here = addresses.copied(address)
    _fetch_small(Remote(address), here)
    return here


def _fetch_small(remote: Remote, here: Path) -> None:
    for name in STATE:
        with contextlib.suppress(FileNotFoundError):
            remote.download(name, here / name)


def _fetch_model(remote: Remote, here: Path) -> None:
    if remote.info("config.json") is None:
        raise InputError(f"{remote.address}: neither a run folder (no config.yaml) nor a model folder (no config.json)")
    for name in remote.files():
        if "/" not in name and name != "..":
            remote.download(name, here / name)


def _best_first(remote: Remote, steps: list[int]) -> list[int]:
    """The checkpoint with the lowest selection loss, and then the others, the newest first."""
    losses = {}
    for step in steps:
        with contextlib.suppress(DamageError):
            losses[step] = loss_of(remote.read(f"checkpoints/{step}/metrics/metrics"))
    scored = [(loss, step) for step, loss in losses.items() if loss is not None]
    best = min(scored)[1] if scored else max(steps)
    return sorted(steps, key=lambda step: (step != best, -step))
