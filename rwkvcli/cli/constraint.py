"""The options that say what a text must conform to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rwkvcli.cli.options import Misuse
from rwkvcli.cli.prompt import STDIN, argument_bytes, normalized, read_file
from rwkvcli.errors import UsageError

if TYPE_CHECKING:
    from rwkvcli.services.constraining import Constraint

_HINTS = {"schema": "--schema takes a file, or JSON that begins with {", "grammar": "--grammar takes a file"}


def asked_constraint(
    schema: str | None, regex: str | None, choices: Sequence[str] | None, grammar: str | None
) -> Constraint | None:
    """What the options ask for, checked. Raises Misuse for two of them, MissingExtra, UsageError and SourceNotFound."""
    given = {"schema": schema, "regex": regex, "choices": choices or None, "grammar": grammar}
    named = [kind for kind, value in given.items() if value is not None]
    if not named:
        return None
    if len(named) > 1:
        raise Misuse(f"--{named[0]} and --{named[1]} do not go together: use one of them")
    from rwkvcli.services.constraining import of_option

    if choices:
        return of_option("choices", [_as_typed(choice) for choice in choices])
    kind = named[0]
    text = _as_typed(str(given[kind]))
    is_file = kind == "grammar" or (kind == "schema" and not text.lstrip().startswith("{"))
    return of_option(kind, _file_text(kind, str(given[kind])) if is_file else text)


def _as_typed(argument: str) -> str:
    """An argument as text; bytes that are not UTF-8 stay, and are refused with the rest."""
    return argument_bytes(argument).decode("utf-8", "surrogateescape")


def _file_text(kind: str, name: str) -> str:
    from rwkvcli.services.constraining import LARGEST

    if name == STDIN:
        raise Misuse(f"--{kind} takes a file, and stdin is text for the model (`./-` is a file of that name)")
    data = read_file(name, _HINTS[kind], LARGEST + 1)
    if len(data) > LARGEST:
        raise UsageError(f"{name}: larger than {LARGEST >> 10} KB", hint=_HINTS[kind])
    try:
        return normalized(data, keep_newline=True).decode("utf-8")
    except UnicodeDecodeError as e:
        raise UsageError(f"{name}: byte {e.start} is not UTF-8", hint=_HINTS[kind]) from None
