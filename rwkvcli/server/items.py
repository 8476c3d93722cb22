"""Items of the Responses API: what a conversation is made of there, as it is asked for, kept and given back."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rwkvcli.server.fields import Refused, content, get
from rwkvcli.server.messages import Call, Said, needed
from rwkvcli.server.stored import Item
from rwkvcli.server.tools import name_of

_ROLES = ("system", "developer", "user", "assistant")
_PARTS = ("input_text", "output_text", "text")
_MOST_LISTED = 100


def new_id(kind: str) -> str:
    """An id that nobody has or guesses."""
    return f"{kind}_{secrets.token_hex(12)}"


def text_part(text: str, logprobs: Sequence[Any] = ()) -> Item:
    """The text of an answer, as a part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*logprobs]}


def items_of(said: Mapping[str, Any], stored: Callable[[str], Item | None]) -> list[Item]:
    """The `input` of a body, each item in full and with an id, but for thoughts, which are not read again. `stored` finds an item
    by its id. Raises Refused."""
    given = said.get("input")
    if isinstance(given, str):
        return [_message({"role": "user", "content": given}, "input")]
    if not isinstance(given, list):
        raise Refused("input is neither a string nor a list of items", "input")
    return [_item(one, f"input[{number}]", stored) for number, one in enumerate(given)]


def _item(given: Any, where: str, stored: Callable[[str], Item | None]) -> Item:
    if not isinstance(given, dict):
        raise Refused(f"{where} is not an object", where)
    kind = given.get("type") or ("item_reference" if given.keys() == {"id"} else "message")
    if kind == "message":
        return _message(given, where)
    if kind == "reasoning":
        return {**_head(given, kind, "rs", where), "summary": []}
    if kind == "function_call":
        call_id, name = needed(given, "call_id", f"{where}."), name_of(given, where)
        arguments = needed(given, "arguments", f"{where}.")
        return {**_head(given, kind, "fc", where), "call_id": call_id, "name": name, "arguments": arguments}
    if kind == "function_call_output":
        call_id = needed(given, "call_id", f"{where}.")
        output = content(given.get("output"), f"{where}.output", _PARTS)
        return {**_head(given, kind, "fco", where), "call_id": call_id, "output": output}
    if kind == "item_reference":
        name = needed(given, "id", f"{where}.")
        item = stored(name)
        if item is None:
            raise Refused(f"{where}.id is that of no item that is stored here: {name!r}", f"{where}.id")
        return item
    hint = "there are message, function_call, function_call_output, item_reference and reasoning"
    raise Refused(f"{where}.type is {kind}, which is not supported", f"{where}.type", hint=hint)


def _message(given: Mapping[str, Any], where: str) -> Item:
    role = given.get("role")
    if role not in _ROLES:
        raise Refused(f"the role in {where} is none of {', '.join(_ROLES)}", f"{where}.role")
    text = content(given.get("content"), f"{where}.content", _PARTS)
    part = text_part(text) if role == "assistant" else {"type": "input_text", "text": text}
    return {**_head(given, "message", "msg", where), "role": role, "content": [part]}


def _head(given: Mapping[str, Any], kind: str, prefix: str, where: str) -> Item:
    own = get(given, "id", str, f"{where}.")
    return {"id": own or new_id(prefix), "type": kind, "status": "completed"}


def said_in(before: Sequence[Item], given: Sequence[Item]) -> Iterator[Said]:
    """What a conversation says that goes on from `before` with the `input` that is `given`."""
    answer: Said | None = None  # of the model; calls may follow
    for number, item in enumerate((*before, *given), -len(before)):
        kind = item["type"]
        if kind == "reasoning":
            continue
        if kind == "function_call":
            call = Call(item["call_id"], item["name"], item["arguments"])
            answer = answer or Said("assistant", "")
            answer = replace(answer, calls=(*answer.calls, call))
            continue
        if answer is not None:
            yield answer
            answer = None
        if kind == "function_call_output":
            yield Said("tool", item["output"], of_call=item["call_id"], where=f"input[{number}].call_id")
        elif item["role"] == "assistant":
            answer = Said("assistant", item["content"][0]["text"])
        else:
            yield Said(item["role"], item["content"][0]["text"])
    if answer is not None:
        yield answer


def page_of(items: Sequence[Item], query: Mapping[str, str]) -> dict[str, Any]:
    """A list of items, as `limit`, `order` and `after` of a query ask for it. Raises Refused."""
    limit, order, after = query.get("limit", "20"), query.get("order", "desc"), query.get("after")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= _MOST_LISTED:
        raise Refused(f"limit is from 1 to {_MOST_LISTED}", "limit")
    if order not in ("asc", "desc"):
        raise Refused("order is asc or desc", "order")
    listed = items if order == "asc" else items[::-1]
    if after is not None:
        at = next((i for i, item in enumerate(listed) if item["id"] == after), None)
        if at is None:
            raise Refused(f"after is the id of no item here: {after!r}", "after")
        listed = listed[at + 1 :]
    data = listed[: int(limit)]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {
        "object": "list",
        "data": [*data],
        "first_id": first,
        "last_id": last,
        "has_more": len(data) < len(listed),
    }
