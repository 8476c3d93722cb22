"""Reading bodies of JSON: what is wrong in them, and fields of a kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rwkvcli.errors import UsageError

_KINDS = {str: "a string", bool: "true or false", int: "a whole number", list: "a list", dict: "an object"}


class Refused(UsageError):
    """A request that makes no sense; `param` is the name of what is wrong in it, `code` what programs know the fault by."""

    def __init__(
        self, message: str, param: str | None = None, hint: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code


def get(said: Mapping[str, Any], name: str, kind: type, where: str = "") -> Any:
    """`said[name]` of the type `kind`, or None. `where`: what stands before the name in what is told of it."""
    value = said.get(name)
    if value is not None and type(value) is not kind:
        raise Refused(f"{where}{name} is not {_KINDS[kind]}", where + name)
    return value


def refuse(said: Mapping[str, Any], *names: str) -> None:
    """Raise Refused for what would change an answer, and cannot be done."""
    for name in names:
        if said.get(name):
            raise Refused(f"{name} is not supported", name)


def content(given: Any, where: str, kinds: Collection[str] = ("text",)) -> str:
    """The text of a message: a string, or a list of parts that are texts, of the types `kinds`."""
    texts: list[str] = []
    for part in given if isinstance(given, list) else [given]:
        text = part.get("text") if isinstance(part, dict) and part.get("type") in kinds else part
        if not isinstance(text, str):
            message = f"{where} is neither a string nor a list of texts"
            raise Refused(message, where, hint="models here read text alone")
        texts.append(text)
    return "".join(texts)
