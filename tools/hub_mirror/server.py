"""The mirror's HTTP routes: model info, tree and resolve, with the Hub's own headers.

A folder `ROOT/ORG/NAME` is a repository: `revision` holds its commit, `files/` its files, and a
file `token`, when there is one, makes it gated. Standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 1_000_000  # larger files are LFS files: their ETag is a SHA-256
CHUNK = 64 * 1024
_NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"
_INFO = re.compile(rf"^/api/models/{_NAME}(?:/revision/(?P<rev>[^/]+))?$")
_TREE = re.compile(rf"^/api/models/{_NAME}/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?$")
_RESOLVE = re.compile(rf"^/{_NAME}/resolve/(?P<rev>[^/]+)/(?P<path>.+)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong on purpose, on downloads of file contents.

    Attributes:
        status: Answer this status instead (429 or 500, for example) ...
        times: ... this many times, then work again; -1 means for ever.
        bytes_per_second: Send no faster than this; 0 means no limit.
        truncate_after: End each answer after this many bytes; 0 means never.
    """

    status: int = 0
    times: int = 0
    bytes_per_second: int = 0
    truncate_after: int = 0

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Read `status=429,times=3` and the like.

        Raises:
            ValueError: A name is unknown or a value is not a whole number.
        """
        values = dict(item.split("=", 1) for item in text.split(",") if item)
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f"unknown fault {', '.join(sorted(unknown))}; known: {sorted(known)}")
        return cls(**{name: int(value) for name, value in values.items()})


class Repository:
    """One repository folder."""

    def __init__(self, name: str, folder: Path) -> None:
        """Read the commit and, for a gated one, the token."""
        self.name = name
        self.commit = (folder / "revision").read_text().strip()
        token = folder / "token"
        self.token = token.read_text().strip() if token.exists() else None
        self._files = folder / "files"

    def paths(self) -> list[str]:
        """Names of all files."""
        found = (path for path in self._files.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self._files)) for path in found)

    def file(self, path: str) -> Path | None:
        """The file of this name, or None."""
        return self._files / path if path in self.paths() else None

    def knows(self, revision: str) -> bool:
        """Whether a revision is this repository's one commit."""
        return revision in ("main", self.commit)


class HubServer(http.server.ThreadingHTTPServer):
    """The mirror; `faults` may be changed while it runs, `requests` lists what was asked."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], root: Path, faults: Faults | None = None) -> None:
        """Serve the repositories under `root`."""
        super().__init__(address, _Handler)
        self.root = root
        self.faults = faults or Faults()
        self.requests: list[tuple[str, str, str | None]] = []
        self._lock = threading.Lock()
        self._digests: dict[Path, str] = {}

    @property
    def url(self) -> str:
        """What HF_ENDPOINT should be."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def take_fault(self) -> int:
        """The status to fail with now, or 0."""
        with self._lock:
            if not self.faults.status or self.faults.times == 0:
                return 0
            self.faults = dataclasses.replace(self.faults, times=self.faults.times - 1)
            return self.faults.status

    def repository(self, name: str) -> Repository | None:
        """The repository of this name, or None."""
        folder = self.root / name
        return Repository(name, folder) if (folder / "revision").is_file() else None

    def etag(self, file: Path) -> str:
        """SHA-256 of a large file, git's blob id of a small one, as the Hub does."""
        with self._lock:
            if file not in self._digests:
                self._digests[file] = _etag(file)
            return self._digests[file]


def _etag(file: Path) -> str:
    if file.stat().st_size >= LFS_BYTES:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    data = file.read_bytes()
    header = f"blob {len(data)}\0".encode()
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def running_hub(root: Path) -> Iterator[HubServer]:
    """Run a mirror on a free loopback port until the block ends."""
    server = HubServer(("127.0.0.1", 0), root)
    thread = threading.Thread(target=server.serve_forever, name="hub", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log line per request: tokens must not appear anywhere."""

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if path == "/healthz":
                self._json({"ok": True}, body=body)
            elif match := _INFO.match(path):
                self._info(match, body=body)
            elif match := _TREE.match(path):
                self._tree(match, body=body)
            elif match := _RESOLVE.match(path):
                self._resolve(match, body=body)
            else:
                self._error(404, "NotFound", "Sorry, we can't find the page you are looking for.")

    def _find(self, match: re.Match[str], *, content: bool) -> Repository | None:
        """The repository of a request, or None after the right refusal was sent."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        repository = self.server.repository(match["repo"])
        if repository is None:
            self._error(401 if not token else 404, "RepoNotFound", "Repository not found")
            return None
        if repository.token is not None:
            if token and token != repository.token:
                self._error(401, None, "Invalid credentials in Authorization header")
                return None
            if content and not token:
                text = (
                    f"Access to model {repository.name} is restricted. You must be authenticated."
                )
                self._error(401, "GatedRepo", text)
                return None
        revision = match["rev"] or "main"
        if not repository.knows(revision):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository

    def _info(self, match: re.Match[str], *, body: bool) -> None:
        repository = self._find(match, content=False)
        if repository is None:
            return
        self._json(
            {
                "_id": "000000000000000000000000",
                "id": repository.name,
                "modelId": repository.name,
                "sha": repository.commit,
                "private": False,
                "gated": "manual" if repository.token else False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in repository.paths()],
            },
            body=body,
        )

    def _tree(self, match: re.Match[str], *, body: bool) -> None:
        repository = self._find(match, content=False)
        if repository is None:
            return
        entries = []
        for path in repository.paths():
            file = repository.file(path)
            if file is None or not path.startswith(match["path"] or ""):
                continue
            size = file.stat().st_size
            entry: dict[str, Any] = {"type": "file", "path": path, "size": size}
            entry["oid"] = hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()
            if size >= LFS_BYTES:
                entry["lfs"] = {"oid": self.server.etag(file), "size": size, "pointerSize": 134}
            else:
                entry["oid"] = self.server.etag(file)
            entries.append(entry)
        self._json(entries, body=body)

    def _resolve(self, match: re.Match[str], *, body: bool) -> None:
        repository = self._find(match, content=True)
        if repository is None:
            return
        file = repository.file(match["path"])
        if file is None:
            self._error(404, "EntryNotFound", "Entry not found", commit=repository.commit)
            return
        if body and (status := self.server.take_fault()):
            self._error(status, None, "fault on purpose")
            return
        self._file(file, repository.commit, body=body)

    def _file(self, file: Path, commit: str, *, body: bool) -> None:
        size = file.stat().st_size
        start, end = 0, size - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, end = int(asked[1]), min(int(asked[2] or end), end)
            if start > end:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - start + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{self.server.etag(file)}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if body:
            self._send(file, start, end - start + 1)

    def _send(self, file: Path, start: int, length: int) -> None:
        faults = self.server.faults
        if faults.truncate_after and faults.truncate_after < length:
            length = faults.truncate_after
            self.close_connection = True
        with file.open("rb") as content:
            content.seek(start)
            while length > 0:
                chunk = content.read(min(CHUNK, length))
                self.wfile.write(chunk)
                length -= len(chunk)
                if faults.bytes_per_second:
                    time.sleep(len(chunk) / faults.bytes_per_second)

    def _json(self, value: Any, *, body: bool) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _error(self, status: int, code: str | None, text: str, *, commit: str = "") -> None:
        data = json.dumps({"error": text}).encode() if self.command != "HEAD" else b""
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", text)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        if status == 429:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
