"""Many texts at once: each is, bit for bit, what it is alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest

from rwkvcli import Model
from rwkvcli.errors import Cancelled
from rwkvcli.services.batching import Batch, alternatives, parsed, understand
from rwkvcli.services.generation import Generation, Settings

BASE = Settings(max_tokens=12, sampling={"seed": 100, "presence_penalty": 0.2})


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("demo", threads=1)


class Source:
    """Lines that are all there; `after` of them only when waited for."""

    def __init__(self, lines: list[Any], late: int = 10**9) -> None:
        self.lines = [
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
        ]
        self.late = late
        self.taken = 0

    def __call__(self, wait: bool) -> bytes | None:
        if not self.lines:
            return b""
        if self.taken >= self.late and not wait:
            return None
        self.taken += 1
        return self.lines.pop(0)


LINES: list[Any] = [
    "Once upon a time",
    {"prompt": "It was", "id": "two", "max_tokens": 40, "temperature": 1.2, "seed": 5},
    {"prompt": "", "id": None},
    {"prompt": "The", "max_tokens": 0},
    {"prompt": "Hello", "system": "Be brief.", "max_tokens": 60},
    {"prompt": "It was", "stop": ["e", "zz"], "logit_bias": {"32": -1.5}, "banned_strings": ["th"]},
    {"prompt": "It was", "stop": "a", "frequency_penalty": 0.5, "repetition_penalty": 1.1, "order": "rwkv"},
    "Once upon a time",
    {"prompt": "x" * 300, "temperature": 0, "top_k": 3, "top_p": 0.5, "min_p": 0.1},
    {"prompt": "ends", "logit_bias": {"0": 90}},
]


def alone(model: Model, line: Any, number: int) -> dict[str, Any]:
    return _alone(model, json.dumps(line), number)


@lru_cache
def _alone(model: Model, line: str, number: int) -> dict[str, Any]:
    said = parsed(line.encode())
    asked = understand(said, number, BASE)
    made = Generation(model, asked.prompt.encode(), asked.settings)
    assert "".join(made) == made.text
    return comparable({"id": said.get("id", number), **made.report()})


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "timings"}


@pytest.mark.parametrize(
    ("size", "late"),
    [(1, 10**9), (2, 0), (2, 10**9), (3, 4), (8, 0), (8, 4), (8, 10**9), (64, 0), (64, 10**9)],
)
def test_every_line_is_what_it_is_alone(model: Model, size: int, late: int) -> None:
    batch = Batch(model, Source(LINES, late), BASE, size)
    results = list(batch)
    assert [comparable(result) for result in results] == [
        alone(model, line, i) for i, line in enumerate(LINES)
    ]
    assert (batch.given, batch.failed, batch.rest()) == (len(LINES), 0, [])
    assert [result["id"] for result in results] == [0, "two", None, 3, 4, 5, 6, 7, 8, 9]
    assert results[0]["text"] != results[7]["text"]  # the same prompt, another seed
    assert list(results[0]) == ["id", "text", "finish_reason", "seed", "usage", "timings", "model"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"nonsense\n", "not a line of JSON"),
        (b'"not utf-8 \xff"\n', "not a line of JSON"),
        (b"[" * 100_000, "not a line of JSON"),
        (b"7\n", "neither a JSON string nor an object with a string `prompt`"),
        ({"text": "x"}, "neither a JSON string nor an object with a string `prompt`"),
        ({"prompt": "x", "max_tokens": -2}, "max_tokens is not a whole number from -1 up"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens is not a whole number from -1 up"),
        ({"prompt": "x", "stop": [1]}, "stop is neither a string nor a list of strings"),
        ({"prompt": "x", "stop": ""}, "a stop string is empty"),
        ({"prompt": "x", "system": 1}, "system is not a string"),
        ({"prompt": "x", "top_p": 0}, "top_p must be above 0, not 0.0"),
        ({"prompt": "x", "seed": "y"}, "seed must be a whole number, not 'y'"),
        ({"prompt": "x", "top_p": 10**400}, f"top_p must be a number, not {10**400}"),
        ({"prompt": "x", "temperature": True}, "temperature must be a number, not True"),
        ({"prompt": "x", "top_k": False}, "top_k must be a whole number, not False"),
        ({"prompt": "x", "min_p": "0.5"}, "min_p must be a number, not '0.5'"),
        ({"prompt": "x", "temp": 1}, "no sampling setting 'temp'"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias is not an object of token ids and numbers"),
        ({"prompt": "x", "logit_bias": {"5": True}}, "logit_bias is not an object of token ids and numbers"),
        ({"prompt": "x", "logit_bias": [1]}, "logit_bias is not an object of token ids and numbers"),
        ({"prompt": "x", "banned_strings": 5}, "banned_strings is not a list of strings"),
        (b'{"prompt": "\\ud800"}\n', "character 0 of the text is half a surrogate pair, not a character"),
        (
            {"prompt": "x", "logit_bias": {str(i): -1e999 for i in range(256)}},
            "no token is left to choose: all are banned",
        ),
    ],
)
def test_a_bad_line_fails_alone(model: Model, line: Any, error: str) -> None:
    for size in (1, 4):
        batch = Batch(model, Source(["a", line, "b"]), BASE, size)
        first, bad, last = map(comparable, batch)
        assert (first, last) == (alone(model, "a", 0), alone(model, "b", 2))
        assert bad == {"id": 1, "error": error}
        assert (batch.given, batch.failed) == (3, 1)


def test_what_programs_write_for_nothing_is_nothing() -> None:
    options = Settings(max_tokens=7, sampling={"seed": 100, "logit_bias": {5: 1.0}}, stop=("x",))
    said = dict.fromkeys(
        ("max_tokens", "stop", "logit_bias", "banned_strings", "temperature", "system", "regex"), None
    )
    asked = understand({"prompt": "a", **said}, 2, options).settings
    assert (asked.max_tokens, asked.stop, asked.system, asked.constraint) == (7, (), None, None)
    assert asked.sampling["seed"] == 102
    assert asked.sampling["logit_bias"] is asked.sampling["temperature"] is None


@pytest.mark.parametrize("id", ["q7", None, ["a", 1], "\ud800"])
def test_a_line_that_fails_has_its_own_id(model: Model, id: Any) -> None:
    for wrong in ({"prompt": 5}, {"prompt": "x", "stop": 1}, {"prompt": "x", "top_p": 0}):
        assert [result["id"] for result in Batch(model, Source([{**wrong, "id": id}]), BASE, 1)] == [id]


@pytest.mark.parametrize("id", [b"NaN", b'[1, {"a": -Infinity}]', b"1e999"])
def test_an_id_that_json_cannot_give_back_fails_its_line(model: Model, id: bytes) -> None:
    batch = Batch(model, Source([b'{"prompt": "x", "id": ' + id + b"}"]), BASE, 1)
    assert list(batch) == [{"id": 0, "error": "id holds NaN or Infinity, which are not JSON"}]


def test_blank_lines_and_no_lines(model: Model) -> None:
    assert list(Batch(model, Source([]), BASE, 4)) == []
    results = list(Batch(model, Source([b"\n", "a", b"  \r\n", "b"]), BASE, 4))
    assert [comparable(result) for result in results] == [alone(model, "a", 0), alone(model, "b", 1)]


def test_random_batches(model: Model) -> None:
    draw = random.Random(1)
    lines = [{"prompt": "It was"[: draw.randrange(7)], "max_tokens": draw.randrange(30)} for _ in range(25)]
    expected = [alone(model, line, i) for i, line in enumerate(lines)]
    assert [comparable(result) for result in Batch(model, Source(lines), BASE, 5)] == expected


def test_what_was_finished_is_there_after_an_interruption(model: Model) -> None:
    lines = [{"prompt": "It was", "max_tokens": 1000, "logit_bias": {"0": -1e9}}, "b", "c", *["d"] * 9]
    countdown: Iterator[int] = iter(range(60))

    def check() -> None:
        if next(countdown, None) is None:
            raise Cancelled("stopped")

    batch = Batch(model, Source(lines), BASE, 3, check=check)
    with pytest.raises(Cancelled):
        list(batch)
    rest = list(map(comparable, batch.rest()))
    assert len(rest) > 1
    assert rest == [alone(model, lines[i], i) for i in range(1, len(rest) + 1)]


def test_all_lines_continue_a_state(model: Model) -> None:
    state = model.new_state()
    model.forward(list(b"It was a fine day. "), state)
    before = state.to_numpy()
    results = list(Batch(model, Source(["And", "But"]), BASE, 2, state))
    for number, (prompt, result) in enumerate(zip((b"And", b"But"), results, strict=True)):
        settings = Settings(12, {**BASE.sampling, "seed": 100 + number})
        whole = Generation(model, b"It was a fine day. " + prompt, settings)
        assert "".join(whole) == result["text"]
    assert all((state.to_numpy()[name] == value).all() for name, value in before.items())


@pytest.mark.parametrize("tokens", [0, 1, 12])
def test_alternatives_are_the_runs_of_their_seeds(model: Model, tokens: int) -> None:
    settings = Settings(tokens, {"seed": 2**64 - 2})
    made = alternatives(model, b"It was", settings, 4)
    assert [one.seed for one in made] == [2**64 - 2, 2**64 - 1, 0, 1]
    for one in made:
        single = Generation(model, b"It was", Settings(tokens, {"seed": one.seed}))
        assert "".join(single) == one.text
        assert comparable(single.report()) == comparable(one.report())
