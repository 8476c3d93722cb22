"""Tools in requests for answers: what a request says of them, in one of OpenAI's two forms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rwkvcli.server.fields import Refused, get
from rwkvcli.services import tool_calls
from rwkvcli.services.tool_calls import CallConstraint, Tool, ToolRefused

if TYPE_CHECKING:
    from rwkvcli.runtime.templates import Template

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST = 128
"""Tools."""
_MODES = ("auto", "none", "required")


@dataclass(frozen=True)
class Tools:
    """What a request says of tools."""

    tools: tuple[Tool, ...]
    choice: str
    """One of _MODES."""
    only: str | None = None
    """The one that is to be called."""
    several: bool = True
    inside: str = "function"
    """The field of a tool that tells of it; empty: the tool itself does."""

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
            where = ".".join(filter(None, (f"tools[{e.number}]", self.inside, "parameters")))
            name = self.tools[e.number].name
            raise Refused(f"{where} of {name}: {e}", where, hint=e.hint) from None


def tools_of(said: Mapping[str, Any], inside: str = "function") -> Tools | None:
    """What a body says of tools; None: there are none. Where none may be called, what is wrong with them is passed over.

    `inside`: the field in which a tool, and a choice of one, says which function it is; empty: beside its type.
    """
    if not said.get("tools"):
        return None
    if said.get("tool_choice") != "none":
        return _tools_of(said, inside)
    try:
        return _tools_of(said, inside)
    except Refused:
        return None


def _tools_of(said: Mapping[str, Any], inside: str) -> Tools:
    given = get(said, "tools", list)
    if len(given) > _MOST:
        raise Refused(f"tools has {len(given)} tools: more than {_MOST}", "tools")
    tools: list[Tool] = []
    for number, one in enumerate(given):
        function, where = function_of(one, f"tools[{number}]", inside)
        tool = _tool(function, where)
        if any(tool.name == other.name for other in tools):
            raise Refused(f"{where}.name is that of another tool: {tool.name}", f"{where}.name")
        tools.append(tool)
    several = get(said, "parallel_tool_calls", bool)
    choice, only = _choice(said.get("tool_choice"), [tool.name for tool in tools], inside)
    return Tools(tuple(tools), choice, only, several is not False, inside)


def function_of(given: Any, where: str, inside: str = "function") -> tuple[dict[str, Any], str]:
    """What a tool, or a call of one, says of its function, and the place of that in the request."""
    if not isinstance(given, dict):
        raise Refused(f"{where} is not an object", where)
    kind = given.get("type")
    if kind != "function":
        hint = "tools of the type function are supported"
        said = f"{where}.type is {kind}, which is not supported" if kind else f"{where}.type is missing"
        raise Refused(said, f"{where}.type", hint=hint)
    if not inside:
        return given, where
    function = get(given, inside, dict, f"{where}.")
    where = f"{where}.{inside}"
    if function is None:
        raise Refused(f"{where} is missing", where)
    return function, where


def name_of(function: Mapping[str, Any], where: str) -> str:
    """The name of a function."""
    name = get(function, "name", str, f"{where}.")
    if name is None or _NAME.fullmatch(name) is None:
        message = f"{where}.name is not 1 to 64 letters, digits, underscores, dots and hyphens"
        raise Refused(message, f"{where}.name")
    return str(name)


def _tool(function: Mapping[str, Any], where: str) -> Tool:
    parameters = get(function, "parameters", dict, f"{where}.")
    strict = bool(get(function, "strict", bool, f"{where}."))
    return Tool(name_of(function, where), get(function, "description", str, f"{where}."), parameters, strict)


def _choice(given: Any, names: Sequence[str], inside: str) -> tuple[str, str | None]:
    """How tools are to be called, and the one that is, if it is named."""
    if given is None:
        return "auto", None
    if given in _MODES:
        return given, None
    function: Any = given if isinstance(given, dict) and given.get("type") == "function" else {}
    if inside:
        function = function.get(inside)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        form = f'"{inside}": {{"name": ...}}' if inside else '"name": ...'
        raise Refused(
            f'tool_choice is one of {", ".join(_MODES)}, or {{"type": "function", {form}}}', "tool_choice"
        )
    if name not in names:
        raise Refused(f"tool_choice names {name!r}, and no tool is called so", "tool_choice")
    return "required", name
