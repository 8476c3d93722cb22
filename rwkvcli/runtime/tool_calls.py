"""How a model writes calls of tools, and telling them from the text of an answer as it comes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rwkvcli.runtime.streaming import begun

if TYPE_CHECKING:
    from rwkvcli.runtime.templates import Template

_BEGIN = '{"name":'
_FREE = r'\{(?:\n[ \t]{1,8})?"name": ?'
"""The same in free text, where the name that follows has to be that of a tool: models put spaces in JSON, and indent it."""
_REACH = 128
"""Characters; the rest of such a beginning has fewer."""
_NAME = re.compile(r'\{\s*"name":\s*"([^"]*)"')
_BETWEEN = re.compile(r'\s*,\s*"arguments":\s*(?=\{)')


@dataclass(frozen=True)
class CallForm:
    """What stands around the JSON of a call, and what ends an answer of text alone: strings before which it is cut."""

    before: str
    after: str
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, template: Template) -> CallForm:
        """That of a family."""
        before, _, after = template.call.partition("{call}")
        return cls(before, after, template.stop)

    @property
    def opening(self) -> str:
        """What a call begins with, where there has to be one."""
        return self.before + _BEGIN

    def free_opening(self, name: str) -> str:
        """What a call begins with in free text, where other JSON may stand too, up to the end of the name: a regular expression."""
        return f'{re.escape(self.before)}{_FREE}"{re.escape(name)}"'

    def render(self, name: str, arguments: str) -> str:
        """A call; `arguments` are JSON."""
        return f'{self.opening}"{name}","arguments":{arguments.strip() or "{}"}}}{self.after}'


class CallPiece(NamedTuple):
    """What is new of an answer: of its text, or of its call number `call` (from 0) the `name`, or after that a piece of the
    arguments, which are JSON."""

    text: str = ""
    call: int | None = None
    name: str = ""


class CallSplitter:
    """Tells the text of an answer, without white space at its end, from the calls after it.

    The answer is one that a CallConstraint let through, or the beginning of one: it ends with a call, or where it is to be
    cut. The result does not depend on how it is split. `free` as there.
    """

    def __init__(self, form: CallForm, names: Sequence[str], *, free: bool = True) -> None:
        self._form = form
        self._free = free
        self._opening = re.compile("|".join(map(form.free_opening, names)))
        self._begin = form.before + "{"
        self._phase: Callable[[list[CallPiece]], bool] = self._text
        self._held = ""
        self._scan = _ObjectScan()
        self.calls = 0
        """How many have begun."""
        self.whole = True
        """Whether the last of them has all of its arguments."""

    def push(self, text: str) -> list[CallPiece]:
        """What can be told now."""
        self._held += text
        pieces: list[CallPiece] = []
        while self._phase(pieces):
            pass
        return pieces

    def flush(self) -> list[CallPiece]:
        """What was held back, at the end of the answer."""
        rest = self._held.rstrip() if self._free and self._phase == self._text else ""
        self._held = ""
        return [CallPiece(rest)] if rest else []

    def _text(self, pieces: list[CallPiece]) -> bool:
        """Text before any call. Like all phases it returns whether another one is to go on."""
        held = self._held
        stops = [(at + len(stop), at) for stop in self._form.stop if (at := held.find(stop)) >= 0]
        end, at = min(stops, default=(len(held) + 1, 0))
        opening = self._opening.search(held)
        if opening is not None and opening.end() < end:
            self._tell(pieces, held[: opening.start()].rstrip())
            self._held = held[opening.start() + len(self._form.before) :]
            self._phase = self._name
            return True
        if stops:
            self._tell(pieces, held[:at].rstrip())
            self._held, self._phase = "", self._over
            return False
        shown = held[: self._certain(held)].rstrip()
        self._tell(pieces, shown)
        self._held = held[len(shown) :]
        return False

    def _certain(self, held: str) -> int:
        """How many characters of `held` are text, whatever follows."""
        open_call = held.find(self._begin, max(len(held) - len(self._begin) - _REACH, 0))
        if open_call >= 0:
            return open_call
        return len(held) - begun(held, (*self._form.stop, self._begin))

    def _name(self, pieces: list[CallPiece]) -> bool:
        found = _NAME.match(self._held)
        if found is None:
            return False
        pieces.append(CallPiece(call=self.calls, name=found[1]))
        self.calls += 1
        self._held, self._phase, self.whole = self._held[found.end() :], self._between, False
        return True

    def _between(self, _pieces: list[CallPiece]) -> bool:
        found = _BETWEEN.match(self._held)
        if found is None:
            return False
        self._held, self._phase, self._scan = self._held[found.end() :], self._arguments, _ObjectScan()
        return True

    def _arguments(self, pieces: list[CallPiece]) -> bool:
        count = self._scan.count(self._held)
        if count:
            pieces.append(CallPiece(self._held[:count], self.calls - 1))
        self._held = self._held[count:]
        if not self._scan.done:
            return False
        self.whole, self._phase = True, self._after
        return True

    def _after(self, _pieces: list[CallPiece]) -> bool:
        """Behind a call: there is another, or nothing."""
        at = self._held.find(self._begin)
        if at < 0:
            return False
        self._held, self._phase = self._held[at + len(self._form.before) :], self._name
        return True

    def _over(self, _pieces: list[CallPiece]) -> bool:
        self._held = ""
        return False

    def _tell(self, pieces: list[CallPiece], text: str) -> None:
        if text:
            pieces.append(CallPiece(text))


class _ObjectScan:
    """Finds the end of an object of JSON."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.done = False

    def count(self, text: str) -> int:
        """How many of these characters belong to it."""
        for number, c in enumerate(text, 1):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = c == "\\"
                self._in_string = c != '"'
            elif c == '"':
                self._in_string = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if not self._depth:
                    self.done = True
                    return number
        return len(text)
