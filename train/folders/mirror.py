"""Copies of a run's files at an address: the small files, and for `checkpoint.mirror` each complete checkpoint."""

import copy
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bertgpt.errors import InputError

from .. import config as configs
from ..addresses import Remote
from ..reports import say, warn
from ..sections import RunConfig
from .checkpoints import DIGESTS, Checkpoints, DamageError, parse_digests

LARGE = ("checkpoints", "store", "encoded")  # folders of a run that are not copied as small files
OTHERS = ("stalled_*.txt", "profile/**/*")  # what processes other than the first write


class SmallFiles:
    """Copies the small files of a folder to an address: each one that changed since the last time."""

    def __init__(self, folder: Path, remote: Remote) -> None:
        self.folder, self.remote = folder, remote
        self.copied: dict[Path, tuple[int, int]] = {}  # size and modification time (ns)

    def push(self, everything: bool = True) -> None:
        """Copy the files that changed; not `everything`: only those that each process writes for itself.

        Raises:
            InputError: a file cannot be written.
        """
        for file in self._files() if everything else self._own():
            if self.copied.get(file) != _version(file):
                version = _version(file)  # of before: a row may be added meanwhile
                self.remote.upload(file, file.relative_to(self.folder).as_posix())
                self.copied[file] = version

    def note(self, file: Path) -> None:
        """Take a file as copied."""
        self.copied[file] = _version(file)

    def _files(self) -> Iterator[Path]:
        for file in sorted(self.folder.rglob("*")):
            parts = file.relative_to(self.folder).parts
            hidden = any(part.startswith(".") for part in parts)
            if not hidden and parts[0] not in LARGE and not parts[0].startswith("damaged_") and file.is_file():
                yield file

    def _own(self) -> Iterator[Path]:
        return (file for pattern in OTHERS for file in self.folder.glob(pattern) if file.is_file())


def _version(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


class Mirror:
    """Keeps the complete checkpoints and the small files of a run at an address too, and restores them from there."""

    def __init__(self, out: Path, remote: Remote, config: RunConfig) -> None:
        self.out, self.remote, self.config = out, remote, config
        self.small = SmallFiles(out, remote)
        self.local = Checkpoints(out / "checkpoints")
        self.known: set[int] | None = None  # complete at the address
        self.lock = threading.Lock()

    def push(self) -> None:
        """Copy what is new; a checkpoint's hashes go last. An error is a warning: the next call tries again."""
        with self.lock:
            try:
                self._push()
            except InputError as error:
                warn(f"{error}; tried again at the next checkpoint, or when the command is run again")

    def _push(self) -> None:
        if self.known is None:
            self.known = set(self._complete())
        here = {step for step in self.local.steps() if (self._folder(step) / DIGESTS).exists()}
        for step in sorted(here - self.known):
            for name in parse_digests((self._folder(step) / DIGESTS).read_bytes(), step):
                self.remote.upload(self._folder(step) / name, f"checkpoints/{step}/{name}")
        self.small.push()
        for step in sorted(here - self.known):
            self.remote.upload(self._folder(step) / DIGESTS, f"checkpoints/{step}/{DIGESTS}")
            self.known.add(step)
        for step in sorted(step for step in self.known - here if step < max(here)):
            self.remote.remove(f"checkpoints/{step}/{DIGESTS}")
            self.remote.remove_folder(f"checkpoints/{step}")
            self.known.discard(step)

    def restore(self) -> bool:
        """Copy each complete checkpoint that is newer than those here, and then the small files; returns True.

        A damaged checkpoint is left out, with a warning.

        Raises:
            InputError: the address has a run with other settings, or cannot be read.
        """
        self._check_same_run()
        newest = max(self.local.steps(), default=-1)
        restored = [step for step in self._complete() if step > newest and self._restore(step)]
        if restored:
            for name in self.remote.files():
                parts = PurePosixPath(name).parts
                if parts[0] not in LARGE and ".." not in parts:
                    self.remote.download(name, self.out / name)
            say(f"restored from {self.remote.address}: checkpoints {', '.join(map(str, restored))}")
        return True

    def _restore(self, step: int) -> bool:
        try:
            download_checkpoint(self.remote, step, self.out / "checkpoints")
        except DamageError as error:
            warn(f"checkpoint {step} of {self.remote.address} is damaged: {error}")
            return False
        return True

    def _check_same_run(self) -> None:
        file = self.out / ".mirrored_config.yaml"
        if not self._complete() or self.remote.info("config.yaml") is None:
            return
        try:
            self.remote.download("config.yaml", file)
            old, current = configs.load(str(file)), copy.deepcopy(self.config)
        finally:
            file.unlink(missing_ok=True)
        configs.keep_decided(old, current)
        if differing := configs.differences(old, current):
            raise InputError(
                f"checkpoint.mirror is {self.remote.address}, which has a run with different settings: "
                f"{', '.join(differing)}; restore them, or choose another address"
            )

    def _complete(self) -> list[int]:
        return complete_steps(self.remote)

    def _folder(self, step: int) -> Path:
        return self.local.folder / str(step)


def complete_steps(remote: Remote) -> list[int]:
    """The steps of the complete checkpoints of a run at an address, ascending."""
    names = [name for name in remote.folders("checkpoints") if name.isdecimal()]
    return sorted(int(name) for name in names if remote.info(f"checkpoints/{name}/{DIGESTS}"))


def download_checkpoint(remote: Remote, step: int, folder: Path) -> None:
    """Copy a checkpoint to FOLDER/STEP, which appears when it is complete. Each file is hashed while it is written.

    Raises:
        DamageError: a file is missing or changed.
        InputError: a file cannot be read.
    """
    digests = parse_digests(remote.read(f"checkpoints/{step}/{DIGESTS}") or b"", step)
    temporary = folder / f".{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    hashes = {}
    try:
        for name, expected in digests.items():
            try:
                found = remote.download(f"checkpoints/{step}/{name}", temporary / name)
            except FileNotFoundError:
                raise DamageError(f"{name} is missing") from None
            if expected not in found:
                raise DamageError(f"{name} is changed")
            hashes[name] = found[0]
        (temporary / DIGESTS).write_text(json.dumps({"step": step, "files": hashes}))
        temporary.rename(folder / str(step))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
