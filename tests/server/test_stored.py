"""Responses that are kept: which, how many, and that a conversation is whole as long as its end is there."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from rwkvcli.server.stored import Stored, Turn, size_of


class Ended(Turn):
    """One that can be watched."""

    __slots__ = ("__weakref__",)


def add(stored: Stored, name: str, before: Turn | None = None, text: str = "x" * 100) -> Turn:
    """A response `name` after `before`."""
    turn = Ended([{"id": f"in_{name}", "text": text}], before)
    turn.end([{"id": f"out_{name}", "text": text}])
    stored.keep({"id": name, "output": turn.made}, turn)
    return turn


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in items]


def test_the_one_that_was_not_used_for_the_longest_time_goes_first() -> None:
    stored = Stored(most=3)
    for name in "abc":
        add(stored, name)
    assert stored.find("a") is not None
    add(stored, "d")
    assert stored.find("b") is None
    assert [stored.find(name) is not None for name in "acd"] == [True, True, True]
    assert stored.item("out_b") is None
    assert stored.item("out_a") == {"id": "out_a", "text": "x" * 100}
    assert stored.item("in_a") is None
    assert len(stored) == 3


def test_a_conversation_is_whole_as_long_as_its_end_is_there() -> None:
    stored = Stored(most=2)
    turn = None
    for name in "abcde":
        turn = add(stored, name, turn)
    assert stored.find("a") is None
    found = stored.find("e")
    assert found is not None
    everything = [f"{kind}_{name}" for name in "abcde" for kind in ("in", "out")]
    assert ids(found.turn.items()) == everything
    assert ids(found.turn.asked()) == everything[:-1]
    assert stored.item("out_a") is not None
    assert stored.forget("e")
    assert not stored.forget("e")
    assert stored.forget("d")
    assert stored.item("out_a") is None
    assert (stored.used, len(stored)) == (0, 0)


def test_a_chain_costs_what_its_turns_cost() -> None:
    def used(count: int) -> int:
        stored = Stored()
        turn = None
        for number in range(count):
            turn = add(stored, f"{number:06}", turn)
        return stored.used

    assert used(200) == 20 * used(10)


def test_branches_share_what_they_go_on_from() -> None:
    stored = Stored()
    root = add(stored, "a", text="y" * 10_000)
    before = stored.used
    left, right = add(stored, "b", root), add(stored, "c", root)
    assert left.before is right.before
    assert stored.used < before + 2_000
    for name in "ab":
        stored.forget(name)
    assert stored.used > 20_000
    stored.forget("c")
    assert stored.used == 0


def test_bytes_are_bounded() -> None:
    one, stored = Stored(), Stored(largest=100_000)
    add(one, "r10", text="z" * 2_000)
    for number in range(10, 100):
        add(stored, f"r{number}", text="z" * 2_000)
    assert len(stored) == 100_000 // one.used
    assert stored.used == len(stored) * one.used
    assert stored.find("r99") is not None
    assert stored.find("r0") is None
    add(stored, "large", text="z" * 100_000)
    assert (len(stored), stored.used) == (0, 0)


def test_what_was_forgotten_while_it_was_gone_on_from_is_counted_again() -> None:
    stored = Stored()
    root = add(stored, "a")
    middle = add(stored, "b", root)
    before = stored.used
    stored.forget("a")
    stored.forget("b")
    assert stored.used == 0
    add(stored, "c", middle)
    assert before / 2 < stored.used <= before * 1.5
    assert stored.item("out_a") is not None
    stored.forget("c")
    assert stored.used == 0


def test_a_long_chain_is_let_go_of() -> None:
    stored = Stored(most=1)
    first = turn = add(stored, "0", text="")
    for number in range(1, 100_000):
        turn = add(stored, str(number), turn, text="")
    assert len(turn.items()) == 200_000
    watched = weakref.ref(first)
    del first, turn
    assert stored.forget("99999")
    gc.collect()
    assert watched() is None
    assert stored.used == 0


def test_sizes_are_bytes() -> None:
    assert size_of({"a": "é"}) == len('{"a":"é"}'.encode())
