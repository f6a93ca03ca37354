"""A stand-in for the hub on this machine: its interface for small repositories, and its faults."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Repository:
    """What the stand-in says of one repository.

    Attributes:
        files: path to content; those with a large file's ending are told with their SHA-256, others with git's hash.
        refusal: status and the hub's error code of every answer, or None.
        promised: path to another content, whose size and hash are told instead.
        cut: path to the lengths after which the connection is cut, one for each request, the first first.
        busy: how many requests for files are answered with 503 first.
        ignores_range: answers with the whole file, whatever part was asked for.
        pause_s: before each piece of a file.
    """

    files: dict[str, bytes]
    refusal: tuple[int, str] | None = None
    promised: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    busy: int = 0
    ignores_range: bool = False
    pause_s: float = 0.0


@dataclass
class Hub:
    """The running stand-in.

    Attributes:
        url: where it listens.
        repositories: by their names; a test changes them.
        requests: method, path, Range and Authorization of each, in order.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """Paths of the files that were asked for."""
        return [path.partition(f"/resolve/{COMMIT}/")[2] for _, path, _, _ in self.requests if "/resolve/" in path]


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a folder as a repository has them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def serve_hub(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Run the stand-in on a free port of this machine."""
    hub = Hub(repositories=repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        # A proxy is asked for the whole address, a server for the path.
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            (self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", path)
        if match:
            self._answer_listing(match[1])
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match:
            self._answer_file(match[1], match[3])
            return
        self._refuse(404, "RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer_listing(self, name: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        siblings = []
        for path, content in (repository.files | repository.promised).items():
            told: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": git_hash(content)}
            if path.endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                told["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(told)
        body = {"id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": siblings}
        self._send(200, json.dumps(body | {"cardData": {"license": "openrail++"}}).encode())

    def _answer_file(self, name: str, path: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        if path not in repository.files:
            self._refuse(404, "EntryNotFound")
            return
        if repository.busy:
            repository.busy -= 1
            self._refuse(503, "")
            return
        content, status, headers = repository.files[path], 200, {"X-Repo-Commit": COMMIT, "ETag": '"x"'}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and not repository.ignores_range:
            start = int(asked[1])
            if start >= len(content):
                self._refuse(416, "")
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        cuts = repository.cut.get(path)
        self._send(status, content, headers, cuts.pop(0) if cuts else None, repository.pause_s)

    def _repository(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif repository.refusal is not None:
            self._refuse(*repository.refusal)
            return None
        return repository

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code} if code else {})

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
        pause_s: float = 0,
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = body if cut is None else body[:cut]
        # Whoever asked may have gone, by its own end or because it had enough.
        with suppress(ConnectionError):
            for start in range(0, len(sent), 4096):
                threading.Event().wait(pause_s)
                self.wfile.write(sent[start : start + 4096])
        if cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def git_hash(content: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
