"""A local stand-in for the hub: downloads, uploads and faults of small repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
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
    """One repository of the stand-in and its faults.

    Attributes:
        files: maps path to content; files with a large file's ending are listed with SHA-256, others with git's hash.
        refusal: status and hub error code of every answer, or None.
        promised: maps path to another content, whose size and hash are listed instead.
        cut: maps path to the lengths after which the connection is cut, one for each request in order.
        busy: number of file requests that are answered with 503 first.
        ignores_range: answer with the full file, regardless of the requested range.
        pause_s: pause before each piece of a file, in seconds.
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
        url: address of the server.
        repositories: repositories by name; tests change them.
        requests: method, path, Range and Authorization of each request, in order.
        objects: uploaded large files by SHA-256.
        commits: repository name and summary of each commit, in order.
        refusals: error status by step of an upload: "create", "preupload", "batch", "put", "commit".
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[tuple[str, str]] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)

    def fetched(self) -> list[str]:
        """Return the paths of the requested files."""
        return [path.partition(f"/resolve/{COMMIT}/")[2] for _, path, _, _ in self.requests if "/resolve/" in path]


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder as the files of a repository: path to content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def serve_hub(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Run the stand-in on a free port of this machine."""
    hub = Hub(repositories=repositories)
    server = QuietServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class QuietServer(ThreadingHTTPServer):
    """A server that ignores lost connections, because a client may disconnect at any moment."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self._note_request()
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", path)
        if match:
            self._answer_listing(match[1])
            return
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path.partition("?")[0])
        if match:
            self._answer_tree(match[1])
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match:
            self._answer_file(match[1], match[3])
            return
        self._refuse(404, "RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        path, body = self._note_request(), self._read_body()
        for pattern, part, answer in (
            (r"/api/repos/create", "create", self._create),
            (r"/api/validate-yaml", "yaml", lambda _: {"errors": [], "warnings": []}),
            (r"/api/models/([^/]+/[^/]+)/preupload/main", "preupload", self._tell_modes),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch", self._tell_addresses),
            (r"/api/models/([^/]+/[^/]+)/commit/main", "commit", self._commit),
        ):
            match = re.fullmatch(pattern, path)
            if match is None:
                continue
            if part in self.hub.refusals:
                self._refuse(self.hub.refusals[part], "")
                return
            self._name, self._status = match[1] if match.groups() else "", 200
            self._send(self._status, json.dumps(answer(body)).encode())
            return
        self._refuse(404, "RepoNotFound")

    def do_PUT(self) -> None:
        path, body = self._note_request(), self._read_body()
        name = path.rpartition("/")[2]
        if "put" in self.hub.refusals or hashlib.sha256(body).hexdigest() != name:
            self._refuse(self.hub.refusals.get("put", 400), "")
            return
        self.hub.objects[name] = body
        self._send(200, b"")

    def _create(self, body: bytes) -> dict[str, object]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self._status = 409 if name in self.hub.repositories else 200
        self.hub.repositories.setdefault(name, Repository({}))
        return {"url": f"{self.hub.url}/{name}"}

    def _tell_modes(self, body: bytes) -> dict[str, object]:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        return {"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]}

    def _tell_addresses(self, body: bytes) -> dict[str, object]:
        objects = []
        for asked in json.loads(body)["objects"]:
            upload = {"href": f"{self.hub.url}/lfs/{asked['oid']}?X-Signature=signed"}
            is_new = asked["oid"] not in self.hub.objects
            objects.append(asked | ({"actions": {"upload": upload}} if is_new else {}))
        return {"transfer": "basic", "objects": objects}

    def _commit(self, body: bytes) -> dict[str, object]:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append((self._name, value["summary"]))
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                assert len(files[value["path"]]) == value["size"]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        self.hub.repositories[self._name].files |= files
        return {"commitOid": COMMIT, "commitUrl": f"{self.hub.url}/{self._name}/commit/{COMMIT}", "hookOutput": ""}

    def _note_request(self) -> str:
        """Record the request and return its path; requests to a proxy contain the full URL instead."""
        asked = (self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        self.hub.requests.append(asked)
        return unquote(urlsplit(self.path).path)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

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

    def _answer_tree(self, name: str) -> None:
        repository = self._repository(name)
        if repository is not None:
            files = [
                {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
                for path, content in repository.files.items()
            ]
            self._send(200, json.dumps(files).encode())

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
        content, status = repository.files[path], 200
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{git_hash(content)}"'}
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
        # The client may have disconnected.
        with suppress(ConnectionError):
            for start in range(0, len(sent), 4096):
                threading.Event().wait(pause_s)
                self.wfile.write(sent[start : start + 4096])
        if cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def git_hash(content: bytes) -> str:
    """Return git's hash of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
