"""Tools that a model may call in a conversation: how they are told to it, and how its calls and what came of them stand in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rwkvcli.errors import MissingExtra, UsageError
from rwkvcli.runtime.call_constraint import CallConstraint
from rwkvcli.runtime.constraint import Constraint
from rwkvcli.runtime.tool_calls import CallForm, CallPiece, CallSplitter

if TYPE_CHECKING:
    from rwkvcli.runtime.templates import Template

__all__ = ["CallConstraint", "CallPiece", "CallSplitter", "Tool", "constraint_of", "splitter_of"]

_OPENS = ("additionalProperties", "allOf", "anyOf", "oneOf", "$ref")
"""What in a schema may bring keys beside `properties`."""


@dataclass(frozen=True)
class Tool:
    """A function that the asker has."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    """JSON Schema; None: there are none."""
    strict: bool = False
    """Whether what of the schema cannot be kept to is refused, instead of passed over."""

    def arguments(self) -> Constraint:
        """What the arguments of a call conform to. Raises UsageError and MissingExtra."""
        schema: dict[str, Any] = {"properties": {}} if self.parameters is None else {**self.parameters}
        if schema.setdefault("type", "object") != "object":
            raise UsageError("the schema is not that of an object, as arguments are")
        keys, required = schema.get("properties"), schema.get("required", [])
        known = (
            isinstance(keys, Mapping)
            and isinstance(required, list)
            and all(isinstance(key, str) and key in keys for key in required)
        )
        if known and schema.keys().isdisjoint(_OPENS):
            schema["additionalProperties"] = False  # by itself it lets a model think up arguments
        return Constraint.of_schema(schema, lenient=not self.strict)

    def told(self) -> dict[str, Any]:
        """What the model is told of it."""
        said = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {key: value for key, value in said.items() if value is not None}


class ToolRefused(UsageError):
    """Tool number `number` cannot be called."""

    def __init__(self, message: str, hint: str | None, number: int) -> None:
        super().__init__(message, hint=hint)
        self.number = number


def constraint_of(
    tools: Sequence[Tool], callable_: Sequence[str], template: Template, *, free: bool, several: bool
) -> CallConstraint:
    """What an answer is held to that calls those of `tools` with the names `callable_`; `free` and `several` as in
    CallConstraint. Raises ToolRefused, UsageError and MissingExtra."""
    from rwkvcli.runtime.grammar import require

    require("tools")
    arguments: dict[str, Constraint] = {}
    for number, tool in enumerate(tools):
        try:
            conforming = tool.arguments()
        except MissingExtra:
            raise
        except UsageError as e:
            raise ToolRefused(str(e), e.hint, number) from None
        if tool.name in callable_:
            arguments[tool.name] = conforming
    return CallConstraint.of_tools(arguments, template, free=free, several=several)


def splitter_of(constraint: CallConstraint) -> CallSplitter:
    """What takes an answer apart that was held to `constraint`."""
    return CallSplitter(constraint.form, constraint.names, free=constraint.free)


def instructions(template: Template, tools: Sequence[Tool]) -> str:
    """What the model is told of `tools`, behind all other instructions."""
    before, _, after = template.tools.partition("{tools}")
    listed = json.dumps([tool.told() for tool in tools], ensure_ascii=False, separators=(",", ":"))
    return before + listed + after


def calling(template: Template, text: str, calls: Sequence[tuple[str, str]]) -> str:
    """An answer of `text` and then `calls`: names and arguments, which are JSON; as the model writes it."""
    form = CallForm.of(template)
    return "\n".join(filter(None, (text.strip(), *(form.render(*call) for call in calls))))


def result(template: Template, text: str, name: str | None) -> str:
    """What a tool gave, as the person's side says it; with the name of the tool where several were called."""
    if name is None:
        return template.result.replace("{result}", text)
    before, _, after = template.results.partition("{result}")
    return before.replace("{name}", name) + text + after
