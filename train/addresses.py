"""Folders at addresses, such as gs://bucket/run: their copies on this machine, and reading and writing their files.

A write to a bucket is visible when it is complete, and there is no rename. Listings are never taken from a cache, and
nothing relies on them alone: what is complete is decided by files that are read by name.
"""

import atexit
import base64
import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import google_crc32c

from bertgpt.errors import ADDRESS, InputError
from bertgpt.hub import HUB_ADDRESS

from .atomic_files import user_cache, whole_file

GS = re.compile(r"gs://[a-z0-9][\w.-]*/[\w.=@+,-][\w./=@+,-]*")  # others are patterns to orbax, or versions to gcsfs
BLOCK = 16 << 20  # bytes read at a time
MOST_SMALL = 1 << 28  # bytes of a file that is read into memory
LOGIN = "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS"


class Info(NamedTuple):
    """A file at an address: its size in bytes, and its CRC-32C in base64 if the service computes it."""

    size: int
    crc32c: str | None


def is_address(folder: str | Path) -> bool:
    """Whether a folder is an address, not a path."""
    return ADDRESS.match(str(folder)) is not None


def is_storage(folder: str | Path) -> bool:
    """Whether a folder is an address that is not one of the Hugging Face hub, whose models are given by name."""
    return is_address(folder) and HUB_ADDRESS.match(str(folder)) is None


def check_run_address(key: str, value: str) -> None:
    """Check a folder that a run writes to: a local one, or one in a bucket of Google Cloud Storage.

    Raises:
        InputError: it is another address.
    """
    if not is_address(value) or GS.fullmatch(value):
        return
    if value.startswith("gs:"):
        raise InputError(
            f"{key} is {value}; give a folder in a bucket, such as gs://bucket/runs/mine; its name may have letters, "
            "digits and ./=@+,-_"
        )
    raise InputError(
        f"{key} is {value}; a run writes to a local folder or to gs://bucket/folder. For other storage, give a local "
        f"{key} and checkpoint.mirror={value}, where each checkpoint is copied"
    )


def check_mirror(key: str, value: str) -> None:
    """Check an address that checkpoints are copied to.

    Raises:
        InputError: it is none, or names no folder.
    """
    if not re.fullmatch(r"[a-z][\w+.-]*://[^/]*/[^/].*", value) or "::" in value:
        raise InputError(f"{key} is {value}; give an address, such as s3://bucket/runs/mine")


def local(folder: str | Path, kind: str = "runs") -> Path:
    """The folder itself; for an address, the folder in the user's cache that holds its files on this machine.

    `kind` keeps copies for different uses apart.
    """
    if not is_address(folder):
        return Path(folder)
    address = str(folder).rstrip("/")
    unique = hashlib.sha256(address.encode()).hexdigest()[:16]
    return user_cache() / "addresses" / f"{kind}-{unique}" / PurePosixPath(address).name


def copied(folder: str | Path) -> Path:
    """The folder itself; for an address, where this process copies what it reads from there, until it ends."""
    if not is_address(folder):
        return Path(folder)
    here = local(folder, f"read-{os.getpid()}")
    atexit.register(shutil.rmtree, here.parent, ignore_errors=True)
    return here


def shared(folder: str | Path) -> Path:
    """The folder as a path that all processes of a run share: a `pathlib.Path`, or etils' path of an address."""
    if not is_address(folder):
        return Path(folder)
    from etils import epath

    _prepare_google()
    return epath.Path(str(folder))  # type: ignore[return-value]


def _prepare_google() -> None:
    """Let gcsfs, which etils uses too, keep no listings, and keep its log off the console."""
    import fsspec

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    for name in ("gcsfs", "google.auth"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Remote:
    """The files of a folder at an address, by names relative to it. Every error is an `InputError` of one line."""

    def __init__(self, address: str, key: str = "") -> None:
        """
        Args:
            address: of the folder.
            key: the configuration's key that has the address, for messages.

        Raises:
            InputError: a package is missing, or the kind of address is unknown.
        """
        self.address, self.key = address.rstrip("/"), f"{key} is " if key else ""
        try:
            import fsspec

            if address.startswith("gs:"):
                _prepare_google()
                import google.cloud.storage  # noqa: F401  Orbax uses it
            self.system, root = fsspec.core.url_to_fs(self.address, use_listings_cache=False)
        except ImportError as error:
            raise InputError(f"{self.key}{self.address}: {_package(address, error)}") from error
        except Exception as error:  # each file system raises its own exceptions
            raise InputError(f"{self.key}{self.address}: cannot be used: {reason(error)}") from error
        self.root = root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    @contextlib.contextmanager
    def _doing(self, what: str, name: str) -> Iterator[None]:
        """Raise any error of the body as an `InputError`, except that a file is missing."""
        try:
            yield
        except (InputError, FileNotFoundError):
            raise
        except Exception as error:  # each file system raises its own exceptions
            place = f"{self.address}/{name}" if name else self.address
            raise InputError(f"{self.key}{place}: cannot be {what}: {reason(error)}") from error

    def info(self, name: str) -> Info | None:
        """The size and checksum of a file; None if there is no such file."""
        try:
            with self._doing("read", name):
                found = self.system.info(self._path(name))
        except FileNotFoundError:
            return None
        return None if found["type"] == "directory" else _info(found)

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if there is no such file.

        Raises:
            InputError: it is large, or cannot be read.
        """
        found = self.info(name)
        if found is None:
            return None
        if found.size > MOST_SMALL:
            raise InputError(f"{self.address}/{name}: {found.size:,} bytes, too large for this file")
        try:
            with self._doing("read", name):
                return self.system.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        with self._writing(name):
            self.system.pipe_file(self._path(name), content)

    def upload(self, file: Path, name: str) -> None:
        """Copy a local file to a name."""
        with self._writing(name):
            self.system.put_file(str(file), self._path(name))

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Make the folder of a file, and raise any error of the body as an `InputError`."""
        try:
            with self._doing("written", name):
                if self.system.protocol in ("file", ("file", "local")):  # buckets have no folders
                    self.system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
                yield
        except FileNotFoundError as error:
            raise InputError(f"{self.key}{self.address}: there is no such bucket: {reason(error)}") from error

    def download(self, name: str, file: Path) -> tuple[str, str]:
        """Copy a file to a local one, which appears when it is complete; its folder is created.

        Returns:
            Its BLAKE2b in hexadecimal, and its size and CRC-32C as in `Info`, as one text; both of the bytes received.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it cannot be read.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        blake, crc, size = hashlib.blake2b(), google_crc32c.Checksum(), 0
        with self._doing("read", name), whole_file(file) as target:
            self.system.info(self._path(name))  # of some file systems, open finds out too late that there is no file
            with self.system.open(self._path(name), "rb", block_size=BLOCK) as source:
                while block := source.read(BLOCK):
                    target.write(block)
                    blake.update(block)
                    crc.update(block)
                    size += len(block)
        return blake.hexdigest(), stamp(Info(size, base64.b64encode(crc.digest()).decode()))

    def files(self, folder: str = "") -> dict[str, Info]:
        """All files in a folder at any depth, by their names in it, as a listing shows them."""
        root = self._path(folder)
        try:
            with self._doing("listed", folder):
                found = self.system.find(root, detail=True)
        except FileNotFoundError:
            return {}
        inside = {path: info for path, info in found.items() if info["type"] == "file" and not path.endswith("/")}
        prefix = root.lstrip("/") + "/"
        return {path.lstrip("/").removeprefix(prefix): _info(info) for path, info in inside.items()}

    def folders(self, folder: str = "") -> list[str]:
        """The names of the folders in a folder, as a listing shows them."""
        try:
            with self._doing("listed", folder):
                found = self.system.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        return [PurePosixPath(info["name"]).name for info in found if info["type"] == "directory"]

    def copy(self, source: str, target: str) -> None:
        """Copy a file within the folder, without downloading it."""
        with self._writing(target):
            self.system.cp_file(self._path(source), self._path(target))

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        with contextlib.suppress(FileNotFoundError), self._doing("removed", name):
            self.system.rm_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Remove all files of a folder that a listing shows."""
        with contextlib.suppress(FileNotFoundError), self._doing("removed", name):
            self.system.rm(self._path(name), recursive=True)

    def check_writable(self) -> None:
        """Check that files can be written, read and removed.

        Raises:
            InputError: the bucket is missing, or there are no credentials or no permission.
        """
        name = f".check_{secrets.token_hex(8)}"
        self.write(name, b"bertgpt")
        if self.read(name) != b"bertgpt":
            raise InputError(f"{self.key}{self.address}: a file that was written cannot be read")
        self.remove(name)


def stamp(info: Info) -> str:
    """The size and checksum of a file as one text."""
    return f"{info.size} {info.crc32c}"


def _info(found: dict[str, Any]) -> Info:
    return Info(int(found["size"]), found.get("crc32c"))


def _package(address: str, error: ImportError) -> str:
    scheme = address.partition(":")[0]
    known = {"gs": "'bertgpt[gcs]'", "s3": "'bertgpt[s3]'"}
    remedy = f"pip install {known[scheme]}" if scheme in known else "install that package"
    return f"{scheme}:// needs a package that is missing ({error.name or error}): {remedy}"


def reason(error: BaseException) -> str:
    """An error of a file system as a short text, with advice on credentials and permissions."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    low = f"{type(error).__name__} {text}".lower()
    if "credential" in low or "401" in low or "unauthorized" in low or "anonymous caller" in low:
        return f"no valid credentials ({text}); for gs://: {LOGIN}"
    if isinstance(error, PermissionError) or "forbidden" in low or "403" in low or "access denied" in low:
        return f"no permission ({text}); grant this account the right to read, write and delete objects"
    return text
