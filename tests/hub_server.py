"""A loopback server that answers huggingface_hub's client as the Hugging Face hub does.

    with Hub(folder) as hub:
        subprocess.run(command, env=hub.environment(cache))

`folder` has a folder OWNER/NAME per model, with the files of its branch main; other revisions are in
OWNER/NAME@REVISION. A commit is a hash of a model's files: when a file is changed, main moves on, and the commits that
were asked for before can still be fetched. Weights are LFS files, which another host serves, without the token.
`requests` lists what was asked for. To test failures, give faults by model and file:
`hub.faults["OWNER/NAME/model.safetensors"] = Fault(cut=1)`.

The environment is for subprocesses, since the client reads it when it is imported.
"""

import contextlib
import hashlib
import http.server
import json
import os
import re
import threading
from pathlib import Path
from typing import NamedTuple

LFS = (".safetensors", ".bin", ".msgpack")
RESOLVE = re.compile(r"/(?P<name>(?:[^/]+/)?[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
INFO = re.compile(r"/api/models/(?P<name>(?:[^/]+/)?[^/]+?)(?:/revision/(?P<revision>[^/]+))?")
STORED = re.compile(r"/lfs/(?P<name>.+)/(?P<revision>\w+)/(?P<file>[^/]+)")


class Fault(NamedTuple):
    """What is wrong with the answers for a file.

    Attributes:
        status: HTTP status of the answer; 0: none of its own.
        code: its X-Error-Code, such as GatedRepo.
        cut: number of transfers to break in the middle; -1: all.
        more: bytes by which the announced size exceeds the true one.
    """

    status: int = 0
    code: str = ""
    cut: int = 0
    more: int = 0


class Hub(http.server.ThreadingHTTPServer):
    """The server, as a context manager.

    Attributes:
        folder: of the models.
        tokens: the token that a private model needs, by its name.
        moved: the new names of renamed models.
        faults: by model and file; by model alone they concern the information about it.
        requests: methods and paths, in the order in which they came.
        ranges: the headers that asked for a part of a file.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.tokens: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self.faults: dict[str, Fault] = {}
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, cache: Path, **values: str) -> dict[str, str]:
        """The environment of a process that uses this hub, with its cache in this folder."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name}
        ours = {"HF_ENDPOINT": self.address, "HF_HOME": str(cache), "NO_PROXY": "*", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return kept | ours | values

    def files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision, and its files."""
        if (name, revision) in self.commits:
            return revision, self.commits[name, revision]
        folder = self.folder / (name if revision == "main" else f"{name}@{revision}")
        if not folder.is_dir():
            return None
        files = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
        digest = hashlib.sha1()
        for file, content in files.items():
            digest.update(f"{file} {len(content)} ".encode() + content)
        self.commits[name, digest.hexdigest()] = files
        return digest.hexdigest(), files

    def handle_error(self, *_: object) -> None:
        """The client closed its connection; nothing is printed."""

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path))
        path = self.path.partition("?")[0]
        if stored := STORED.fullmatch(path):
            return self.send_stored(*stored.group("name", "revision", "file"))
        found = RESOLVE.fullmatch(path) or INFO.fullmatch(path)
        if found is None:
            return self.refuse(404, "EntryNotFound")
        name, revision, file = found["name"], found["revision"] or "main", found.groupdict().get("file")
        if name in self.server.moved:
            return self.answer(307, b"", {"Location": self.path.replace(name, self.server.moved[name], 1)})
        return self.send_model(name, revision, file)

    def send_model(self, name: str, revision: str, file: str | None) -> None:
        """A file of a model, or the address of a large one; without a file, what is known of the model."""
        token, given = self.server.tokens.get(name), self.headers.get("Authorization")
        if token and given and given != f"Bearer {token}":
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if (token and not given) or self.server.files(name, "main") is None:
            return self.refuse(401, "RepoNotFound")  # the same answer, so that private models cannot be found out
        found = self.server.files(name, revision)
        if found is None:
            return self.refuse(404, "RevisionNotFound")
        commit, files = found
        fault = self.server.faults.get(f"{name}/{file}" if file else name, Fault())
        if fault.status:
            return self.refuse(fault.status, fault.code)
        if file is None:
            known = {"id": name, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return self.answer(200, json.dumps(known).encode(), {"Content-Type": "application/json"})
        if file not in files:
            return self.refuse(404, "EntryNotFound", commit=commit)
        if file.endswith(LFS):
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(files[file]).hexdigest()}"'}
            linked |= {"X-Linked-Size": str(len(files[file]) + fault.more), "X-Repo-Commit": commit}
            elsewhere = f"http://localhost:{self.server.server_port}/lfs/{name}/{commit}/{file}"
            return self.answer(302, b"", linked | {"Location": elsewhere})
        etag = hashlib.sha1(files[file]).hexdigest()
        return self.send_content(files[file], f"{name}/{file}", {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def send_stored(self, name: str, commit: str, file: str) -> None:
        if "Authorization" in self.headers:
            return self.refuse(400, "", "the token was sent to another host")
        content = self.server.commits[name, commit][file]
        return self.send_content(content, f"{name}/{file}", {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    def send_content(self, content: bytes, place: str, headers: dict[str, str]) -> None:
        """Send a file or the rest of it, or break the connection in the middle."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            self.server.ranges.append(wanted[0])
            start = int(wanted[1])
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            content = content[start:]
        fault = self.server.faults.get(place, Fault())
        cuts = fault.cut != 0 and self.command == "GET"
        if cuts and fault.cut > 0:
            self.server.faults[place] = fault._replace(cut=fault.cut - 1)
        self.answer(206 if wanted else 200, content, {"Accept-Ranges": "bytes", **headers}, cuts)

    def refuse(self, status: int, code: str, message: str = "", commit: str = "") -> None:
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message or code, "X-Repo-Commit": commit})

    def answer(self, status: int, content: bytes, headers: dict[str, str], cuts: bool = False) -> None:
        """Send an answer; with `cuts`, only three quarters of its content."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[: len(content) * 3 // 4] if cuts else content)
        if cuts:
            self.close_connection = True
