"""What guesses, and how often: by what passes take, and without a text that costs more the longer it is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from rwkvcli.errors import Cancelled, DeviceUnavailable, OutOfMemory, TimedOut, UsageError
from rwkvcli.runtime.drafting import Forced
from rwkvcli.runtime.speculation import Pace, Speculation


class Given:
    """A drafter, a model, and its lookahead, each of which notes what it was given; logits are a token's own number."""

    def __init__(self, guesses: list[int]) -> None:
        self.guesses, self.read_tokens, self.alone, self.together = guesses, [], [], []  # type: ignore[var-annotated]
        self.full = False
        self.kept = 0

    def read(self, tokens: list[int]) -> None:
        self.read_tokens.append(list(tokens))

    def guess(self, most: int) -> list[int]:
        return self.guesses[:most]

    def evaluate(self, tokens: list[int], _state: Any) -> Any:
        self.alone.append(list(tokens))
        return np.float32([tokens[-1]])

    def run(self, tokens: list[int], _state: Any) -> list[Any]:
        if self.full:
            raise OutOfMemory("the GPU is full")
        self.together.append(list(tokens))
        return [np.float32([token]) for token in tokens]

    def keep(self, _state: Any, _count: int) -> None:
        pass

    def is_ahead_of(self, _state: Any) -> bool:
        return True


def speculation(given: Given) -> Any:
    made: Any = Speculation(given, given, given)  # type: ignore[arg-type]
    return made


def seconds_of_a_pass(tokens: int) -> float:
    return 1 + 0.06 * (tokens - 1)


def asked_for(pace: Pace, passes: int, guess_takes: float) -> list[int]:
    """How many guesses are wanted for each of so many passes, of which all are right."""
    asked = []
    for _ in range(passes):
        asked.append(pace.most())
        pace.guessed(asked[-1], asked[-1] * guess_takes)
        pace.passed(1 + asked[-1], seconds_of_a_pass(1 + asked[-1]))
        for _ in range(asked[-1]):
            pace.judged(right=True)
        if asked[-1]:
            pace.kept(0.05)
    return asked


@pytest.mark.parametrize("slow", ["guess", "pass", "keep"])
def test_what_took_long_once_is_tried_again(slow: str) -> None:
    pace = Pace()
    asked_for(pace, 50, 0.05)
    if slow == "guess":
        pace.guessed(7, 7 * 100.0)
    if slow == "keep":
        pace.kept(100.0)
    for tokens in range(2, 9) if slow == "pass" else ():
        pace.passed(tokens, 100.0)
    assert pace.most() == 0
    assert asked_for(pace, 200, 0.05)[-50:].count(7) >= 49  # one tells what a plain token takes


def test_guesses_that_are_never_worth_it_are_seldom_tried() -> None:
    pace = Pace()
    asked = asked_for(pace, 2000, 3.0)
    tried = [i for i, guesses in enumerate(asked) if guesses]
    assert [asked[i] for i in tried[1:]] == [1] * 5
    apart = [after - before for before, after in itertools.pairwise(tried)]
    assert apart == [64, 128, 256, 512, 1024]  # what a draft model missed meanwhile it has to read


def test_what_others_fed_is_no_part_of_what_guessing_takes() -> None:
    now = 0.0
    given = Given([1, 1])
    made = Speculation(given, given, given, 50, lambda: now)  # type: ignore[arg-type]
    state: Any = None
    made.evaluate([5], state)
    made.was_fed([6] * 100)
    read = given.read

    def slowly(tokens: list[int]) -> None:
        nonlocal now
        read(tokens)
        now += len(tokens)

    given.read = slowly  # type: ignore[method-assign]
    made._pace.most = lambda: 2  # type: ignore[method-assign]
    made.evaluate([7], state)
    assert given.read_tokens == [[6] * 50, [7]]
    assert made._pace._guess == 1 / 2


def test_a_text_without_guesses_is_not_copied_for_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "most", lambda self: 0)
    made = speculation(Given([]))
    unread = made._unread
    for token in range(100):
        made.evaluate([token], None)
    assert made._unread is unread
    assert unread == list(range(100))


def test_without_memory_for_guesses_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "most", lambda self: 2)
    given = Given([8, 9])
    made = speculation(given)
    assert made.evaluate([7], None)[0] == 7
    given.full = True
    assert [made.evaluate([token], None)[0] for token in (8, 9, 1, 2)] == [8, 9, 1, 2]
    assert given.together == [[7, 8, 9]]
    assert given.alone == [[1], [2]]
    assert made.drafted == 2


@pytest.mark.parametrize("what", ["guess", "read"])
@pytest.mark.parametrize("error", [DeviceUnavailable("lost"), RuntimeError("lost")])
def test_a_drafter_that_fails_is_asked_no_more(
    monkeypatch: pytest.MonkeyPatch, what: str, error: Exception
) -> None:
    monkeypatch.setattr(Pace, "most", lambda self: 2)
    given, failures = Given([8, 9]), list[Exception]()
    made = Speculation(given, given, given, on_failure=failures.append)  # type: ignore[arg-type]
    assert made.evaluate([5, 6], None)[0] == 6

    def fails(_given: Any) -> Any:
        raise error

    monkeypatch.setattr(given, what, fails)
    assert [made.evaluate([token], None)[0] for token in (7, 8, 9)] == [7, 8, 9]
    assert made.evaluate([1, 2], None)[0] == 2
    assert given.alone == [[5, 6], [7], [8], [9], [1, 2]]
    assert failures == [error]


@pytest.mark.parametrize("error", [TimedOut("late"), Cancelled("stopped"), AssertionError("a bug")])
def test_what_ends_a_text_ends_it_while_it_is_guessed_too(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(Pace, "most", lambda self: 2)
    given = Given([8, 9])

    def ends(_most: int) -> list[int]:
        raise error

    monkeypatch.setattr(given, "guess", ends)
    with pytest.raises(type(error)):
        speculation(given).evaluate([7], None)


def test_a_grammar_that_gives_up_while_it_is_asked_for_guesses() -> None:
    class GivesUp:
        @property
        def forced(self) -> bytes:
            raise UsageError("llguidance gave up")

    sampler: Any = GivesUp()
    assert Forced(sampler, None).guess(7) == []  # type: ignore[arg-type]
