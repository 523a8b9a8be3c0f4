"""Models by name: files of the Hugging Face hub, fetched to its client's cache.

The client is huggingface_hub, which obeys HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT. It is imported when a name
is looked up, so that local folders need neither the client nor a network.
"""

import difflib
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bertgpt.errors import ADDRESS, InputError, check_local

PART = r"(?![-.])[\w.-]{1,96}(?<![-.])"  # of a name; the client has the same rules
NAME = re.compile(rf"(?!.*(--|\.\.))({PART}/)?{PART}(?<!\.git)", re.ASCII)
HUB_ADDRESS = re.compile(
    rf"(?:hf:/+|https?:/+(?:huggingface\.co|hf\.co)/)(?!datasets/|spaces/)({PART}/{PART})", re.ASCII
)
ANCHORS = ("config.json", "tokenizer_config.json", "bert_config.json")  # the first that a model has is fetched first
BUSY = (408, 429)  # HTTP statuses of 400 to 499 after which the same request may succeed


class Snapshot(NamedTuple):
    """One commit of a model on the hub.

    Attributes:
        name: of the model, such as "google-bert/bert-base-uncased".
        commit: its hash.
        folder: of the files that are in the cache.
        files: names of the files of the commit; of those in the cache if the hub cannot be reached.
        unreachable: why the hub cannot be reached; None if it can.
    """

    name: str
    commit: str
    folder: Path
    files: frozenset[str]
    unreachable: str | None = None

    def fetch(self, file: str) -> Path:
        """Download a file unless it is in the cache, and return its path. An interrupted download leaves no file.

        Raises:
            InputError: the model has no such file, or it cannot be downloaded.
        """
        if file not in self.files:
            raise self.lacks(file)
        if self.unreachable is not None:
            return self.folder / file
        try:
            return Path(_client().hf_hub_download(self.name, file, revision=self.commit))
        except Exception as error:  # of the client, of its HTTP library and of the file system
            failed = InputError(f"{self.name}: {file} cannot be downloaded: {_reason(error)}; try again")
            raise _refusal(self.name, self.commit, error) or failed from error

    def lacks(self, what: str) -> InputError:
        """The error for a missing file."""
        if self.unreachable is None:
            return InputError(f"{self.name}: the model on the hub has no {what}")
        return InputError(f"{self.name}: the cache has no {what} of commit {self.commit}, and {self.unreachable}")


class Found(NamedTuple):
    """The local folder of a model or tokenizer, and its commit; None for a folder that was given."""

    folder: Path
    commit: str | None


def find(path: str | Path, revision: str | None, fetch: Callable[[Snapshot], None]) -> Found:
    """Return an existing file or folder, or the folder in the cache of a model that is named.

    A path that exists is returned as it is. Otherwise a string of the form `name` or `owner/name` is looked up on the
    hub; without the hub, in the cache.

    Args:
        path: a path or a name.
        revision: a branch, tag or commit of a named model; None: main.
        fetch: fetches the needed files of the snapshot, the ones without which the rest cannot be loaded last.

    Raises:
        InputError: there is neither such a path nor such a model, or it cannot be fetched; or `revision` is given for a
            path.
    """
    check_folder_or_name("the model", path)
    if not is_name(path):
        if revision is not None:
            raise InputError(f"{path} is a local path, which has no revision {revision}; give no revision")
        if not Path(path).exists():
            raise InputError(f"{path}: no such file or folder{_nearest(Path(path))}")
        return Found(Path(path), None)
    name = str(path)
    snapshot = _open(name, revision)
    fetch(snapshot)
    return Found(snapshot.folder, snapshot.commit)


def is_name(path: str | Path) -> bool:
    """Whether a path is looked up on the hub: a string of the form `name` or `owner/name` that is no local path."""
    return isinstance(path, str) and NAME.fullmatch(path) is not None and not Path(path).exists()


def check_folder_or_name(key: str, value: str | Path) -> None:
    """Reject an address where a local folder or a name is needed; `key` is named in the message.

    Raises:
        InputError: it is an address; for one of a model on the hub, the message gives its name.
    """
    address = HUB_ADDRESS.match(str(value))
    if address:
        raise InputError(f"{key} is {value}, an address; give the model's name, {address[1]}")
    if ADDRESS.match(str(value)):
        check_local(key, value)


def _client() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="bertgpt")


def _open(name: str, revision: str | None) -> Snapshot:
    """The snapshot of a revision: from the hub, or from the cache if the hub cannot be reached."""
    try:
        return _ask(name, revision)
    except InputError:
        raise
    except Exception as error:  # of the client, of its HTTP library and of the file system
        refused = _refusal(name, revision, error)
        if refused is not None:
            raise refused from error
        why = _unreachable(error)
        cached = _cached(name, revision, why)
        if cached is None:
            at = "" if revision is None else f" of revision {revision}"
            raise InputError(
                f"{name}: no such folder, no copy{at} in the hub's cache, and {why}{_nearest(Path(name))}"
            ) from error
        if revision != cached.commit and not _is_offline():
            warnings.warn(f"{name}: {why}; using commit {cached.commit} from the cache", stacklevel=5)
        return cached


def _ask(name: str, revision: str | None) -> Snapshot:
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    client = _client()
    info = client.model_info(name, revision=revision, timeout=HF_HUB_ETAG_TIMEOUT)
    files = {sibling.rfilename for sibling in info.siblings or ()}
    anchor = next((file for file in ANCHORS if file in files), None)
    if anchor is None:
        raise InputError(f"{name}: the model on the hub has none of {', '.join(ANCHORS)}")
    # By its revision: the client then notes in its cache which commit the revision is, for use without a network.
    folder = Path(client.hf_hub_download(name, anchor, revision=revision)).parent
    if folder.name != info.sha:  # the branch has moved on in between
        info = client.model_info(name, revision=folder.name, timeout=HF_HUB_ETAG_TIMEOUT)
        files = {sibling.rfilename for sibling in info.siblings or ()}
    return Snapshot(name, folder.name, folder, frozenset(files))


def _cached(name: str, revision: str | None, why: str) -> Snapshot | None:
    from huggingface_hub import try_to_load_from_cache

    for anchor in ANCHORS:
        file = try_to_load_from_cache(name, anchor, revision=revision)
        if isinstance(file, str):  # else it is not cached, or known not to exist
            folder = Path(file).parent
            return Snapshot(name, folder.name, folder, frozenset(path.name for path in folder.iterdir()), why)
    return None


def _refusal(name: str, revision: str | None, error: Exception) -> InputError | None:
    """The error for a definite answer of the hub; None if the hub could not be asked."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    error = _cause(error)
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, GatedRepoError):
        return InputError(
            f"{name}: access to this model must be granted; ask for it at {ENDPOINT}/{name}, and set HF_TOKEN to a "
            "token of your account"
        )
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"{name}: neither a local folder nor a model on the hub at {ENDPOINT} (for a private model, set HF_TOKEN)"
            f"{_nearest(Path(name))}"
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{name}: the model on the hub has no branch, tag or commit {revision}")
    if 400 <= status < 500 and status not in BUSY:
        return InputError(f"{name}: the hub at {ENDPOINT} rejects the request: {_reason(error)}; check HF_TOKEN")
    return None


def _unreachable(error: Exception) -> str:
    from huggingface_hub.constants import ENDPOINT

    if _is_offline():
        return "HF_HUB_OFFLINE is set"
    return f"the hub cannot be reached at {ENDPOINT} ({_reason(error)})"


def _is_offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return HF_HUB_OFFLINE


def _reason(error: Exception) -> str:
    """The first line of an error."""
    lines = str(_cause(error)).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


def _cause(error: Exception) -> Exception:
    """What went wrong, where the client only says that a file is not in its cache either."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    return cause if isinstance(cause, Exception) else error


def _nearest(path: Path) -> str:
    """A question that names the local folder with the most similar name; empty if none is similar."""
    found = Path(path.anchor)
    try:
        for part in path.parts[len(found.parts) :]:
            if not (found / part).is_dir():
                names = [entry.name for entry in found.iterdir() if entry.is_dir()]
                part = next(iter(difflib.get_close_matches(part, names, 1)), "")
            if not part:
                return ""
            found /= part
    except OSError:  # a folder that may not be read
        return ""
    return f"; did you mean {found}?"
