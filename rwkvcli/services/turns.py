"""The turns of a conversation as a tree, and where in it the conversation stands: plain data, no model.

A turn never changes once it is made, so going back, forth and to another branch only moves a head.
"""

from __future__ import annotations

import re
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rwkvcli.errors import FormatError, UsageError

Kind = Literal["message", "read", "load"]
KINDS = ("message", "read", "load")
MAIN = "main"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def checked_name(name: str, what: str) -> str:
    """`name` if it can be the name of a session or branch. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:120]!r} is no name for a {what}",
            hint="a name is made of letters, digits, dot, hyphen and underscore; at most 100, a letter or digit first",
        )
    return name


@dataclass(frozen=True)
class Turn:
    """A message and its answer, or a text that was read, or a state that was loaded."""

    id: int
    parent: int | None
    depth: int
    """1 for the first turn of a conversation."""
    kind: Kind
    user: str
    """The message; for the other kinds the name of the file."""
    reply: str = ""
    thinking: str = ""
    system: str | None = None
    """The instructions that the conversation of this turn began with."""
    finish: str = "stop"
    """`stop`, `length` or `interrupted`."""
    seed: int = 0
    draws: int = 0
    """With `seed`: where the random numbers of the next turn go on."""
    begun: int = 0
    """With `seed`: where those of this turn began."""
    tokens_seen: int = 0
    """By the state after this turn."""
    ids: array[int] = field(default_factory=lambda: array("I"))
    """The tokens fed since the turn before; none for a kind whose state cannot be made again."""
    when: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))

    @property
    def replayable(self) -> bool:
        """Whether the state after it can be made from the one before."""
        return self.kind == "message"

    def to_json(self) -> dict[str, Any]:
        """A line of the journal."""
        return {**vars(self), "ids": self.ids.tolist()}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Turn:
        """The turn of a line. Raises FormatError."""
        try:
            turn = cls(**{**line, "ids": array("I", line["ids"])})
        except (TypeError, ValueError, KeyError, OverflowError):
            raise FormatError("a turn is not as it should be") from None
        whole = (turn.id, turn.depth, turn.seed, turn.draws, turn.begun, turn.tokens_seen)
        texts = (turn.user, turn.reply, turn.thinking, turn.finish, turn.when)
        if not (
            all(type(number) is int and number >= 0 for number in whole)
            and all(isinstance(text, str) for text in texts)
            and (turn.parent is None or type(turn.parent) is int)
            and (turn.system is None or isinstance(turn.system, str))
            and turn.kind in KINDS
        ):
            raise FormatError("a turn is not as it should be")
        return turn


@dataclass
class Branch:
    """One line of a conversation."""

    head: int | None = None
    """The last turn; None before the first."""
    redo: list[int] = field(default_factory=list)
    """The heads that `undo` left, the nearest last."""
    system: str | None = None
    """The instructions that the first turn is to begin with."""
    seed: int | None = None
    """With `draws`: where the random numbers began of a turn that `undo` took from here; None: it took none."""
    draws: int = 0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Branch:
        """Raises TypeError or ValueError for what is none."""
        branch = cls(**values)
        numbers = [*branch.redo, *([] if branch.head is None else [branch.head])]
        if not all(type(number) is int for number in numbers):
            raise ValueError("a head is the number of a turn")
        if branch.system is not None and not isinstance(branch.system, str):
            raise ValueError("instructions are text")
        begins = [branch.draws, *([] if branch.seed is None else [branch.seed])]
        if not all(type(number) is int and number >= 0 for number in begins):
            raise ValueError("random numbers go on at a number")
        return branch


class History:
    """Every turn that was made, the branches, and which one is current."""

    def __init__(
        self,
        turns: Sequence[Turn] = (),
        branches: Mapping[str, Branch] | None = None,
        current: str = MAIN,
    ) -> None:
        """Raises FormatError if the parts do not belong together."""
        self.turns: dict[int, Turn] = {}
        for turn in turns:
            parent = self.turns.get(turn.parent) if turn.parent is not None else None
            if turn.id in self.turns or turn.depth != (parent.depth if parent else 0) + 1:
                raise FormatError(f"turn {turn.id} does not follow from the others")
            self.turns[turn.id] = turn
        self.branches = dict(branches) if branches else {MAIN: Branch()}
        self.current = current
        heads = {head for branch in self.branches.values() for head in (branch.head, *branch.redo)}
        if current not in self.branches or not heads - {None} <= self.turns.keys():
            raise FormatError("a branch leads to a turn that is not there")

    @property
    def branch(self) -> Branch:
        """The current branch."""
        return self.branches[self.current]

    @property
    def head(self) -> Turn | None:
        """The turn where the conversation stands."""
        return self.turns[self.branch.head] if self.branch.head is not None else None

    @property
    def system(self) -> str | None:
        """The instructions that the conversation began with, or will."""
        return self.head.system if self.head is not None else self.branch.system

    @property
    def random(self) -> tuple[int, int] | None:
        """The seed and the number of draws with which the next turn begins; None: any."""
        branch, head = self.branch, self.head
        if branch.seed is not None:
            return branch.seed, branch.draws
        return (head.seed, head.draws) if head is not None else None

    def parent(self, turn: Turn) -> Turn | None:
        """The turn before."""
        return self.turns[turn.parent] if turn.parent is not None else None

    def path(self) -> list[Turn]:
        """The turns of the conversation as it stands, the first first."""
        return list(self.back(self.head))[::-1]

    def back(self, turn: Turn | None) -> Iterator[Turn]:
        """`turn`, the one before it, and so on."""
        while turn is not None:
            yield turn
            turn = self.parent(turn)

    def next_id(self) -> int:
        """The number of the next turn."""
        return max(self.turns, default=0) + 1

    def add(self, turn: Turn, *, keeps_redo: bool = False) -> None:
        """Make `turn` the head of the current branch. `keeps_redo`: `redo` still takes back what `undo` did before it."""
        self.turns[turn.id] = turn
        self.branch.head, self.branch.seed = turn.id, None
        if not keeps_redo:
            self.branch.redo.clear()

    def undo(self, count: int = 1) -> list[Turn]:
        """Go back by at most `count` turns; those that were left, the last first."""
        branch = self.branch
        left: list[Turn] = []
        while (head := self.head) is not None and len(left) < count:
            left.append(head)
            branch.redo.append(head.id)
            branch.head, branch.system = head.parent, head.system
            branch.seed, branch.draws = head.seed, head.begun
        return left

    def redo(self, count: int = 1) -> list[Turn]:
        """Take back what `undo` did, at most `count` turns; those that are there again."""
        branch = self.branch
        again: list[Turn] = []
        while branch.redo and len(again) < count:
            branch.head, branch.seed = branch.redo.pop(), None
            again.append(self.turns[branch.head])
        if branch.redo:
            following = self.turns[branch.redo[-1]]
            branch.seed, branch.draws = following.seed, following.begun
        return again

    def fork(self, name: str) -> None:
        """Begin the branch `name` where the conversation stands, and go on there. Raises UsageError."""
        if name in self.branches:
            raise UsageError(f"there is a branch {name} already", hint=f"/switch {name} goes there")
        branch = replace(self.branch, redo=[])
        self.branches[checked_name(name, "branch")] = branch
        self.current = name

    def switch(self, name: str) -> None:
        """Go to the head of another branch. Raises UsageError."""
        if name not in self.branches:
            raise UsageError(f"no branch {name!r}", hint=f"there are {', '.join(self.branches)}")
        self.current = name

    def restart(self, system: str | None) -> None:
        """Begin anew with the instructions `system`; `redo` brings the turns back."""
        self.undo(len(self.turns))
        self.branch.system, self.branch.seed = system, None
