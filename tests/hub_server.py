"""The part of the Hugging Face Hub's HTTP interface that downloads and uploads use, on the
loopback.
"""

from __future__ import annotations

import base64
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
    """Files of a model on the hub.

    Args:
        files: Contents by path.
        gated: Whether files require accepting the terms. The list of files is public.
        cut: Number of times that the connection breaks in the middle of a file, by path.
        private: Whether a token is required to see it.
        commits: Paths that each commit added, changed or removed.
    """

    files: dict[str, bytes]
    gated: bool = False
    cut: Counter[str] = field(default_factory=Counter)
    private: bool = False
    commits: list[set[str]] = field(default_factory=list)


@dataclass
class Hub:
    """A running hub.

    Args:
        address: Address of the server.
        repositories: Repositories by name.
        sent: Number of bytes sent of each file.
        tokens: Role of each valid token, "read" or "write".
        owners: Owners for whom a write token may create and change repositories.
        stored: Large uploaded files, by sha256.
    """

    address: str
    repositories: dict[str, Repository]
    sent: Counter[str] = field(default_factory=Counter)
    tokens: dict[str, str] = field(default_factory=dict)
    owners: tuple[str, ...] = ("owner",)
    stored: dict[str, bytes] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """Answers requests for `Hub`. The server has one instance."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            self._name_user()
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._describe(*found.groups())
        elif found := re.fullmatch(r"(/store)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._give(*found.groups())
        else:
            self._refuse(404, "")

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            if self._writes(found[1]):
                self._choose_modes(json.loads(body))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            if self._writes(found[1]):
                self._place(json.loads(body))
        elif path == "/verify":
            asked = json.loads(body)
            there = len(self.hub.stored.get(asked["oid"], b"")) == asked["size"]
            self._say({}) if there else self._refuse(404, "")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            if self._writes(found[1]):
                self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404, "")

    def do_PUT(self) -> None:
        """Take a large file; the address is the permission."""
        content = self._body()
        oid = self.path.removeprefix("/upload/")
        if hashlib.sha256(content).hexdigest() != oid:
            return self._refuse(400, "")
        self.hub.stored[oid] = content
        self._say({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _role(self) -> str | None:
        """The role of the request's token, None for an unknown one."""
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _name_user(self) -> None:
        if role := self._role():
            self._say({"name": "owner", "auth": {"accessToken": {"role": role}}})
        else:
            self._refuse(401, "")

    def _writes(self, name: str) -> bool:
        """Whether the token may change a repository; if not, that is the answer."""
        role = self._role()
        if role == "write" and name.partition("/")[0] in self.hub.owners:
            return True
        self._refuse(403 if role else 401, "")
        return False

    def _create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if not self._writes(name):
            return
        status = 409 if name in self.hub.repositories else 200
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repositories.setdefault(name, Repository({}, private=private))
        self._say({"url": f"{self.hub.address}/{name}"}, status)

    def _choose_modes(self, asked: dict) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        self._say({"files": modes})

    def _place(self, asked: dict) -> None:
        """Say where large files go; those that are there already need no upload."""
        actions = {
            "verify": {"href": f"{self.hub.address}/verify"},
        }
        objects = [
            one
            if one["oid"] in self.hub.stored
            else one
            | {"actions": actions | {"upload": {"href": f"{self.hub.address}/upload/{one['oid']}"}}}
            for one in asked["objects"]
        ]
        self._say({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict]) -> None:
        repository, changed = self.hub.repositories[name], set()
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
            changed |= {value["path"]} if "path" in value else set()
        repository.commits.append(changed)
        url = f"{self.hub.address}/{name}/commit/{COMMIT}"
        self._say({"commitUrl": url, "commitOid": COMMIT})

    def _repository(self, name: str, revision: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._role()):
            found = None
            self._refuse(401, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
            return None
        return found

    def _describe(self, name: str, what: str | None, revision: str | None) -> None:
        repository = self._repository(name, revision or "main")
        if repository is None:
            return
        answer: object = {
            "id": name,
            "sha": COMMIT,
            "gated": repository.gated,
            "private": repository.private,
            "siblings": [],
        }
        if what == "tree":
            answer = [
                {"type": "file", "path": path, "size": len(content), "oid": etag(content)}
                for path, content in repository.files.items()
            ]
        self._say(answer)

    def _give(self, store: str | None, name: str, revision: str, path: str) -> None:
        """Send a file. Large files are on another host."""
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

    def _say(self, answer: object, status: int = 200) -> None:
        self._answer(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"", {"X-Error-Code": code} if code else {})

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, content in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        self.close_connection = cut is not None


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serve(repositories: dict[str, Repository]):
    """Run a hub in a thread and yield it."""
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
