"""The decoding loop with a model that says what the test tells it to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from rwkvcli.errors import UsageError
from rwkvcli.runtime.decoding import Finish, Piece, decode
from rwkvcli.runtime.sampling import Sampler, SamplingParams
from rwkvcli.runtime.tokenizer import ByteTokenizer


class Script:
    """A model over bytes that continues with `text`, whatever it is fed; the state is a list of what that was."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def logits(self, position: int) -> NDArray[np.float32]:
        logits = np.zeros(256, np.float32)
        logits[self.text[position]] = 1
        return logits

    def evaluate(self, tokens: list[int], state: list[int]) -> NDArray[np.float32]:
        state.extend(tokens)
        return self.logits(len(state))


def run(text: bytes, max_tokens: int = -1, stop: Sequence[str] = ()) -> tuple[list[Piece], list[int]]:
    model, state = Script(text), list[int]()
    sampler = Sampler(SamplingParams(temperature=0), valid=256)
    pieces = list(decode(model, state, model.logits(0), ByteTokenizer(), sampler, max_tokens, stop))
    assert all(piece.finish is None for piece in pieces[:-1])
    assert pieces[-1].finish is not None
    assert list(pieces[-1].finish.fed) == state
    return pieces, state


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_until_the_text_ends() -> None:
    pieces, state = run(b"hello\0")
    assert [piece.text for piece in pieces] == ["h", "e", "l", "l", "o", ""]
    assert [piece.token for piece in pieces] == [*b"hello", None]
    assert pieces[-1].finish == Finish("stop", None, tuple(b"hello"), ())
    assert state == list(b"hello")  # all that was said; the end of the text is not fed


def test_until_the_length() -> None:
    pieces, _ = run(b"hello\0", max_tokens=3)
    assert text_of(pieces) == "hel"
    assert pieces[-1].finish == Finish("length", None, tuple(b"he"), tuple(b"l"))
    assert pieces[-1].finish.tokens == 3


def test_the_end_of_the_text_after_exactly_the_length_is_not_asked_for() -> None:
    pieces, _ = run(b"hello\0", max_tokens=5)
    assert pieces[-1].finish == Finish("length", None, tuple(b"hell"), tuple(b"o"))


def test_no_tokens() -> None:
    pieces, state = run(b"hello", max_tokens=0)
    assert pieces == [Piece("", None, Finish("length", None, (), ()))]
    assert state == []
    assert run(b"\0")[0] == [Piece("", None, Finish("stop", None, (), ()))]


def test_a_stop_string_across_tokens() -> None:
    pieces, state = run(b"Yes.\n\nUser: hi", stop=["\n\nUser", "never"])
    assert [piece.text for piece in pieces] == ["Y", "e", "s", ".", *[""] * 6]
    assert pieces[-1] == Piece("", ord("r"), Finish("stop", "\n\nUser", tuple(b"Yes.\n\nUse"), tuple(b"r")))
    assert state == list(b"Yes.\n\nUse")


def test_what_was_held_back_comes_in_the_end() -> None:
    assert text_of(run(b"Yes.\n\nUs\0", stop=["\n\nUser"])[0]) == "Yes.\n\nUs"
    assert text_of(run(b"Yes.\n\nUser", max_tokens=7, stop=["\n\nUser"])[0]) == "Yes.\n\nU"


def test_characters_come_whole() -> None:
    pieces, _ = run("é你\0".encode())
    assert [piece.text for piece in pieces] == ["", "é", "", "", "你", ""]
    pieces, _ = run("a你".encode(), max_tokens=3)
    assert [piece.text for piece in pieces] == ["a", "", "", "\ufffd"]
    pieces, _ = run("a你".encode(), max_tokens=3, stop=["\ufffd"])
    assert (text_of(pieces), pieces[-1].token) == ("a", None)
    assert pieces[-1].finish == Finish("stop", "\ufffd", (ord("a"), 0xE4), (0xBD,))


def test_a_caller_that_stops_knows_what_was_fed() -> None:
    model, state = Script(b"hello\0"), list[int]()
    sampler = Sampler(SamplingParams(temperature=0), valid=256)
    seen = []
    for piece in decode(model, state, model.logits(0), ByteTokenizer(), sampler, -1):
        assert state == seen
        if piece.token is not None:
            seen.append(piece.token)
        if len(seen) == 3:
            break
    assert state == list(b"he")


def test_going_on_after_the_length_is_the_uninterrupted_text() -> None:
    model, state = Script(b"hello\0"), list[int]()
    sampler = Sampler(SamplingParams(temperature=0), valid=256)
    first = list(decode(model, state, model.logits(0), ByteTokenizer(), sampler, 3))
    assert first[-1].finish is not None
    logits = model.evaluate(list(first[-1].finish.unfed), state)
    assert text_of(first + list(decode(model, state, logits, ByteTokenizer(), sampler, -1))) == "hello"


def test_bad_settings_are_refused_before_the_first_token() -> None:
    model = Script(b"a")
    sampler = Sampler(SamplingParams(), valid=256)
    with pytest.raises(UsageError, match="max_tokens"):
        decode(model, [], model.logits(0), ByteTokenizer(), sampler, -2)
    with pytest.raises(UsageError, match="stop"):
        decode(model, [], model.logits(0), ByteTokenizer(), sampler, 1, [""])
