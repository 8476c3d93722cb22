"""What a person asks a text to conform to, by options or by a line of JSON, and how a text is held to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rwkvcli.errors import UsageError
from rwkvcli.runtime.constraint import KINDS, LARGEST, Constraint
from rwkvcli.runtime.templates import WAYS

if TYPE_CHECKING:
    from rwkvcli.runtime.grammar import GrammarMatcher
    from rwkvcli.runtime.templates import Template
    from rwkvcli.runtime.tokenizer import Tokenizer
    from rwkvcli.services.generation import Settings

__all__ = ["KINDS", "LARGEST", "Constraint", "matcher_of", "of_line", "of_option"]


def of_option(kind: str, value: Any) -> Constraint:
    """What the option `--KIND` asks for, one of KINDS; a schema and a grammar are texts. Raises UsageError, MissingExtra."""
    from rwkvcli.runtime.grammar import require

    require(f"--{kind}")
    made = Constraint.of({kind: value})
    assert made is not None
    return made


def of_line(said: Mapping[str, Any]) -> Constraint | None:
    """What an object of JSON asks for, by one of KINDS: a schema is an object there. Raises UsageError, MissingExtra."""
    if not isinstance(said.get("schema"), dict | None):
        raise UsageError("schema is not an object")
    return Constraint.of(said)


def matcher_of(settings: Settings, template: Template, tokenizer: Tokenizer) -> GrammarMatcher | None:
    """What follows the tokens of a text, or of an answer in the form of `template`; None: it need not conform to anything.

    Raises UsageError.
    """
    constraint, think = settings.constraint, WAYS[settings.think or "off"]
    if constraint is None:
        return None
    if settings.think == "only":
        raise UsageError("thoughts alone cannot be held to a schema or grammar", hint="leave `only` out")
    if not settings.chat:
        return constraint.matcher(tokenizer)
    return constraint.answer_matcher(tokenizer, think == "on", template.lead_of(think))
