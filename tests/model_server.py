"""A server in the tests' own process, on a port of this machine, and what asks it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from texts_in_the_making import making

from rwkvcli import Model
from rwkvcli.server import running
from rwkvcli.server.app import Options, Server
from rwkvcli.services.serving import Texts


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """What a stream sent, but for the last line, which is checked."""
        *events, end, rest = self.body.decode().split("\n\n")
        assert (end, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


@dataclass
class Here:
    """A server in the making, and its model."""

    model: Model
    texts: Texts
    port: int
    app: Any = None
    log: list[str] = field(default_factory=list)
    faults: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def hang_up(self, path: str, body: dict[str, Any]) -> None:
        """Ask for a text without end, and go: out of the stream, or while it is in the making."""
        connection = self.connect()
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        if body["stream"]:
            assert connection.getresponse().read(100)
        else:
            while self.texts.load[0] == 0:
                pass
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()

    def get(self, path: str, **headers: str) -> Response:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, data, {"Content-Type": "application/json", **headers})

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Response:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return Response(answer.status, fields, answer.read())
        finally:
            connection.close()


@contextmanager
def serving(model: Model, size: int = 8, waiting: int = 100, **options: Any) -> Iterator[Here]:
    """A server; `options` as of `Options`."""
    texts = Texts(model, size, 64 << 20, waiting, list(options.get("states", {}).values()))
    with making(texts), running.listen("127.0.0.1", 0) as listener:
        here = Here(model, texts, listener.getsockname()[1])
        server = Server(
            model, texts, Options("demo", log=here.log.append, fault=here.faults.append, **options)
        )
        here.app = server.app
        stop = threading.Event()
        thread = threading.Thread(target=running.serve, args=(server.app, listener, stop.is_set, texts.close))
        thread.start()
        try:
            yield here
        finally:
            stop.set()
            thread.join(timeout=60)
            assert not thread.is_alive()
