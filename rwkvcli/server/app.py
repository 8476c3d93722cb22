"""The HTTP side: routes, who may ask, and answers that are sent as they come."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rwkvcli.errors import RwkvError, UsageError
from rwkvcli.server import items, requests, responses, stored, vocabulary
from rwkvcli.server.answers import ChoicesReply, Reply, failure, json_in_parts, json_of, model_card
from rwkvcli.server.response_answers import ItemsReply
from rwkvcli.server.running import LOOPBACK
from rwkvcli.services.serving import Busy, News, Stopped, Texts, Ticket

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State
    from rwkvcli.server.requests import Wanted

LARGEST_BODY = 8 << 20
"""Bytes: the ids of a million tokens, or a text of more. Reading more JSON would hold all others up for too long."""
_PATIENCE = 15.0
"""Seconds without anything to send, after which a comment keeps a stream open."""
_LINE_ENDS = {c: f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}
"""What JSON takes as it is, and many programs for the end of a line."""
_MOST_UNREAD = 4096
"""News of a text that wait to be sent; an asker that lets more come together reads no more."""
_HOST = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:]*))(?::\d*)?")


@dataclass(frozen=True)
class Options:
    """What the server is told when it begins."""

    name: str
    """What the model is called."""
    states: Mapping[str, State] = field(default_factory=dict)
    """What can be gone on from, each as a model of a name of its own; in the order of the starts of `Texts`."""
    key: str | None = None
    """What askers have to know."""
    think: str | None = None
    """How answers are thought over where a request does not say: `show`, `hide`, `fast` or `off`."""
    origins: Sequence[str] = ()
    """Web pages that may ask, besides programs."""
    hosts: Sequence[str] | None = LOOPBACK
    """The names that it is known by, so that no web page can reach it by a name of its own; None: any."""
    log: Callable[[str], None] = lambda line: None
    """Is told what was done, a line each."""
    fault: Callable[[BaseException], None] = lambda error: None
    """Is told of errors that are nobody's mistake."""


class Server:
    """The application over `texts` of `model`."""

    def __init__(self, model: Model, texts: Texts, options: Options) -> None:
        self._model = model
        self._texts = texts
        self._options = options
        self._names = [options.name, *options.states]
        self._began = int(time.time())
        self._stored = stored.Stored()
        post, get = ["POST"], ["GET"]
        middleware = [Middleware(_Known, hosts=options.hosts)] if options.hosts is not None else []
        if options.origins:
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=list(options.origins),
                    allow_methods=["GET", "POST", "DELETE"],
                    allow_headers=["*"],
                )
            )
        self.app = Starlette(
            routes=[
                Route("/health", self._health, methods=get),
                Route("/v1/models", self._guarded(self._models), methods=get),
                Route("/v1/models/{name:path}", self._guarded(self._one_model), methods=get),
                Route("/v1/completions", self._guarded(self._completions), methods=post),
                Route("/v1/chat/completions", self._guarded(self._chat), methods=post),
                Route("/v1/responses", self._guarded(self._responses), methods=post),
                Route("/v1/responses/{id}", self._guarded(self._one_response), methods=["GET", "DELETE"]),
                Route("/v1/responses/{id}/input_items", self._guarded(self._input_items), methods=get),
                Route("/v1/responses/{id}/cancel", self._guarded(self._cancel), methods=post),
                Route("/tokenize", self._guarded(self._tokenize), methods=post),
                Route("/detokenize", self._guarded(self._detokenize), methods=post),
                Route("/tokenizer_info", self._guarded(self._tokenizer), methods=get),
            ],
            middleware=middleware,
            exception_handlers={HTTPException: _http_error, Exception: self._unexpected},
        )

    def _guarded(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint, for askers who know the key; errors become answers."""
        key = None if self._options.key is None else os.fsencode(self._options.key)

        async def guarded(request: Request) -> Response:
            said = re.sub("^bearer +", "", request.headers.get("authorization", ""), flags=re.IGNORECASE)
            if key is not None and not hmac.compare_digest(said.encode("latin-1"), key):
                return _error(401, "the API key is missing or wrong", "authentication_error")
            try:
                return await endpoint(request)
            except HTTPException:
                raise
            except Exception as error:
                return self._failed(error)

        return guarded

    async def _unexpected(self, _request: Request, error: Exception) -> Response:
        return self._failed(error)

    async def _health(self, _request: Request) -> Response:
        active, waiting = self._texts.load
        return JSONResponse({"status": "ok", "active": active, "waiting": waiting})

    async def _models(self, _request: Request) -> Response:
        cards = [model_card(name, self._began) for name in self._names]
        return JSONResponse({"object": "list", "data": cards})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._names:
            return _error(404, f"no model {name!r} here", "not_found_error", "model")
        return JSONResponse(model_card(name, self._began))

    async def _tokenize(self, request: Request) -> Response:
        body, think = await _body(request), self._options.think
        return await run_in_threadpool(
            lambda: _Json(vocabulary.tokenize(requests.parsed(body), self._model, think))
        )

    async def _detokenize(self, request: Request) -> Response:
        body = await _body(request)
        return await run_in_threadpool(
            lambda: _Json(vocabulary.detokenize(requests.parsed(body), self._model))
        )

    async def _tokenizer(self, _request: Request) -> Response:
        return JSONResponse(vocabulary.about(self._model))

    async def _completions(self, request: Request) -> Response:
        body, states = await _body(request), self._options.states
        wanted = await run_in_threadpool(
            lambda: requests.completion(requests.parsed(body), self._model, states)
        )
        return await self._answered(request, wanted, self._choices(wanted, chat=False))

    async def _chat(self, request: Request) -> Response:
        body, options = await _body(request), self._options
        wanted = await run_in_threadpool(
            lambda: requests.chat(requests.parsed(body), self._model, options.states, options.think)
        )
        return await self._answered(request, wanted, self._choices(wanted, chat=True))

    def _choices(self, wanted: Wanted, *, chat: bool) -> Callable[[Sequence[Ticket]], Reply]:
        name = self._names[wanted.asked[0].start]
        return lambda tickets: ChoicesReply(wanted, tickets, self._model, name, chat)

    async def _responses(self, request: Request) -> Response:
        body, options = await _body(request), self._options
        wanted = await run_in_threadpool(
            lambda: responses.response(
                requests.parsed(body), self._model, options.states, options.think, self._stored
            )
        )
        name, keep = self._names[wanted.text.asked[0].start], self._stored.keep
        return await self._answered(
            request,
            wanted.text,
            lambda tickets: ItemsReply(wanted, tickets[0], self._model, name, keep),
        )

    async def _one_response(self, request: Request) -> Response:
        name = request.path_params["id"]
        if request.method == "DELETE":
            if not self._stored.forget(name):
                return _no_response(name)
            return JSONResponse({"id": name, "object": "response", "deleted": True})
        found = self._stored.find(name)
        if found is None:
            return _no_response(name)
        if request.query_params.get("stream", "false") != "false":
            return _error(400, "what is stored cannot be streamed", "invalid_request_error", "stream")
        return Response(found.body, media_type="application/json")

    async def _input_items(self, request: Request) -> Response:
        name = request.path_params["id"]
        found = self._stored.find(name)
        if found is None:
            return _no_response(name)
        turn, query = found.turn, request.query_params
        return await run_in_threadpool(lambda: _Json(items.page_of(turn.asked(), query)))

    async def _cancel(self, request: Request) -> Response:
        name = request.path_params["id"]
        if self._stored.find(name) is None:
            return _no_response(name)
        message = "the response is whole: none is made in the background"
        return _error(400, message, "invalid_request_error")

    async def _answered(
        self, request: Request, wanted: Wanted, made_of: Callable[[Sequence[Ticket]], Reply]
    ) -> Response:
        """The texts that are wanted, in the form that `made_of` gives them."""
        begin = time.monotonic()
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        ended = False

        def put(number: int, what: News) -> None:
            if wanted.stream and news.qsize() >= _MOST_UNREAD * len(tickets):
                what = News(error=_Unread("the answer was not read"))
                drop()
            news.put_nowait((number, what))

        def tell(number: int, what: News) -> None:
            loop.call_soon_threadsafe(put, number, what)

        def drop() -> None:
            for ticket in tickets:
                ticket.drop()

        def over(status: int | str) -> None:
            nonlocal ended
            drop()
            if not ended:
                self._note(request, reply, status, time.monotonic() - begin)
            ended = True

        tickets = self._texts.ask(wanted.asked, tell)
        reply = made_of(tickets)
        status: int | str = "gone"
        gone = asyncio.ensure_future(_gone(request))
        try:
            if wanted.stream:
                # what is wrong shows before the first token, mostly: as an error, not as a stream
                first = await _next(news, gone, _PATIENCE)
                status = "stream"
                return _Events(self._stream(reply, news, first, over), lambda: over("gone"))
            while not reply.done:
                told = await _next(news, gone, None)
                assert told is not None
                reply.take(*told)
            status = 200
            return await run_in_threadpool(lambda: _Json(reply.whole()))
        except Exception as error:
            response = self._failed(error)
            status = "gone" if isinstance(error, ClientDisconnect) else response.status_code
            return response
        finally:
            gone.cancel()
            if status != "stream":
                over(status)

    async def _stream(
        self,
        reply: Reply,
        news: asyncio.Queue[tuple[int, News]],
        told: tuple[int, News] | None,
        over: Callable[[int | str], None],
    ) -> AsyncIterator[str]:
        """Server-sent events, one per piece; `told` is what is new already."""
        status: int | str = "gone"
        try:
            for chunk in reply.opening():
                yield _event(chunk)
            sent = time.monotonic()
            while not reply.done:
                events = await self._events(reply, told)
                for event in events:
                    yield event
                # thoughts that are hidden are news too
                silent = told is None or time.monotonic() - sent >= _PATIENCE
                if silent and not events:
                    yield ": still at it\n\n"
                if silent or events:
                    sent = time.monotonic()
                told = None if reply.done else await _next(news, None, _PATIENCE)
            for chunk in reply.closing():
                yield _event(chunk)
            if reply.end:
                yield reply.end
            status = 200
        except Exception as error:
            response = self._failed(error)
            status = response.status_code
            for chunk in reply.broken(json.loads(bytes(response.body))):
                yield _event(chunk)
        finally:
            over(status)

    @staticmethod
    async def _events(reply: Reply, told: tuple[int, News] | None) -> list[str]:
        """What `told` brings. The log-probabilities of a prompt, which may be long, hold up no other request."""
        if told is None:
            return []
        if told[1].prompt is None:
            return [*map(_event, reply.take(*told))]
        return await run_in_threadpool(lambda: [_event(chunk, json_in_parts) for chunk in reply.take(*told)])

    def _failed(self, error: BaseException) -> Response:
        """What an error looks like to the asker."""
        if not isinstance(error, RwkvError | ClientDisconnect):
            self._options.fault(error)
        return _answer_to(error)

    def _note(self, request: Request, reply: Reply, status: int | str, seconds: float) -> None:
        """Say on the log what was done."""
        used = reply.used
        tokens = f"{used.read} tokens in ({used.known} known), {used.made} out"
        self._options.log(f"{request.url.path} {status}: {tokens}, {seconds:.2f} s")


class _Unread(RwkvError):
    """Nobody reads what is sent."""


class _Json(JSONResponse):
    """Of an answer that may be large."""

    def render(self, content: Any) -> bytes:
        return json_in_parts(content).encode()


class _Events(StreamingResponse):
    """Server-sent events. `over` is called at the end in any case: when the asker goes, `pieces` may not have begun, and may
    not be closed."""

    def __init__(self, pieces: AsyncIterator[str], over: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(pieces, media_type="text/event-stream", headers=headers)
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()


class _Known:
    """Passes on what is addressed to one of `hosts`, by whatever port, and refuses the rest."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = Headers(scope=scope).get("host", "")
        found = _HOST.fullmatch(said.lower())
        if found is not None and (found["v6"] or found["name"]) in self._hosts:
            await self._app(scope, receive, send)
            return
        message = (
            f"this is no host {said!r}: the server is for this machine (a proxy has to send Host: localhost)"
        )
        response = _error(400, message, "invalid_request_error")
        await response(scope, receive, send)


async def _next(
    news: asyncio.Queue[tuple[int, News]], gone: asyncio.Future[None] | None, patience: float | None
) -> tuple[int, News] | None:
    """The next news; None when there are none for `patience` seconds. Raises what they say is wrong, and ClientDisconnect
    when `gone` is done: nobody waits for them any more."""
    coming = asyncio.ensure_future(news.get())
    either: set[asyncio.Future[Any]] = {coming} if gone is None else {coming, gone}
    try:
        await asyncio.wait(either, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if gone is not None and gone.done():
            raise ClientDisconnect
        if not coming.done():
            return None
    finally:
        coming.cancel()
    number, what = coming.result()
    if what.error is not None:
        raise what.error
    return number, what


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    """The body of a request. Raises HTTPException for what is no JSON by its own account, or too large."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the request has to say Content-Type: application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            hint = "`rwkv state build` reads longer texts, and --state serves what they leave"
            raise HTTPException(413, f"the request is larger than {LARGEST_BODY >> 20} MiB ({hint})")
    return bytes(body)


def _event(chunk: dict[str, Any], write: Callable[[Any], str] = json_of) -> str:
    """A server-sent event, named as its type where it has one."""
    text = write(chunk)
    for c, escaped in _LINE_ENDS.items():
        text = text.replace(c, escaped)
    name = f"event: {chunk['type']}\n" if "type" in chunk else ""
    return f"{name}data: {text}\n\n"


def _answer_to(error: BaseException) -> Response:
    """What an error looks like to the asker."""
    if isinstance(error, UsageError):
        message = str(error) + (f" ({error.hint})" if error.hint else "")
        param, code = getattr(error, "param", None), getattr(error, "code", None)
        return _error(400, message, "invalid_request_error", param, code)
    if isinstance(error, Busy | Stopped):
        return _error(503, str(error), "overloaded_error", headers={"Retry-After": "5"})
    if isinstance(error, ClientDisconnect):
        return _error(499, "the asker has gone", "gone")
    return _error(500, str(error) or type(error).__name__, "server_error")


def _error(
    status: int,
    message: str,
    kind: str,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    return JSONResponse(failure(message, kind, param, code), status, headers)


def _no_response(name: str) -> Response:
    return _error(404, f"no response {name!r} is stored here", "not_found_error", "response_id")


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = {404: "no such address", 405: "not that method here"}.get(error.status_code, error.detail)
    return _error(error.status_code, detail, "invalid_request_error", headers=dict(error.headers or {}))
