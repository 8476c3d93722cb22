"""Streams of the Responses API that break, or whose askers hang up; and what is stored then."""

from __future__ import annotations

import threading
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from model_server import Here, Response, serving
from response_events import RESPONSES, events_of

from rwkvcli import Model
from rwkvcli.server.stored import Stored

ENDLESS = {"input": "It was", "max_output_tokens": -1, "logit_bias": {"0": -1000, "10": -1000}}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of what is stored."""
    ids: list[str] = []
    keep = Stored.keep

    def noted(stored: Stored, body: Any, turn: Any) -> None:
        ids.append(body["id"])
        keep(stored, body, turn)

    monkeypatch.setattr(Stored, "keep", noted)
    return ids


@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_waits_for_is_not_stored(here: Here, kept: list[str], stream: bool) -> None:
    here.hang_up(RESPONSES, {**ENDLESS, "stream": stream, "stop": None})
    while here.texts.load != (0, 0):
        here.post(RESPONSES, {"input": "a", "max_output_tokens": 1, "store": False})
    assert any(line.startswith(f"{RESPONSES} gone: ") for line in here.log)
    assert kept == []


def test_a_stream_that_breaks_says_so(here: Here, kept: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    forward = Model.forward_batch
    evaluate = Model.evaluate

    def broken(self: Model, *args: Any, make: Any = evaluate) -> Any:
        nonlocal calls
        calls += 1
        if calls > 10:
            raise RuntimeError("the device is gone")
        return make(self, *args)

    monkeypatch.setattr(Model, "evaluate", broken)
    monkeypatch.setattr(Model, "forward_batch", lambda self, *args: broken(self, *args, make=forward))
    *events, error, failed = events_of(here.post(RESPONSES, {**ENDLESS, "stream": True}))
    assert error == {
        "type": "error", "sequence_number": len(events), "code": "server_error", "message": "the device is gone",
        "param": None,
    }  # fmt: skip
    response = failed["response"]
    assert (failed["type"], response["status"]) == ("response.failed", "failed")
    assert response["error"] == {"code": "server_error", "message": "the device is gone"}
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    (message,) = response["output"]
    assert text
    assert (message["content"][0]["text"], message["status"]) == (text, "incomplete")
    assert kept == []
    assert [str(fault) for fault in here.faults] == ["the device is gone"]


def test_what_breaks_before_the_first_token_is_an_error(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(Model, "evaluate", broken)
    for stream in (False, True):
        response = here.post(RESPONSES, {"input": f"nobody asked this before {stream}", "stream": stream})
        assert (response.status, response.json["error"]["message"]) == (500, "the device is gone")


def test_the_end_of_the_server_is_told(model: Model, kept: list[str]) -> None:
    answers: dict[bool, Response] = {}

    def ask(stream: bool) -> None:
        answers[stream] = here.post(RESPONSES, {**ENDLESS, "stream": stream})

    with serving(model) as here:
        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        while here.texts.load[0] < 2:
            pass
    for thread in threads:
        thread.join()
    assert answers[False].status == 503
    if answers[True].status == 503:  # it ended before the first token
        return
    failed = events_of(answers[True])[-1]["response"]
    assert failed["error"]["message"] == "the server is stopping"
    assert kept == []


def test_events_are_lines_to_whoever_splits_them(here: Here) -> None:
    given = "".join(chr(c) for c in (0x85, 0x2028, 0x2029, 0x1F600))
    body = {"input": "Hello", "instructions": given, "max_output_tokens": 1, "stream": True}
    response = here.post(RESPONSES, body)
    text = response.body.decode()
    assert text.splitlines() == text.removesuffix("\n").split("\n")
    assert events_of(response)[0]["response"]["instructions"] == given
