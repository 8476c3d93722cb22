"""Telling the thoughts of a reasoning model from the answer after them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rwkvcli.errors import FormatError
from rwkvcli.runtime.streaming import AnswerTrim

OPEN, CLOSE = "<think>", "</think>"


class Part(NamedTuple):
    """A piece of an answer: of the thoughts before it, or of the answer proper. It may be empty."""

    text: str
    thinking: bool = False


class ThoughtSplitter:
    """Tells thoughts from the answer after them, both without white space around.

    `begun`: the prompt has opened the thoughts already. `lead` is what may come first and is neither. Without
    `begun`, a text that opens with `<think>` begins with thoughts all the same, unless `looks` is False: it is all
    answer then. `white`: as for AnswerTrim, of the answer.
    """

    def __init__(self, begun: bool, lead: str, *, looks: bool = True, white: str | None = None) -> None:
        self._lead = lead
        self._white = white
        self._thinks: bool | None = True if begun else None if looks else False
        self._held = ""
        self._trim = self._new_trim(bool(begun))
        self.told: bool | None = None
        """Whether the last that was told is a thought; None: nothing was told."""

    def push(self, text: str) -> list[Part]:
        """What can be told now."""
        text, self._held = self._held + text, ""
        if self._thinks is None:
            seen = text.lstrip()
            if len(seen) < len(OPEN) and OPEN.startswith(seen):
                self._held = text
                return []
            self._thinks = seen.startswith(OPEN)
            text = seen.removeprefix(OPEN) if self._thinks else text
        if not self._thinks:
            return self._parts(self._trim.push(text), False)
        thoughts, closed, answer = text.partition(CLOSE)
        if not closed:
            keep = next((n for n in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:n])), 0)
            self._held = text[len(text) - keep :]
            return self._parts(self._trim.push(text[: len(text) - keep]), True)
        parts = self._parts(self._trim.push(thoughts) + self._trim.flush(), True)
        self._thinks, self._trim = False, AnswerTrim("", self._white)
        return parts + self._parts(self._trim.push(answer), False)

    def flush(self) -> list[Part]:
        """What was held back."""
        text, self._held = self._held, ""
        return self._parts(self._trim.push(text) + self._trim.flush(), bool(self._thinks))

    @property
    def thinks(self) -> bool:
        """Whether what comes next is a thought, or the end of the thoughts."""
        return self._thinks is True

    def state(self) -> dict[str, Any]:
        """What is needed to go on later. Ready for JSON."""
        if self._thinks is False and self.told is not True:  # as one that never thought
            return self._trim.state()
        thoughts = {"thinks": self._thinks, "held": self._held, "told": self.told}
        return {**self._trim.state(), "thoughts": thoughts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken. Raises FormatError if it is not such a state."""
        thoughts = state.get("thoughts", {"thinks": False, "held": "", "told": None})
        thinks, held, told = (
            map(thoughts.get, ("thinks", "held", "told")) if isinstance(thoughts, Mapping) else (0, 0, 0)
        )
        if not (isinstance(held, str) and isinstance(thinks, bool | None) and isinstance(told, bool | None)):
            raise FormatError("not the state of an answer")
        trim = self._new_trim(thinks is not False)
        trim.restore(state)
        self._trim, self._thinks, self._held, self.told = trim, thinks, held, told

    def _new_trim(self, thinks: bool) -> AnswerTrim:
        """That of the thoughts, or of an answer without any."""
        return AnswerTrim(self._lead, None if thinks else self._white)

    def _parts(self, text: str, thinking: bool) -> list[Part]:
        if not text:
            return []
        self.told = thinking
        return [Part(text, thinking)]
