"""Streams whose askers hang up, do not read, or have nothing to read for a long time."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from model_server import Here, serving

from rwkvcli import Model
from rwkvcli.runtime.templates import named
from rwkvcli.server import app

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDLESS = {"prompt": "It was", "max_tokens": -1, "logit_bias": {"0": -1000}}


def wait_until_idle(here: Here) -> None:
    while here.texts.load != (0, 0):
        assert here.post(COMPLETIONS, {"prompt": "a", "max_tokens": 1}).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_costs_nothing_more(here: Here, stream: bool) -> None:
    here.hang_up(COMPLETIONS, {**ENDLESS, "stream": stream})
    wait_until_idle(here)
    assert any(line.startswith(f"{COMPLETIONS} gone: 6 tokens in") for line in here.log)


class Asker:
    """Asks `here` for an endless stream, without a connection between; takes what it is sent when it `reads`."""

    def __init__(self, here: Here, *, stays: bool) -> None:
        self._here = here
        self._stays = stays
        self._asked = 0
        self.reads = asyncio.Event()
        self.sent: list[Any] = []

    async def __call__(self) -> None:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": headers}
        await self._here.app({**scope, "query_string": b"", "asgi": {}}, self._receive, self._send)

    async def idle(self) -> None:
        """Wait until nothing is made any more."""
        while self._here.texts.load != (0, 0):
            await asyncio.sleep(0)

    async def _receive(self) -> dict[str, Any]:
        self._asked += 1
        if self._asked == 1:
            return {"type": "http.request", "body": json.dumps({**ENDLESS, "stream": True}).encode()}
        if self._stays or self._asked == 2:  # the second time before the first token
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        self.sent.append(message)


def test_who_does_not_read_is_waited_for_no_longer(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_MOST_UNREAD", 50)

    async def ask() -> bytes:
        asker = Asker(here, stays=True)
        asking = asyncio.create_task(asker())
        while here.texts.load == (0, 0):
            await asyncio.sleep(0)
        await asker.idle()
        asker.reads.set()
        await asking
        return b"".join(message.get("body", b"") for message in asker.sent)

    *pieces, last, end = asyncio.run(ask()).decode().split("\n\n")
    assert 50 <= len(pieces) <= 55
    assert (json.loads(last.removeprefix("data: "))["error"]["message"], end) == (
        "the answer was not read",
        "",
    )


def test_what_is_not_sent_in_pieces_waits_for_no_reader(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_MOST_UNREAD", 0)
    response = here.post(COMPLETIONS, {"prompt": "It was", "max_tokens": 20, "n": 2})
    assert [choice["finish_reason"] for choice in response.json["choices"]] == ["length", "length"]


def test_who_goes_before_the_stream_begins_costs_nothing_more(here: Here) -> None:
    here.log.clear()

    async def ask() -> list[Any]:
        asker = Asker(here, stays=False)
        await asker()
        await asker.idle()
        return asker.sent

    assert asyncio.run(ask()) == []
    assert [line.partition(":")[0] for line in here.log] == [f"{COMPLETIONS} gone"]


def test_a_stream_of_hidden_thoughts_is_kept_open(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "template", named("g1"))
    ticks = itertools.count(0, 10)  # seconds between one look at the clock and the next
    monkeypatch.setattr(app, "time", SimpleNamespace(monotonic=lambda: next(ticks), time=time.time))
    body = {
        "messages": [{"role": "user", "content": "Hello"}],
        "think": "hide",
        "seed": 1,
        "max_tokens": 40,
        "stream": True,
    }
    with serving(model) as here:
        lines = here.post(CHAT, body).body.decode().split("\n\n")
    comments = [line for line in lines if not line.startswith("data: ")]
    assert len(comments) > 5
    assert set(comments) == {": still at it", ""}


def test_an_event_is_one_line_to_whoever_splits_it(here: Here) -> None:
    prompt = "".join(chr(c) for c in (*range(1, 0x100), 0x2028, 0x2029, 0x1F600))
    response = here.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 0, "echo": True, "stream": True})
    text = response.body.decode()
    assert text.splitlines() == text.removesuffix("\n").split("\n")
    assert response.events[0]["choices"][0]["text"] == prompt
    assert "\U0001f600" in text
