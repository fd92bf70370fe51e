"""The hub's HTTP interface on the loopback, as far as `snapshot_download` uses it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789" * 4
LARGE = (".safetensors", ".bin", ".msgpack", ".ckpt", ".onnx_data")


@dataclass
class Repository:
    """A model's files on the hub.

    Args:
        files: content by path.
        gated: whether files are given to nobody who has not accepted its terms; the list of the
            files is public.
        cut: how often the connection breaks in the middle of a file, by path.
    """

    files: dict[str, bytes]
    gated: bool = False
    cut: Counter[str] = field(default_factory=Counter)


@dataclass
class Hub:
    """A running hub; `sent` counts the bytes of each file that were sent."""

    address: str
    repositories: dict[str, Repository]
    sent: Counter[str] = field(default_factory=Counter)


class Handler(BaseHTTPRequestHandler):
    """Answers for `Hub`, of which the server has one."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._describe(*found.groups())
        elif found := re.fullmatch(r"(/store)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._give(*found.groups())
        else:
            self._refuse(404, "")

    def _repository(self, name: str, revision: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        if found is None:
            self._refuse(401, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
            return None
        return found

    def _describe(self, name: str, what: str | None, revision: str | None) -> None:
        repository = self._repository(name, revision or "main")
        if repository is None:
            return
        answer: object = {"id": name, "sha": COMMIT, "gated": repository.gated, "siblings": []}
        if what == "tree":
            answer = [
                {"type": "file", "path": path, "size": len(content), "oid": etag(content)}
                for path, content in repository.files.items()
            ]
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _give(self, store: str | None, name: str, revision: str, path: str) -> None:
        """Give a file; large ones lie in a store of another host."""
        repository = self._repository(name, revision)
        if repository is None:
            return
        if repository.gated:
            return self._refuse(401, "GatedRepo")
        if path not in repository.files:
            return self._refuse(404, "EntryNotFound")
        content = repository.files[path]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag(content)}"', "Accept-Ranges": "bytes"}
        if path.endswith(LARGE) and not store:
            headers |= {
                "X-Linked-Size": str(len(content)),
                "X-Linked-ETag": headers["ETag"],
                "Location": f"http://localhost:{self.server.server_address[1]}/store{self.path}",
            }
            return self._answer(302, b"", headers)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and repository.cut[path] > 0
        repository.cut[path] -= cut
        length = (len(content) - begin) // 2 if cut else None
        if self.command == "GET":
            self.hub.sent[path] += len(content) - begin if length is None else length
        self._answer(206 if asked else 200, content[begin:], headers, length)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"", {"X-Error-Code": code} if code else {})

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, content in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, content)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        self.close_connection = cut is not None


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serve(repositories: dict[str, Repository]):
    """Run a hub in a thread; yield it."""
    handler = type("HubHandler", (Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.hub = Hub(f"http://127.0.0.1:{server.server_port}", repositories)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield handler.hub
        finally:
            server.shutdown()
            thread.join()
