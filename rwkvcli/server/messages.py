"""Messages in requests for answers, in which tools may have been called: as a chat has them, and as the model reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkvcli.server.fields import Refused, content, get
from rwkvcli.server.tools import Tools, function_of, name_of
from rwkvcli.services import tool_calls
from rwkvcli.services.dialogue import Message

if TYPE_CHECKING:
    from rwkvcli.runtime.templates import Template

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "user"}
"""Of messages, and whose part that is in a conversation."""


class Call(NamedTuple):
    """A call of a tool, and its id; `arguments` are JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Said:
    """A message, whatever form a request has."""

    role: str
    """One of ROLES; `tool`: what came of a call."""
    text: str
    calls: tuple[Call, ...] = ()
    """That come after the text."""
    of_call: str | None = None
    """The id of the call that it came of."""
    where: str = ""
    """The place of that id in the request."""


def messages_of(said: Iterable[Said], template: Template, tools: Tools | None) -> list[Message]:
    """What was said, with calls and what came of them as the model reads and writes them, and with what it is told of `tools`
    behind the instructions. Raises Refused."""
    messages = list(_messages(said, template))
    if tools is None:
        return messages
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages) - 1)
    listed = Message("system", tool_calls.instructions(template, tools.tools))
    return [*messages[:start], listed, *messages[start:]]


def _messages(said: Iterable[Said], template: Template) -> Iterator[Message]:
    called: dict[str, str | None] = {}  # what stands over the results of calls, by their ids
    for one in said:
        text = one.text
        if one.calls:
            called.update((call.id, call.name if len(one.calls) > 1 else None) for call in one.calls)
            text = tool_calls.calling(template, text, [(call.name, call.arguments) for call in one.calls])
        if one.role == "tool":
            if one.of_call is None or one.of_call not in called:
                raise Refused(f"{one.where} is the id of no call before it", one.where)
            text = tool_calls.result(template, text, called[one.of_call])
        yield Message(ROLES[one.role], text)  # type: ignore[arg-type]


def said_in_chat(body: Mapping[str, Any]) -> Iterator[Said]:
    """The `messages` of a body. Raises Refused."""
    given = get(body, "messages", list)
    if not given:
        raise Refused("messages is a list of at least one", "messages")
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise Refused(f"the role in {where} is none of {', '.join(ROLES)}", where)
        calls = tuple(_calls(message, where)) if role == "assistant" else ()
        if calls and message.get("content") is None:
            text = ""
        else:
            text = content(message.get("content"), f"{where}.content")
        of_call = message.get("tool_call_id") if role == "tool" else None
        yield Said(role, text, calls, of_call if isinstance(of_call, str) else None, f"{where}.tool_call_id")


def _calls(message: Mapping[str, Any], where: str) -> Iterator[Call]:
    for number, call in enumerate(get(message, "tool_calls", list, f"{where}.") or ()):
        at = f"{where}.tool_calls[{number}]"
        made = {"type": "function", **call} if isinstance(call, dict) else call
        function, inside = function_of(made, at)
        name = name_of(function, inside)
        yield Call(needed(made, "id", f"{at}."), name, needed(function, "arguments", f"{inside}."))


def needed(said: Mapping[str, Any], name: str, where: str) -> str:
    """A string that has to be there."""
    value = get(said, name, str, where)
    if value is None:
        raise Refused(f"{where}{name} is missing", where + name)
    return str(value)
