"""Turning the words of a command line into numbers, flags and choices.

Typer would do it through pydantic, whose import alone takes longer than all the rest of a start. The types
and bounds are the ones that the verb's own signature declares.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import typer

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")
_FILES = ("FILE", "OUT", "STATE...", "FILE|JSON")
"""What stands for the name of a file in help pages."""


def says_yes(text: str) -> bool:
    """Whether the value of an environment variable switches a flag on; for one that may be nonsense."""
    return text.lower() not in _FALSE


class _Declared(NamedTuple):
    """A parameter, how Typer would process it, its type, and Typer's info with the bounds."""

    param: Any
    original: Callable[..., Any]
    kind: Any
    info: Any


def convert_plainly(command: Any, function: Callable[..., Any]) -> Any:
    """Make every parameter of the Typer command `command`, made from `function`, convert its value here."""
    declared = inspect.signature(function).parameters
    for param in command.params:
        if param.name in declared:
            kind, info = _declaration(declared[param.name].annotation)
            param.process_value = partial(_process, _Declared(param, param.process_value, kind, info))
    return command


def _declaration(annotation: Any) -> tuple[Any, Any]:
    """The type inside `Annotated[type | None, info]`, and the info."""
    kind, info = typing.get_args(annotation)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (kind,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
    return kind, info


def _process(declared: _Declared, ctx: Any, value: Any) -> Any:
    """Convert one value; Typer's own code is left only the complaint about a missing one."""
    param, original, kind, info = declared
    if value is None or value == ():
        if param.required:
            return original(ctx, value)
        value = None
    elif info.metavar in _FILES and "" in ([value] if isinstance(value, str) else value):
        raise typer.BadParameter("the name is empty", ctx=ctx, param=param)  # it would be the working folder
    elif typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        value = [_convert(element, item, info) for element in value]
    else:
        try:
            value = _convert(value, kind, info)
        except ValueError as why:
            source = ctx.get_parameter_source(param.name)
            if getattr(source, "name", "") == "ENVIRONMENT":  # nobody typed the flag
                hint = f"environment variable {param.envvar}"
                raise typer.BadParameter(f"`{value}` is {why}", ctx=ctx, param_hint=hint) from None
            raise typer.BadParameter(f"`{value}` is {why}", ctx=ctx, param=param) from None
    if param.callback is not None:
        value = param.callback(ctx, param, value)
    return value


def _convert(value: Any, kind: Any, info: Any) -> Any:
    """`value` as `kind`; ValueError says what it is not."""
    if issubclass(kind, Enum):
        names = [str(choice.value) for choice in kind]
        if value in names or isinstance(value, kind):
            return kind(value)
        raise ValueError("not one of " + ", ".join(names))
    if kind is bool:
        if isinstance(value, bool):
            return value
        if value.lower() in _TRUE + _FALSE:
            return value.lower() in _TRUE
        raise ValueError("not yes or no (1 or 0)")
    if kind not in (int, float):
        return kind(value)
    try:
        number = kind(value)
    except ValueError:
        raise ValueError("not a whole number" if kind is int else "not a number") from None
    if math.isnan(number):
        raise ValueError("not a number")
    if info.min is not None and number < info.min:
        raise ValueError(f"below {info.min}")
    if info.max is not None and number > info.max:
        raise ValueError(f"above {info.max}")
    return number
