"""A small emulator of Google Cloud Storage's JSON API on the loopback interface, with faults on demand.

It serves what TensorStore, gcsfs and the cloud client ask for: objects, listings, media, multipart and resumable
uploads, copies and single or batched deletions. Objects stay in memory. A write is visible when it is complete, as in
the real service.
"""

import base64
import collections
import contextlib
import email
import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import google_crc32c

NOT_FOUND = (404, {"error": {"code": 404, "message": "No such object"}})
STALE = (412, {"error": {"code": 412, "message": "conditionNotMet"}})
PAGE = 20  # objects in a page of a listing: the real service has 1,000


class Object(NamedTuple):
    """An object: its bytes, its number (it rises with each write), and when it was written."""

    content: bytes
    generation: int
    written: float


class Bucket:
    """The objects of one bucket, the requests so far, and the faults that its server makes.

    Attributes:
        objects: by name.
        log: (method, path) of each request.
        fault: called with the method of a request, and its path with the name of its object; a status to answer
            instead, 0 to close the connection, or None. It may also wait.
        lag: seconds after which listings show a new object.
        denied: answer every request with 403.
    """

    def __init__(self, name: str = "bucket") -> None:
        self.name, self.lock = name, threading.Lock()
        self.objects: dict[str, Object] = {}
        self.log: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.lag, self.denied = 0.0, False
        self._generation = 1000
        self.sent: dict[str, int] = collections.Counter()  # bytes of contents, by name
        self.uploads: dict[str, tuple[str, bytearray]] = {}

    def put(self, name: str, content: bytes, condition: str | None = None) -> Object | None:
        """Write an object; None if it does not have the generation of the condition (0: it must not exist)."""
        with self.lock:
            old = self.objects.get(name)
            if condition is not None and int(condition) != (old.generation if old else 0):
                return None
            self._generation += 1
            self.objects[name] = Object(bytes(content), self._generation, time.monotonic())
            return self.objects[name]

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def described(self, name: str) -> dict[str, Any]:
        found = self.objects[name]
        checksum = google_crc32c.value(found.content).to_bytes(4, "big")
        return {
            "kind": "storage#object",
            "id": f"{self.name}/{name}/{found.generation}",
            "name": name,
            "bucket": self.name,
            "generation": str(found.generation),
            "metageneration": "1",
            "size": str(len(found.content)),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "crc32c": base64.b64encode(checksum).decode(),
            "md5Hash": base64.b64encode(hashlib.md5(found.content).digest()).decode(),
            "etag": str(found.generation),
        }


@contextlib.contextmanager
def serve(bucket: Bucket) -> Iterator[str]:
    """Serve a bucket while the body runs; yields the server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"bucket": bucket}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(address: str) -> dict[str, str]:
    """Variables that lead the three clients to the emulator, without credentials."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCE_METADATA_ROOT": "127.0.0.1:1",  # nobody answers: there are no credentials
        "GOOGLE_CLOUD_PROJECT": "project",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask by gRPC what kind of bucket this is
    }


class Handler(BaseHTTPRequestHandler):
    """Answers requests of the JSON API."""

    bucket: Bucket
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the acknowledgement of its headers

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def _serve(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = {key: values[0] for key, values in urllib.parse.parse_qs(parts.query, keep_blank_values=True).items()}
        body = self._body()
        self.bucket.log.append((self.command, self.path))
        status = 403 if self.bucket.denied else self.bucket.fault(self.command, self._told(query, body))
        if status == 0:
            self.close_connection = True
            return
        if status:
            self._send(status, {"error": {"code": status, "message": "the emulator was told to fail"}})
        elif parts.path.startswith("/batch"):
            self._batch(body)
        else:
            self._send(*self._answer(self.command, parts.path, query, body))

    def _told(self, query: dict[str, str], body: bytes) -> str:
        """The request's path, and the name of an object that its body or an earlier request gives."""
        name = ""
        if query.get("uploadType") == "multipart":
            name = re.search(rb'"name": ?"([^"]*)"', body)[1].decode()
        elif "upload_id" in query:
            name, _ = self.bucket.uploads[query["upload_id"]]
        return f"{urllib.parse.unquote(self.path)} {name}"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if status != 204:
            self.wfile.write(raw)

    def _answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[Any, ...]:
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(/o(?:/(.*))?)?", path)
        if not found or found[2] != self.bucket.name:
            return 404, {"error": {"code": 404, "message": "The specified bucket does not exist."}}
        action, name = found[1], urllib.parse.unquote(found[4] or "")
        if action == "/upload":
            return self._upload(method, query, body)
        if copied := re.fullmatch(r"([^/]+)/(?:rewriteTo|copyTo)/b/[^/]+/o/(.+)", found[4] or ""):
            return self._copy(*map(urllib.parse.unquote, copied.groups()))
        if method == "DELETE" and name:
            return self._delete(name, query)
        if name:
            return self._get(name, query)
        if found[3]:
            return 200, self._list(query)
        return 200, {"kind": "storage#bucket", "id": self.bucket.name, "name": self.bucket.name, "location": "US"}

    def _get(self, name: str, query: dict[str, str]) -> tuple[Any, ...]:
        with self.bucket.lock:
            stored = self.bucket.objects.get(name)
            if stored is None:
                return NOT_FOUND
            described = self.bucket.described(name)
        generation = str(stored.generation)
        if query.get("ifGenerationNotMatch") == generation:
            return 304, b""
        if query.get("ifGenerationMatch", generation) != generation:
            return STALE
        if query.get("alt") != "media":
            return 200, described
        headers = {"x-goog-generation": generation, "x-goog-hash": f"crc32c={described['crc32c']}", "ETag": generation}
        answer = self._ranged(stored.content, headers)
        self.bucket.sent[name] += len(answer[1])
        return answer

    def _ranged(self, content: bytes, headers: dict[str, str]) -> tuple[Any, ...]:
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return 200, content, headers
        size = len(content)
        first = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
        end = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
        if first >= size:
            return 416, b""
        return 206, content[first:end], headers | {"Content-Range": f"bytes {first}-{end - 1}/{size}"}

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        now, items, folders = time.monotonic(), [], set()
        with self.bucket.lock:
            for name in sorted(self.bucket.objects):
                if not name.startswith(prefix) or now - self.bucket.objects[name].written < self.bucket.lag:
                    continue
                rest = name[len(prefix) :]
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                elif query.get("startOffset", "") <= name:
                    items.append(self.bucket.described(name))
        start = int(query.get("pageToken") or 0)
        size = min(int(query.get("maxResults", PAGE)), PAGE)
        page = {"kind": "storage#objects", "items": items[start : start + size]}
        if start == 0:
            page["prefixes"] = sorted(folders)
        if start + size < len(items):
            page["nextPageToken"] = str(start + size)
        return page

    def _put(self, name: str, content: bytes, query: dict[str, str]) -> tuple[Any, ...]:
        if self.bucket.put(name, content, query.get("ifGenerationMatch")) is None:
            return STALE
        return 200, self.bucket.described(name)

    def _upload(self, method: str, query: dict[str, str], body: bytes) -> tuple[Any, ...]:
        kind = query.get("uploadType")
        if kind == "media":
            return self._put(query["name"], body, query)
        if kind == "multipart":
            message = email.message_from_bytes(
                b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body
            )
            meta, _ = message.get_payload()
            raw = body.split(b"\r\n\r\n", 2)[2] if b"\r\n\r\n" in body else body.split(b"\n\n", 2)[2]
            boundary = message.get_boundary().encode()
            raw = raw[: raw.rindex(b"--" + boundary + b"--")].removesuffix(b"\n").removesuffix(b"\r")
            return self._put(json.loads(meta.get_payload())["name"], raw, query)
        return self._resumable(method, query, body)

    def _resumable(self, method: str, query: dict[str, str], body: bytes) -> tuple[Any, ...]:
        if "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            identity = f"upload{len(self.bucket.uploads)}"
            self.bucket.uploads[identity] = name, bytearray()
            host = self.headers["Host"]
            place = f"http://{host}/upload/storage/v1/b/{self.bucket.name}/o?uploadType=resumable&upload_id={identity}"
            return 200, {}, {"Location": place}
        name, held = self.bucket.uploads[query["upload_id"]]
        wanted = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers.get("Content-Range", "bytes */*"))
        if wanted and wanted[1]:
            del held[int(wanted[1]) :]
            held += body
        if wanted and wanted[3] != "*" and len(held) >= int(wanted[3]):
            return self._put(name, bytes(held), query)
        return 308, b"", {"Range": f"bytes=0-{len(held) - 1}"} if held else {}

    def _copy(self, source: str, target: str) -> tuple[Any, ...]:
        stored = self.bucket.objects.get(source)
        if stored is None:
            return NOT_FOUND
        self.bucket.put(target, stored.content)
        return 200, {"done": True, "kind": "storage#rewriteResponse", "resource": self.bucket.described(target)}

    def _delete(self, name: str, query: dict[str, str]) -> tuple[Any, ...]:
        with self.bucket.lock:
            stored = self.bucket.objects.get(name)
            if stored is None:
                return NOT_FOUND
            if query.get("ifGenerationMatch", str(stored.generation)) != str(stored.generation):
                return STALE
            del self.bucket.objects[name]
        return 204, b""

    def _batch(self, body: bytes) -> None:
        """Deletions in one request: each part of the answer has the status of one of them."""
        parts = []
        for number, path in enumerate(re.findall(rb"DELETE (\S+) HTTP", body), 1):
            split = urllib.parse.urlsplit(path.decode())
            status, *_ = self._answer("DELETE", re.sub(r"^https?://[^/]+", "", split.path), {}, b"")
            parts.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n"
                f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        raw = ("".join(parts) + "--batch--").encode()
        self._send(200, raw, {"Content-Type": "multipart/mixed; boundary=batch"})
