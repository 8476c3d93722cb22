"""Reading bodies of JSON: what is wrong in them, and fields of a kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rwkvcli.errors import UsageError

_KINDS = {str: "a string", bool: "true or false", int: "a whole number", list: "a list", dict: "an object"}


class Refused(UsageError):
    """A request that makes no sense; `param` is the name of what is wrong in it."""

    def __init__(self, message: str, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


def get(said: Mapping[str, Any], name: str, kind: type, where: str = "") -> Any:
    """`said[name]` of the type `kind`, or None. `where`: what stands before the name in what is told of it."""
    value = said.get(name)
    if value is not None and type(value) is not kind:
        raise Refused(f"{where}{name} is not {_KINDS[kind]}", where + name)
    return value


def content(given: Any, where: str) -> str:
    """The text of a message: a string, or a list of parts that are texts."""
    texts: list[str] = []
    for part in given if isinstance(given, list) else [given]:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if not isinstance(text, str):
            message = f"{where} is neither a string nor a list of texts"
            raise Refused(message, where, hint="models here read text alone")
        texts.append(text)
    return "".join(texts)
