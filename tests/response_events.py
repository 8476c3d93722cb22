"""Streams of the Responses API, put together and checked event by event."""

from __future__ import annotations

import json
from typing import Any

from model_server import Here, Response

RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
DELTAS = {
    "response.output_text.delta": "text",
    "response.reasoning_text.delta": "text",
    "response.function_call_arguments.delta": "arguments",
}


def events_of(response: Response) -> list[dict[str, Any]]:
    """The events of a stream, numbered and each named as its type."""
    assert response.status == 200, response.body
    *blocks, rest = response.body.decode().split("\n\n")
    assert rest == ""
    events = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        events.append(event)
    return events


def put_together(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response that events tell of, after checking that they say the same of it."""
    created, going, *middle, end = events
    assert (created["type"], going["type"]) == ("response.created", "response.in_progress")
    assert created["response"] == going["response"]
    assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
    whole: dict[str, Any] = end["response"]
    assert end["type"] == f"response.{whole['status']}"
    items: list[dict[str, Any]] = []
    parts: list[str] = []
    for event in middle:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            items.append(event["item"])
            parts = []
            continue
        item = items[-1]
        assert event["output_index"] == len(items) - 1
        if kind == "response.output_item.done":
            assert event["item"]["id"] == item["id"]
            items[-1] = event["item"]
            said = event["item"].get("arguments")
            assert "".join(parts) == (event["item"]["content"][0]["text"] if said is None else said)
            continue
        assert event["item_id"] == item["id"]
        if item["type"] != "function_call":
            assert event["content_index"] == 0
        if kind in DELTAS:
            parts.append(event["delta"])
        elif kind == "response.content_part.added":
            assert (event["part"]["text"], parts) == ("", [])
        elif kind == "response.content_part.done":
            assert event["part"]["text"] == "".join(parts)
        else:
            assert kind in {name.replace("delta", "done") for name in DELTAS}
            assert event[DELTAS[kind.replace("done", "delta")]] == "".join(parts)
    assert items == whole["output"]
    same = {
        name
        for name in whole
        if name not in ("status", "completed_at", "usage", "output", "incomplete_details")
    }
    assert {name: created["response"][name] for name in same} == {name: whole[name] for name in same}
    return whole


def nameless(response: dict[str, Any]) -> dict[str, Any]:
    """What two responses to the same request have in common."""

    def without(item: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in item.items() if name not in ("id", "call_id")}

    usage = {**response["usage"], "input_tokens_details": None}
    rest = {"id": None, "created_at": None, "completed_at": None, "usage": usage}
    return {**response, **rest, "output": [*map(without, response["output"])]}


def ask(here: Here, body: dict[str, Any]) -> dict[str, Any]:
    """The response, which a stream tells of as well."""
    response = here.post(RESPONSES, body)
    assert response.status == 200, response.body
    found: dict[str, Any] = response.json
    streamed = put_together(events_of(here.post(RESPONSES, {**body, "stream": True})))
    assert nameless(streamed) == nameless(found)
    return found


def text_of(response: dict[str, Any]) -> str:
    """The text of its messages."""
    messages = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for message in messages for part in message["content"])


def calls_of(response: dict[str, Any]) -> list[dict[str, Any]]:
    """Its calls of tools."""
    return [item for item in response["output"] if item["type"] == "function_call"]


def new_tokens(response: dict[str, Any]) -> int:
    """How many tokens had to be read."""
    usage: dict[str, Any] = response["usage"]
    return int(usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"])
