"""Opening a port, and serving until a signal comes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn

from rwkvcli.errors import UsageError

if TYPE_CHECKING:
    from starlette.applications import Starlette

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine."""
_BACKLOG = 128
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What keeps a connection from being taken: asyncio tries again after a second, and tells each time."""
_LAST_WORDS = 5
"""Seconds that answers have to be sent when the server ends."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises UsageError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UsageError(
            f"{host} is no address of this machine", hint="127.0.0.1 is for this machine alone"
        ) from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows: the other means something else there
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise UsageError(
            f"cannot listen on port {port} of {host}: {why}", hint="--port 0 takes one that is free"
        ) from None
    return listener


def names_of(listener: socket.socket, host: str) -> tuple[str, ...] | None:
    """The names that programs of this machine know it by, `host` among them; None: other machines can reach it, by any."""
    found = ipaddress.ip_address(listener.getsockname()[0])
    return (*LOOPBACK, host.lower(), str(found)) if found.is_loopback else None


def address(listener: socket.socket) -> str:
    """Where programs find it."""
    host, port = listener.getsockname()[:2]
    found = ipaddress.ip_address(host)
    shown = "127.0.0.1" if str(found) == "0.0.0.0" else "::1" if str(found) == "::" else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


class _Uvicorn(uvicorn.Server):
    """Signals are the command line's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    app: Starlette,
    listener: socket.socket,
    asked_to_stop: Callable[[], bool],
    stop: Callable[[], None],
    warn: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve until `asked_to_stop`, which is asked ten times a second; then `stop` ends what is in the making, and it is
    sent what that says; `stop` is called in any case. `warn` is told once when the system has no room for more connections."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", loop="asyncio", http="h11", ws="none",
        server_header=False, timeout_graceful_shutdown=_LAST_WORDS,
    )  # fmt: skip
    # what it would say of broken requests and of answers that are cut off is told by the application, or nobody's concern
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())
    server = _Uvicorn(config)

    async def watch() -> None:
        while not asked_to_stop():
            await asyncio.sleep(0.1)
        server.should_exit = True
        stop()

    warned = False

    def trouble(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal warned
        if server.should_exit:  # asyncio tries again with a port that is closed
            return
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _NO_ROOM):
            loop.default_exception_handler(context)
        elif not warned:
            warned = True
            warn(f"warning: some connections have to wait: {(error.strerror or str(error)).lower()}")

    async def both() -> None:
        asyncio.get_running_loop().set_exception_handler(trouble)
        watching = asyncio.create_task(watch())
        try:
            await server.serve(sockets=[listener])
        finally:
            watching.cancel()

    try:
        asyncio.run(both())
    finally:
        stop()
