"""A small HTTP server that speaks the Hugging Face Hub's protocol, for tests with the real `huggingface_hub`.

It serves repositories out of memory. Large ("LFS") files are redirected to another origin, as on the Hub,
under an ETag that is their SHA-256; small ones are served directly under Git's hash. Faults can be set per
file.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_right"


@dataclass
class HubFile:
    """One file, and what goes wrong with it."""

    data: bytes
    lfs: bool = True
    stop_after: int | None = None
    """Close the connection after this many bytes of every answer."""
    stops: int = 1_000_000
    """How many answers are cut short."""
    sent_instead: bytes | None = None
    """Bytes of the same length that are sent in place of `data`."""
    ignores_range: bool = False
    stall_after: int | None = None
    """Send nothing more after this many bytes, and keep the connection."""
    xet: bool = False
    """Offer it by the Xet protocol too (which this server does not speak)."""
    statuses: list[int] = field(default_factory=list)
    """Answer the next requests for the bytes with these."""
    piece: int | None = None
    """Send so many bytes at a time, with a pause of `pause` seconds after each: a slow line."""
    pause: float = 0.01

    @property
    def etag(self) -> str:
        return hashlib.sha256(self.data).hexdigest() if self.lfs else self.oid

    @property
    def oid(self) -> str:
        """Git's hash; of a large file it would be that of its pointer, which nobody looks at."""
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def listed(self, path: str) -> dict[str, object]:
        """As the list of a repository has it."""
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.etag, "size": len(self.data), "pointerSize": 134}
        return entry


@dataclass
class Repo:
    """A repository with one commit."""

    files: dict[str, HubFile]
    gated: bool = False
    private: bool = False
    status: int | None = None
    """Answer everything with this status."""
    statuses: list[int] = field(default_factory=list)
    """Answer the next requests with these; 200: as usual."""
    page: bytes | None = None
    """What is sent in place of the list of files."""
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)


@dataclass
class Request:
    """What a client asked for."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """The server; use as a context manager."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Hub:
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def downloads(self) -> list[Request]:
        """The requests for the bytes of files."""
        return [r for r in self.requests if r.method == "GET" and "/api/" not in r.path]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go when they have what they want."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlparse(self.path).path)
            authorization = self.headers.get("Authorization")
            hub.requests.append(Request(self.command, path, self.headers.get("Range"), authorization))
            path = re.sub(
                "^(/api)?/datasets/", lambda m: "/api/models/" if m[1] else "/", path
            )  # the same names
            if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
                self._send_file(hub.repos[match[1]].files[match[2]], {})
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                if self._may_read(match[1], match[2]):
                    self._resolve(match[1], match[3])
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(?:tree|revision)/([^/]+))?", path):
                if self._may_read(match[1], match[2] or "main"):
                    self._describe(match[1], tree="/tree/" in path)
            else:
                self._send(404, {"X-Error-Code": "RepoNotFound"})

        def _may_read(self, name: str, revision: str) -> bool:
            repo = hub.repos.get(name)
            authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if repo is None or (repo.private and not authorized):
                self._send(404 if authorized else 401, {"X-Error-Code": "RepoNotFound"})
            elif (status := repo.statuses.pop(0) if repo.statuses else repo.status or 200) != 200:
                self._send(status, {})
            elif repo.gated and not authorized:
                message = f"Access to model {name} is restricted."
                self._send(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
            elif revision not in (*repo.revisions, repo.commit):
                self._send(404, {"X-Error-Code": "RevisionNotFound"})
            else:
                return True
            return False

        def _resolve(self, name: str, path: str) -> None:
            repo = hub.repos[name]
            file = repo.files.get(path)
            headers = {"X-Repo-Commit": repo.commit}
            if file is None:
                self._send(404, {**headers, "X-Error-Code": "EntryNotFound"})
            elif file.lfs:
                headers |= {
                    "X-Linked-ETag": f'"{file.etag}"',
                    "X-Linked-Size": str(len(file.data)),
                    "Location": f"http://localhost:{hub.port}/cdn/{name}/{quote(path)}",
                }
                if file.xet:
                    headers |= {"X-Xet-Hash": file.etag, "X-Xet-Refresh-Route": f"{hub.endpoint}/xet"}
                self._send(302, headers)
            else:
                self._send_file(file, {**headers, "ETag": f'"{file.etag}"'})

        def _send_file(self, file: HubFile, headers: dict[str, str]) -> None:
            if file.statuses and self.command == "GET":
                self._send(file.statuses.pop(0), {})
                return
            data = file.sent_instead if file.sent_instead is not None else file.data
            status, begin, end = 200, 0, len(data)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted and not file.ignores_range:
                status, begin = 206, int(wanted[1])
                end = min(end, int(wanted[2]) + 1) if wanted[2] else end
                headers = {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}
            body = data[begin:end]
            if file.piece is not None and self.command == "GET":
                self._send_slowly(status, headers, body, file.piece, file.pause)
            elif file.stall_after is not None and self.command == "GET":
                self._send(status, headers, body, cut=file.stall_after, stall=True)
            elif file.stop_after is not None and file.stops > 0 and self.command == "GET":
                file.stops -= 1
                self._send(status, headers, body, cut=file.stop_after)
            else:
                self._send(status, headers, body)

        def _describe(self, name: str, tree: bool) -> None:
            repo = hub.repos[name]
            if tree:
                answer: object = [file.listed(path) for path, file in repo.files.items()]
            else:
                siblings = [{"rfilename": path} for path in repo.files]
                answer = {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings, "tags": []}
            data = json.dumps(answer).encode() if repo.page is None else repo.page
            self._send(200, {"Content-Type": "application/json"}, data)

        def _send_slowly(
            self, status: int, headers: dict[str, str], body: bytes, piece: int, pause: float
        ) -> None:
            self._send(status, {**headers, "Content-Length": str(len(body))})
            for begin in range(0, len(body), piece):
                self.wfile.write(body[begin : begin + piece])
                time.sleep(pause)

        def _send(
            self,
            status: int,
            headers: dict[str, str],
            body: bytes = b"",
            cut: int | None = None,
            stall: bool = False,
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if cut is None else body[:cut])
            if cut is not None and self.command != "HEAD":
                self.wfile.flush()
                if stall:
                    self.connection.recv(1)  # until the client gives up
                self.close_connection = True

    return Handler
