"""Speculation: text and state are those of one token at a time in every bit, whatever is guessed; how much is guessed pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from small_models import VERSIONS, ModelMaker, same

from rwkvcli import Model, State
from rwkvcli.errors import DeviceUnavailable
from rwkvcli.runtime.backend import LARGEST_LOOKAHEAD
from rwkvcli.runtime.decoding import Piece, decode
from rwkvcli.runtime.lookahead import Ahead
from rwkvcli.runtime.sampling import Sampler, SamplingParams
from rwkvcli.runtime.speculation import Pace, Speculation
from rwkvcli.runtime.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
PROMPT, LENGTH = [*b"One two, one two"], 60
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "logit_bias": {0: -9}},
    "plain": {"seed": 5, "logit_bias": {0: -9}},
    "penalties": {
        "seed": 6, "presence_penalty": 0.4, "frequency_penalty": 0.6, "penalty_decay": 0.9,
        "banned_strings": ("e", "th"), "top_p": 0.9, "logit_bias": {0: -9},
    },
    "grammar": {"seed": 7, "temperature": 1.5},
}  # fmt: skip


def sampler_of(setting: str) -> Sampler:
    matcher = None
    if setting == "grammar":
        pytest.importorskip("llguidance")
        from rwkvcli.runtime.constraint import Constraint

        matcher = Constraint.of_regex("[a-z]{2,9}( (and|but) [a-z]{2,9}){3}[.]").matcher(BYTES)
    return Sampler(SamplingParams(**SETTINGS[setting]), 256, BYTES, matcher)


class Told:
    """A drafter that knows the text; each of its guesses is right with a chance of `right`."""

    def __init__(self, text: Sequence[int], right: float, seed: int = 1) -> None:
        self._text, self._right = text, right
        self._random = np.random.default_rng(seed)
        self._read = 0

    def read(self, tokens: Sequence[int]) -> None:
        assert [*tokens] == [*self._text[self._read : self._read + len(tokens)]]  # each of them once
        self._read += len(tokens)

    def guess(self, most: int) -> list[int]:
        return [
            token if self._random.random() < self._right else (token + 1) % 256
            for token in self._text[self._read : self._read + most]
        ]


class Often(Pace):
    """Guesses as many tokens as comes next in `counts`, over and over."""

    def __init__(self, *counts: int) -> None:
        super().__init__()
        self._counts, self._passes = counts, 0

    def most(self) -> int:
        self._passes += 1
        return self._counts[self._passes % len(self._counts)]


def ahead_of(model: Model) -> Ahead:
    ahead = model.ahead()
    assert ahead is not None
    return ahead


def speculation_of(model: Model, drafter: Any, *counts: int) -> Speculation:
    speculation = Speculation(model, ahead_of(model), drafter)
    if counts:
        speculation._pace = Often(*counts)
    return speculation


def plainly(model: Model, setting: str) -> tuple[list[Piece], list[State]]:
    """A text without guesses: its pieces, and the state when each of them came."""
    state, states = model.new_state(), list[State]()
    pieces = []
    logits = model.evaluate(PROMPT, state)
    for piece in decode(model, state, logits, BYTES, sampler_of(setting), LENGTH):
        pieces.append(piece)
        states.append(state.copy())
    return pieces, states


def text_of(pieces: list[Piece]) -> list[int]:
    finish = pieces[-1].finish
    assert finish is not None
    return [*PROMPT, *finish.fed, *finish.unfed]


def load(make_model: ModelMaker, version: str) -> Model:
    path = make_model(version, "int8", vocab_size=256, n_embd=48, head_size=8)
    return Model.load(path, device="cpu", threads=1)


@pytest.fixture
def model(make_model: ModelMaker) -> Model:
    return load(make_model, "7")


def check_goes_on(model: Model, state: State, expected: State) -> None:
    assert same(state, expected)
    assert state.tokens_seen == expected.tokens_seen
    assert np.array_equal(model.forward([1], state.copy()), model.forward([1], expected.copy()))


@pytest.mark.parametrize("right", [1, 0.7, 0])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_text_is_the_same(make_model: ModelMaker, version: str, setting: str, right: float) -> None:
    model = load(make_model, version)
    pieces, states = plainly(model, setting)
    assert len(pieces) > 15
    for counts in ((7,), (3, 0, 1, 7, 2), ()):
        for every in (1, 5, 1000):  # how often the state is settled on the way
            speculation = speculation_of(model, Told(text_of(pieces), right), *counts)
            state = model.new_state()
            logits = speculation.evaluate(PROMPT, state)
            made = decode(speculation, state, logits, BYTES, sampler_of(setting), LENGTH)
            for i, piece in enumerate(made):
                assert piece == pieces[i]
                if i % every == every - 1:
                    speculation.settle(state)
                    assert same(state, states[i])
                    assert state.tokens_seen == states[i].tokens_seen
            assert i == len(pieces) - 1
            speculation.settle(state)
            check_goes_on(model, state, states[-1])
            if counts:
                assert speculation.drafted > 0
                assert (speculation.accepted == 0) is (right == 0)


def fed_one_by_one(model: Model, tokens: Sequence[int]) -> tuple[list[Any], State]:
    """Logits after each of the tokens that follow PROMPT, and the state after them all."""
    state = model.new_state()
    model.evaluate(PROMPT, state)
    return [np.array(model.evaluate([token], state)) for token in tokens], state


def test_what_was_guessed_and_what_came_is_counted(model: Model) -> None:
    text = [*PROMPT, *np.random.default_rng(1).integers(0, 256, 24).tolist()]
    for right, counts, expected in (
        (1, (7,), (21, 21)),  # 24 tokens are three passes over eight
        (0, (7,), (7 * 17 + 6 + 5 + 4 + 3 + 2 + 1, 0)),  # a pass each, of which the last ones know of fewer
        (1, (0,), (0, 0)),
        (
            1,
            (3, 0),
            (14, 14),
        ),  # passes over one token and over four, five times; of the last four one is missing
    ):
        speculation = speculation_of(model, Told(text, right), *counts)
        state = model.new_state()
        speculation.evaluate(PROMPT, state)
        for token in text[len(PROMPT) :]:
            speculation.evaluate([token], state)
        assert (speculation.drafted, speculation.accepted) == expected


def test_a_prompt_in_the_middle(model: Model) -> None:
    more = [*b"and so on"]
    text = [*PROMPT, 7, 8, 9, *more, 10, 11]
    expected = model.new_state()
    model.evaluate(text[:-1], expected)
    wanted = np.array(model.evaluate(text[-1:], expected))
    speculation = speculation_of(model, Told(text, 1), 5)
    state = model.new_state()
    speculation.evaluate(PROMPT, state)
    for tokens in ([7], [8], [9], more, [10], [11]):
        logits = speculation.evaluate(tokens, state)
    assert np.array_equal(logits, wanted)
    speculation.settle(state)
    check_goes_on(model, state, expected)


class Forgiving(Told):
    """Does not mind to be told of a token again, when a pass did not come to its end."""

    def read(self, tokens: Sequence[int]) -> None:
        self._read += len(tokens)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, DeviceUnavailable])
def test_an_error_of_the_engine_leaves_it_usable(
    model: Model, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], after: bool
) -> None:
    tokens = np.random.default_rng(2).integers(0, 256, 150).tolist()
    expected, end = fed_one_by_one(model, tokens)
    random = np.random.default_rng(3)
    raised = dict.fromkeys(("run", "keep", "forward"), 0)

    def sometimes(name: str, call: Callable[..., Any], late: bool) -> Callable[..., Any]:
        def wrapped(*given: Any) -> Any:
            if random.random() < 0.6:
                return call(*given)
            if late:  # the work was done when the signal came
                call(*given)
            raised[name] += 1
            raise error("injected")

        return wrapped

    speculation = speculation_of(model, Forgiving([*PROMPT, *tokens], 0.7), 7, 2, 0, 4)
    state = model.new_state()
    speculation.evaluate(PROMPT, state)
    room: Any = speculation._ahead._room
    for thing, name in ((room, "run"), (room, "keep"), (model.backend, "forward")):
        late = after and name != "forward"  # a caller without guesses could not go on, either
        monkeypatch.setattr(thing, name, sometimes(name, getattr(thing, name), late))

    def again(call: Callable[..., Any], *given: Any) -> Any:
        while True:
            try:
                return call(*given)
            except error:
                continue

    for i, token in enumerate(tokens):
        assert np.array_equal(again(speculation.evaluate, [token], state), expected[i])
        if i % 20 == 19:
            again(speculation.settle, state)
            assert state.tokens_seen == len(PROMPT) + i + 1
    again(speculation.settle, state)
    monkeypatch.undo()
    check_goes_on(model, state, end)
    assert all(raised.values())
    assert speculation.accepted > 0


# Pace


class Clock:
    """Stands still but for what it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def guesses_of(
    share: Callable[[int], float],
    seconds: Callable[[int], float],
    *,
    guess: float = 0.0,
    keep: float = 0.0,
    passes: int = 600,
) -> list[int]:
    """How many tokens `Pace` lets be guessed in each pass of a text in which the guesses of pass `i` are right by a chance of
    `share(i)`, where a pass over n tokens takes `seconds(n)`, `guess` for each guess and `keep` at its end."""
    random, pace, asked = np.random.default_rng(4), Pace(), []
    for i in range(passes):
        most = pace.most()
        asked.append(most)
        if most:
            pace.guessed(most, most * guess)
        pace.passed(1 + most, seconds(1 + most))
        for _ in range(most):
            right = random.random() < share(i)
            pace.judged(right=right)
            if not right:
                break
        if most:
            pace.kept(keep)
    return asked


def flat(tokens: int) -> float:
    """Seconds of a pass that is hardly longer with more tokens."""
    return 1 + 0.03 * tokens


def test_plain_passes_come_first_and_now_and_then() -> None:
    asked = guesses_of(lambda _: 1.0, flat)
    assert [i for i, guesses in enumerate(asked) if not guesses] == [0, 1, 2, 131, 260, 389, 518]


def test_a_slow_first_pass_misleads_nobody() -> None:
    """Its time is no measure of a plain token: beside that, a pass of two would seem to be worth it."""
    pace, slow = Pace(), iter([3.0, 2.0, 1.0])
    for seconds in slow:
        assert pace.most() == 0
        pace.passed(1, seconds)
    pace.passed(2, 1.4)
    for _ in range(10):
        pace.judged(right=False)
    assert pace.most() == 0


def test_guesses_that_are_always_right_are_made_as_many_as_there_may_be() -> None:
    asked = guesses_of(lambda _: 1.0, flat)
    assert max(asked) == LARGEST_LOOKAHEAD - 1
    assert set(asked[50:131]) == {LARGEST_LOOKAHEAD - 1}


def plain_between(more: float) -> int:
    """Passes without guesses, at least, between two with one that are wrong, where a token adds `more` to a pass.

    A guess is worth it from the share `least` on. Hope brings the share there in steps, the last of which may go
    beyond; a wrong guess takes it back from there, and hope begins anew.
    """
    least = Pace._WORTH * (1 + more) - 1
    share = least + Pace._HOPE_STEP * (Pace._USUAL - least)
    share -= Pace._SHARE_STEP * share
    return math.ceil(math.log((Pace._USUAL - least) / (Pace._USUAL - share)) / math.log(1 - Pace._HOPE_STEP))


@pytest.mark.parametrize(("more", "between"), [(0.03, 1), (0.1, 2), (0.2, 4), (0.4, 15)])
def test_guesses_that_are_never_right_cost_little(more: float, between: int) -> None:
    """`more`: what each token adds to a pass."""
    assert plain_between(more) == between
    asked = guesses_of(lambda _: 0.0, lambda n: 1 + more * (n - 1))[200:]
    tries = len(asked) - asked.count(0)
    assert 0 < tries <= len(asked) / (between + 1) + 1  # the first may be at once
    assert more * sum(asked) < 0.055 * len(asked)


def test_a_text_that_becomes_easier_or_harder_is_noticed() -> None:
    asked = guesses_of(lambda i: 1.0 if 200 <= i < 400 else 0.0, lambda n: 0.8 + 0.2 * n)
    every = plain_between(0.2) + 1  # passes, of which one may have guesses
    assert asked[150:200].count(0) >= 50 - (50 / every + 1)
    assert set(asked[350:400]) - {0} == {LARGEST_LOOKAHEAD - 1}
    assert asked[350:400].count(0) <= 1  # of 129 one tells what a plain token takes
    assert asked[450:].count(0) >= 150 - (150 / every + 1)


def test_fewer_are_made_where_passes_of_many_tokens_are_slow() -> None:
    slow = guesses_of(lambda _: 0.9, lambda n: 1.0 if n <= 4 else 4.0)
    assert set(slow[100:131]) == {3}
    steep = guesses_of(lambda _: 0.9, float)
    # never worth it: after 64 plain ones each size, of seven, is met once at most, and one is the try
    assert steep[100:].count(0) >= 500 - 8 * (500 / (64 + 8) + 1)


def test_none_are_made_where_guessing_costs_more_than_it_brings() -> None:
    few = 500 - (500 / 65 + 1)  # one try tells it, after 64 plain passes or more
    assert guesses_of(lambda _: 0.9, flat, guess=1.5)[100:].count(0) >= few
    assert guesses_of(lambda _: 0.5, flat, keep=2.0)[100:].count(0) >= few
    cheap = guesses_of(lambda _: 0.9, flat, guess=0.05, keep=0.1)[100:]
    assert cheap.count(0) == 4  # to see what a plain token takes


def test_it_is_told_what_the_clock_says(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are those of the engine and the drafter, each told for what it is."""
    clock = Clock()

    def takes(seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any) -> Any:
            clock.now += seconds
            return call(*given)

        return wrapped

    text = [*PROMPT, *range(1, 41)]
    drafter = Told(text, 1)
    speculation = Speculation(model, ahead_of(model), drafter, clock=clock)
    state = model.new_state()
    speculation.evaluate(PROMPT, state)
    room: Any = speculation._ahead._room
    for thing, name, seconds in (
        (model.backend, "forward", 1.0), (room, "run", 1.25), (room, "keep", 0.125), (drafter, "guess", 0.0625),
    ):  # fmt: skip
        monkeypatch.setattr(thing, name, takes(seconds, getattr(thing, name)))
    said: list[tuple[str, Any]] = []
    pace: Any = speculation._pace
    for name in ("guessed", "passed", "kept"):
        told = getattr(pace, name)

        def noted(*given: Any, name: str = name, told: Callable[..., None] = told) -> None:
            said.append((name, given))
            told(*given)

        monkeypatch.setattr(pace, name, noted)
    for token in text[len(PROMPT) :]:
        speculation.evaluate([token], state)
    assert said[:3] == [("passed", (1, 1.0))] * 3
    assert {given for name, given in said if name == "kept"} == {(0.125,)}
    counts = [*counts_of(iter(said[3:]))]
    passes = sum(name == "passed" for name, _ in said)
    assert sum(counts) == speculation.drafted == speculation.accepted == len(text) - len(PROMPT) - passes


def counts_of(said: Iterator[tuple[str, Any]]) -> Iterator[int]:
    """How many were guessed in each pass, which is told after them."""
    for name, given in said:
        if name == "guessed":
            count, seconds = given
            assert seconds == 0.0625
            assert next(said) == ("passed", (1 + count, 1.25))
            yield count
        else:
            assert name == "kept"
