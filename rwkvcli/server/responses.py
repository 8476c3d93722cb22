"""What a body of JSON asks for in the form of the Responses API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rwkvcli.server import requests
from rwkvcli.server.answers import json_in_parts
from rwkvcli.server.fields import Refused, get, refuse
from rwkvcli.server.items import items_of, said_in
from rwkvcli.server.messages import Said, messages_of
from rwkvcli.server.stored import Stored, Turn
from rwkvcli.server.tools import Tools, tools_of

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State
    from rwkvcli.server.requests import Form, Wanted
    from rwkvcli.services.generation import Settings

_LOGPROBS = "message.output_text.logprobs"
_TRUNCATION = ("auto", "disabled")


@dataclass(frozen=True)
class WantedResponse:
    """A request, understood."""

    text: Wanted
    """The one text that is to be made."""
    turn: Turn
    """What it adds to the conversation."""
    store: bool
    """Whether the response can be gone on from."""
    settings: Mapping[str, Any]
    """What of the request the response repeats."""


def response(
    said: Mapping[str, Any], model: Model, states: Mapping[str, State], think: str | None, stored: Stored
) -> WantedResponse:
    """What `POST /v1/responses` asks for; `stored` are those that it may go on from. The others as in `requests.chat`. Raises
    UsageError."""
    _refuse(said)
    before = _before(said, stored)
    turn = Turn(items_of(said, stored.item), before)
    instructions = get(said, "instructions", str)
    conversation = [*said_in(before.items() if before is not None else [], turn.given)]
    if not conversation:
        raise Refused("input is a list of at least one message", "input")
    first = [Said("system", instructions)] if instructions else []
    tools = tools_of(said, inside="")
    reasoning = get(said, "reasoning", dict) or {}
    effort = get(reasoning, "effort", str, "reasoning.")
    way = requests.way_of(said, model, effort, "reasoning.effort", think)
    form = _form(said)
    text = requests.answer(
        said,
        model,
        states,
        messages_of([*first, *conversation], model.template, tools),
        tools=tools,
        way=way,
        form=form,
        limit=requests.limit_of(said, requests.CHAT_TOKENS, "max_output_tokens", "max_tokens"),
        logprobs=_logprobs(said),
    )
    store, made = get(said, "store", bool), text.asked[0].settings
    settings = {
        "background": False,
        "instructions": instructions,
        "max_output_tokens": made.max_tokens if made.max_tokens >= 0 else None,
        "metadata": _metadata(said),
        "parallel_tool_calls": get(said, "parallel_tool_calls", bool) is not False,
        "previous_response_id": said.get("previous_response_id"),
        "reasoning": {"effort": effort, "summary": None},
        "store": store is not False,
        **_sampling(model, made),
        "text": {"format": form.given or {"type": "text"}},
        **_of_tools(said, tools),
        "top_logprobs": get(said, "top_logprobs", int) or 0,
        "truncation": said.get("truncation") or _TRUNCATION[1],
    }
    return WantedResponse(text, turn, store is not False, _repeatable(settings))


def _repeatable(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings`, if they can be written as JSON: what is read as such may have more."""
    try:
        json_in_parts(settings)
    except (ValueError, RecursionError):
        raise Refused("the request has numbers that are none in JSON, or too many levels") from None
    return settings


def _refuse(said: Mapping[str, Any]) -> None:
    """Raise Refused for what cannot be done, and for fields that are called otherwise here."""
    refuse(said, "background", "conversation", "prompt")
    for name, hint in (("messages", "input"), ("response_format", "text.format")):
        if said.get(name):
            raise Refused(f"{name} is not supported", name, hint=f"it is {hint} here")
    if get(said, "n", int) not in (None, 1):
        raise Refused("n is not supported: a response has one answer", "n")
    if said.get("truncation") not in (None, *_TRUNCATION):
        raise Refused(f"truncation is {' or '.join(_TRUNCATION)}", "truncation")


def _before(said: Mapping[str, Any], stored: Stored) -> Turn | None:
    """The conversation that a request goes on with."""
    name = get(said, "previous_response_id", str)
    if name is None:
        return None
    found = stored.find(name)
    if found is None:
        raise Refused(
            f"no response {name!r} is stored here",
            "previous_response_id",
            hint="send the conversation in input",
            code="previous_response_not_found",
        )
    return found.turn


def _form(said: Mapping[str, Any]) -> Form:
    text = get(said, "text", dict) or {}
    return requests.Form(get(text, "format", dict, "text."), "text.format")


def _logprobs(said: Mapping[str, Any]) -> int | None:
    """How many of the likeliest tokens are told of; None: nothing is."""
    top = get(said, "top_logprobs", int) or 0
    return top if _LOGPROBS in (get(said, "include", list) or ()) else None


def _metadata(said: Mapping[str, Any]) -> dict[str, str]:
    found = get(said, "metadata", dict) or {}
    if not all(isinstance(value, str) for value in found.values()):
        raise Refused("metadata is not an object of strings", "metadata")
    return dict(found)


def _sampling(model: Model, settings: Settings) -> dict[str, float]:
    """What the sampler does of what OpenAI's has a name for."""
    from rwkvcli.runtime.sampling import SamplingParams

    usual = model.template.settings(True, requests.thinking_of(settings.think))
    params = SamplingParams.of(usual, settings.sampling)
    return {"temperature": params.temperature, "top_p": params.top_p}


def _of_tools(said: Mapping[str, Any], tools: Tools | None) -> dict[str, Any]:
    """The tools, and how they are called."""
    if tools is None:
        return {"tool_choice": "none" if said.get("tool_choice") == "none" else "auto", "tools": []}
    choice = tools.choice if tools.only is None else {"type": "function", "name": tools.only}
    told = [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": tool.strict,
        }
        for tool in tools.tools
    ]
    return {"tool_choice": choice, "tools": told}
