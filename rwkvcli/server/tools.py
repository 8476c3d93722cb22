"""Tools in requests for answers: what a request says of them, and its messages, in which they may have been called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rwkvcli.server.fields import Refused, content, get
from rwkvcli.services import tool_calls
from rwkvcli.services.dialogue import Message
from rwkvcli.services.tool_calls import CallConstraint, Tool, ToolRefused

if TYPE_CHECKING:
    from rwkvcli.runtime.templates import Template

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "user"}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST = 128
"""Tools."""
_MODES = ("auto", "none", "required")
_SUPPORTED = "tools of the type function are supported"


@dataclass(frozen=True)
class Tools:
    """What a request says of tools."""

    tools: tuple[Tool, ...]
    choice: str
    """One of _MODES."""
    only: str | None = None
    """The one that is to be called."""
    several: bool = True

    def constraint(self, template: Template) -> CallConstraint | None:
        """What the answer is held to; None: it is text. Raises Refused, MissingExtra and UsageError."""
        if self.choice == "none":
            return None
        names = [tool.name for tool in self.tools] if self.only is None else [self.only]
        try:
            return tool_calls.constraint_of(
                self.tools, names, template, free=self.choice == "auto", several=self.several
            )
        except ToolRefused as e:
            where = f"tools[{e.number}].function.parameters"
            name = self.tools[e.number].name
            raise Refused(f"{where} of {name}: {e}", where, hint=e.hint) from None


def tools_of(said: Mapping[str, Any]) -> Tools | None:
    """What a body says of tools; None: there are none. Where none may be called, what is wrong with them is passed over."""
    if not said.get("tools"):
        return None
    if said.get("tool_choice") != "none":
        return _tools_of(said)
    try:
        return _tools_of(said)
    except Refused:
        return None


def _tools_of(said: Mapping[str, Any]) -> Tools:
    given = get(said, "tools", list)
    if len(given) > _MOST:
        raise Refused(f"tools has {len(given)} tools: more than {_MOST}", "tools")
    tools: list[Tool] = []
    for number, one in enumerate(given):
        tool = _tool(one, f"tools[{number}]")
        if any(tool.name == other.name for other in tools):
            raise Refused(
                f"tools[{number}].function.name is that of another tool: {tool.name}",
                f"tools[{number}].function.name",
            )
        tools.append(tool)
    several = get(said, "parallel_tool_calls", bool)
    choice, only = _choice(said.get("tool_choice"), [tool.name for tool in tools])
    return Tools(tuple(tools), choice, only, several is not False)


def _tool(given: Any, where: str) -> Tool:
    if not isinstance(given, dict):
        raise Refused(f"{where} is not an object", where)
    if given.get("type") != "function":
        raise Refused(f"{where}.type is not function: {_SUPPORTED}", f"{where}.type")
    function = get(given, "function", dict, f"{where}.")
    where += ".function"
    if function is None:
        raise Refused(f"{where} is missing", where)
    parameters = get(function, "parameters", dict, f"{where}.")
    strict = bool(get(function, "strict", bool, f"{where}."))
    return Tool(_name(function, where), get(function, "description", str, f"{where}."), parameters, strict)


def _name(function: Mapping[str, Any], where: str) -> str:
    name = get(function, "name", str, f"{where}.")
    if name is None or _NAME.fullmatch(name) is None:
        message = f"{where}.name is not 1 to 64 letters, digits, underscores, dots and hyphens"
        raise Refused(message, f"{where}.name")
    return str(name)


def _choice(given: Any, names: Sequence[str]) -> tuple[str, str | None]:
    """How tools are to be called, and the one that is, if it is named."""
    if given is None:
        return "auto", None
    if given in _MODES:
        return given, None
    function = given.get("function") if isinstance(given, dict) and given.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        message = f'tool_choice is one of {", ".join(_MODES)}, or {{"type": "function", "function": {{"name": ...}}}}'
        raise Refused(message, "tool_choice")
    if name not in names:
        raise Refused(f"tool_choice names {name!r}, and no tool is called so", "tool_choice")
    return "required", name


def messages_of(said: Mapping[str, Any], template: Template, tools: Tools | None) -> list[Message]:
    """The messages of a body, calls and what came of them as the model reads and writes them. Raises Refused."""
    given = get(said, "messages", list)
    if not given:
        raise Refused("messages is a list of at least one", "messages")
    messages = list(_messages(given, template))
    if tools is None:
        return messages
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages) - 1)
    listed = Message("system", tool_calls.instructions(template, tools.tools))
    return [*messages[:start], listed, *messages[start:]]


def _messages(given: Sequence[Any], template: Template) -> Iterator[Message]:
    called: dict[str, str | None] = {}  # what stands over the results of calls, by their ids
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise Refused(f"the role in {where} is none of {', '.join(_ROLES)}", where)
        calls = _calls(message, where) if role == "assistant" else []
        if calls and message.get("content") is None:
            text = ""
        else:
            text = content(message.get("content"), f"{where}.content")
        if calls:
            called.update((each, name if len(calls) > 1 else None) for each, name, _ in calls)
            text = tool_calls.calling(template, text, [(name, arguments) for _, name, arguments in calls])
        if role == "tool":
            answered = message.get("tool_call_id")
            if not isinstance(answered, str) or answered not in called:
                raise Refused(f"{where}.tool_call_id is the id of no call before it", f"{where}.tool_call_id")
            text = tool_calls.result(template, text, called[answered])
        yield Message(_ROLES[role], text)  # type: ignore[arg-type]


def _calls(message: Mapping[str, Any], where: str) -> list[tuple[str, str, str]]:
    """The ids, names and arguments of the calls in a message."""
    found = []
    for number, call in enumerate(get(message, "tool_calls", list, f"{where}.") or ()):
        at = f"{where}.tool_calls[{number}]"
        if not isinstance(call, dict):
            raise Refused(f"{at} is not an object", at)
        if call.get("type", "function") != "function":
            raise Refused(f"{at}.type is not function: {_SUPPORTED}", f"{at}.type")
        function = get(call, "function", dict, f"{at}.")
        if function is None:
            raise Refused(f"{at}.function is missing", f"{at}.function")
        made = get(call, "id", str, f"{at}."), get(function, "arguments", str, f"{at}.function.")
        if None in made:
            name = "id" if made[0] is None else "function.arguments"
            raise Refused(f"{at}.{name} is missing", f"{at}.{name}")
        found.append((made[0], _name(function, f"{at}.function"), made[1]))
    return found
