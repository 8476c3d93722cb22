"""Whole conversations as tokens: what a program gives that keeps the messages itself and asks for the next answer.

A conversation is encoded in pieces: up to where an answer begins, the answer, and from behind it up to the next one. So the
tokens of a conversation begin with those of the same conversation before its last answer, and its state can be gone on from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from rwkvcli.errors import UsageError
from rwkvcli.services.prefixes import common_prefix

if TYPE_CHECKING:
    from rwkvcli.runtime.templates import Template
    from rwkvcli.runtime.tokenizer import Tokenizer


class Message(NamedTuple):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


class Encoded(NamedTuple):
    """A conversation up to where the next answer begins."""

    ids: list[int]
    """At least one."""
    lasting: int | None
    """How many of `ids` the conversation will begin with when it has gone on, if not with all of them and the answer: one
    that is thought over begins in a form of its own, of which nothing stays."""


def encode(
    template: Template, tokenizer: Tokenizer, messages: Sequence[Message], think: str = "off", seam: str = ""
) -> Encoded:
    """The tokens of `messages`, the last of them the person's, in the form of the family; `think` as in
    `rwkvcli.runtime.templates.THINK`. `seam` stands between them and what the model has read before, if anything.

    System messages before all others are the instructions; a later one counts as part of what the person says next, as do
    several messages of the person without an answer between. Raises UsageError.
    """
    if not messages or messages[-1].role == "assistant":
        raise UsageError("the last message is not the person's", hint="an answer answers something")
    before, last, said = _pieces(template, messages, seam)
    ids = [tokenizer.eos_id] if template.begin and not seam else []
    for piece in before:
        ids += tokenizer.encode(piece)
    plain = own = tokenizer.encode(last + template.message(said))
    if think != "off":
        own = tokenizer.encode(last + template.message(said, think))
    # the end of one text is the beginning of the next
    lasting = None if own == plain else len(ids) + common_prefix(plain, own)
    return Encoded([*ids, *own] or [tokenizer.eos_id], lasting)


def _pieces(template: Template, messages: Sequence[Message], seam: str) -> tuple[list[str], str, str]:
    """All pieces but the last, what the last begins with, and what the person says in it."""
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages) - 1)
    text = seam + template.opening("\n\n".join(message.text for message in messages[:start]))
    pieces: list[str] = []
    said: list[str] = []
    for message in messages[start:]:
        if message.role != "assistant":
            said.append(message.text)
            continue
        begin, _, tail = template.answer.partition("{reply}")
        pieces.append(text + (template.message("\n\n".join(said)) if said else template.reply))
        pieces.append(begin + message.text.strip())
        text, said = tail, []
    return pieces, text, "\n\n".join(said)
