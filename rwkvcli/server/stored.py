"""Responses that were given, kept in memory so that a conversation can be gone on with from any of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rwkvcli.server.answers import json_of

MOST = 10_000
"""Responses."""
LARGEST = 256 << 20
"""Bytes of what they hold, as JSON."""

Item = dict[str, Any]
"""A message, a call or what came of one, as `rwkvcli.server.items` has them; it is never changed."""


class Turn:
    """What a response adds to a conversation: the items that were `given` after the turn `before`, and when it is whole those that
    were `made`.

    Turns are shared: however many responses go on from one, its items are there once.
    """

    __slots__ = ("before", "given", "holders", "made", "size")

    def __init__(self, given: Sequence[Item], before: Turn | None = None) -> None:
        self.given = given
        self.made: Sequence[Item] = ()
        self.before = before
        self.size = size_of(given)
        self.holders = 0
        """How many responses and turns `Stored` has that need it."""

    def end(self, made: Sequence[Item]) -> None:
        """The response is whole."""
        self.made = made
        self.size += size_of(made)

    def items(self) -> list[Item]:
        """All of the conversation, the first first."""
        return [*self.asked(), *self.made]

    def asked(self) -> list[Item]:
        """All of it before what was made last."""
        before = [*self._back()][:0:-1]
        return [*(item for turn in before for item in (*turn.given, *turn.made)), *self.given]

    def _back(self) -> Iterator[Turn]:
        turn: Turn | None = self
        while turn is not None:
            yield turn
            turn = turn.before


class Response(NamedTuple):
    """A response that can be gone on from."""

    body: bytes
    """As it was sent: JSON."""
    turn: Turn


class Stored:
    """At most `most` responses, of `largest` bytes together; the one that was not used for the longest time goes first.

    What a response goes on from is there as long as it is, even where that cannot be asked for any more.
    """

    def __init__(self, most: int = MOST, largest: int = LARGEST) -> None:
        self._most = most
        self._largest = largest
        self._kept: OrderedDict[str, Response] = OrderedDict()
        self._items: dict[str, Item] = {}
        self._used = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many responses can be gone on from."""
        return len(self._kept)

    @property
    def used(self) -> int:
        """Bytes."""
        return self._used

    def find(self, name: str) -> Response | None:
        """The response with the id `name`, which is used by that."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def item(self, name: str) -> Item | None:
        """The item with the id `name`, of those that were made."""
        with self._lock:
            return self._items.get(name)

    def keep(self, body: Mapping[str, Any], turn: Turn) -> None:
        """Keep a response that is whole, and its turn."""
        response = Response(json_of(body).encode(), turn)
        with self._lock:
            self._kept[body["id"]] = response
            self._used += len(response.body)
            self._hold(turn)
            while len(self._kept) > self._most or self._used > self._largest:
                self._forget(next(iter(self._kept)))

    def forget(self, name: str) -> bool:
        """Forget the response with the id `name`; False: there is none."""
        with self._lock:
            there = name in self._kept
            if there:
                self._forget(name)
            return there

    def _forget(self, name: str) -> None:
        response = self._kept.pop(name)
        self._used -= len(response.body)
        self._release(response.turn)

    def _hold(self, turn: Turn | None) -> None:
        """One more needs `turn`. One that nobody needed holds the turn before."""
        while turn is not None:
            turn.holders += 1
            if turn.holders > 1:
                return
            self._used += turn.size
            self._items.update((item["id"], item) for item in turn.made)
            turn = turn.before

    def _release(self, turn: Turn | None) -> None:
        while turn is not None:
            turn.holders -= 1
            if turn.holders:
                return
            self._used -= turn.size
            for item in turn.made:
                self._items.pop(item["id"], None)
            turn = turn.before


def size_of(value: Any) -> int:
    """Bytes of JSON."""
    return len(json_of(value).encode())
