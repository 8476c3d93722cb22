"""What `rwkv score` computes: the same numbers as `generate --logprobs`, the forms of chats, states, ends and lines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_oracles import log_softmax

from rwkvcli import Model, State
from rwkvcli.errors import Cancelled, FormatError, UsageError
from rwkvcli.runtime.templates import Turn, named
from rwkvcli.services.choosing import Choice, Choosing, ChoosingLines, Settings, check_choices
from rwkvcli.services.generation import Generation
from rwkvcli.services.generation import Settings as Sampling

PROMPT = b"It was a fine"


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("demo", threads=1)


def made(
    model: Model, text: bytes | None, *choices: str, state: State | None = None, **more: Any
) -> Choosing:
    run = Choosing(model, text, Settings(tuple(choice.encode() for choice in choices), **more), state)
    run.run()
    return run


def paused(model: Model, text: bytes) -> State:
    """The state after `text`, as `generate --save-state --max-tokens 0` leaves it."""
    run = Generation(model, text, Sampling(0), keep=True)
    assert list(run) == []
    return run.settle()


def logprob(model: Model, text: str, choice: str, *, begins: bool = False) -> float:
    """Of `choice` after `text`, by one pass over both; `begins`: the token that ends a text comes first."""
    before = [0] * begins + list(text.encode())
    ids = list(choice.encode())
    logits = model.forward([*before, *ids], model.new_state(), all_logits=True)
    rows = log_softmax(logits[len(before) - 1 : -1])
    return float(rows[np.arange(len(ids)), ids].sum())


def test_the_text_that_generate_writes_has_its_logprobs(model: Model) -> None:
    run = Generation(model, PROMPT, Sampling(20, {"temperature": 0}, logprobs=0))
    text = "".join(run)
    (found,) = made(model, PROMPT, text).scored
    assert found.tokens == found.nbytes == 20
    assert found.logprob == pytest.approx(math.fsum(one["logprob"] for one in run.logprobs), abs=20 * 5e-7)
    assert found.logprob == pytest.approx(logprob(model, PROMPT.decode(), text), rel=1e-13)


def test_report(model: Model) -> None:
    run = made(model, PROMPT, " morning", " day", " x", by="token")
    sums = [logprob(model, PROMPT.decode(), choice) for choice in (" morning", " day", " x")]
    report = run.report()
    assert list(report) == ["choices", "best", "by", "usage", "timings", "model"]
    assert [list(one) for one in report["choices"]] == [
        ["text", "logprob", "tokens", "bytes", "logprob_per_token", "logprob_per_byte", "share"]
    ] * 3
    assert [one["text"] for one in report["choices"]] == [" morning", " day", " x"]
    assert [one["logprob"] for one in report["choices"]] == pytest.approx(sums, rel=1e-13)
    weights = np.exp(sums)
    assert [one["share"] for one in report["choices"]] == pytest.approx(
        list(weights / weights.sum()), rel=1e-12
    )
    for one in report["choices"]:
        assert one["tokens"] == one["bytes"] == len(one["text"])
        assert one["logprob_per_token"] == one["logprob_per_byte"] == one["logprob"] / one["tokens"]
    assert (report["best"], report["by"]) == (" morning", "token")
    assert made(model, PROMPT, " morning", " day", " x").report()["best"] == " day"
    assert report["usage"] == {"prompt_tokens": 13, "choice_tokens": 14}
    assert list(report["timings"]) == ["load_s", "prompt_s", "choices_s", "prompt_per_s", "choices_per_s"]


@pytest.mark.parametrize(("by", "expected"), [("sum", "bcad"), ("token", "acbd"), ("byte", "cbad")])
def test_ranks(model: Model, by: str, expected: str) -> None:
    run = Choosing(model, PROMPT, Settings((b"a",), by=by))
    run.scored = [
        Choice(b"a", -6.0, 6, 4),  # -1 a token, -1.5 a byte
        Choice(b"b", -4.0, 2, 4),  # -2, -1
        Choice(b"c", -4.5, 3, 9),  # -1.5, -0.5
        Choice(b"d", -6.0, 2, 4),  # -3, -1.5: equal ones stay in order
    ]
    assert "".join(choice.text.decode() for choice in run.ranked) == expected


def test_shares_of_hopeless_choices(model: Model) -> None:
    long = "z" * 3000
    run = made(model, PROMPT, long, long + "z")
    assert run.scored[0].logprob < -745  # beyond what exp can tell from 0
    assert math.fsum(run.shares()) == pytest.approx(1, rel=1e-15 * len(run.shares()))
    assert run.shares()[0] > run.shares()[1] > 0


def test_the_end_of_a_text(model: Model) -> None:
    run = made(model, PROMPT, " day", " day.", end=True)
    expected = [logprob(model, PROMPT.decode(), choice) for choice in (" day\0", " day.\0")]
    assert [one.logprob for one in run.scored] == pytest.approx(expected, rel=1e-13)
    assert [(one.tokens, one.nbytes) for one in run.scored] == [(5, 4), (6, 5)]


@pytest.mark.parametrize("family", ["bytes", "world", "raven", "pile", "g1", "g1-flower", "plain"])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_an_answer_stands_as_the_family_was_trained(
    model: Model, family: str, end: bool, system: str | None
) -> None:
    template = named(family)
    before = template.render([Turn("What\n\nday?")], system)
    run = made(
        model, b"What\n\nday?\n", "Monday", "  Tuesday \n", chat=True, system=system, template=family, end=end
    )
    whole = [template.render([Turn("What\n\nday?", day)], system) for day in ("Monday", "Tuesday")]
    answers = [text.removeprefix(before) for text in whole]
    if not end:
        answers = [text[: text.index("day") + 3] for text in answers]
    expected = [logprob(model, before, answer, begins=template.begin) for answer in answers]
    assert [one.logprob for one in run.scored] == pytest.approx(expected, rel=1e-13)
    assert [one.nbytes for one in run.scored] == [len(answer.encode()) for answer in answers]
    assert [one.text for one in run.scored] == [b"Monday", b"  Tuesday \n"]
    assert run.prompt_tokens == len(before.encode()) + template.begin


def test_states(model: Model, tmp_path: Path) -> None:
    paused(model, b"It was").save(tmp_path / "s")
    whole = made(model, PROMPT, " day", " x").scored
    assert made(model, b" a fine", " day", " x", state=State.load(tmp_path / "s", model)).scored == whole
    empty = [made(model, text, " day", state=State.load(tmp_path / "s", model)) for text in (None, b"")]
    assert [one.scored[0].logprob for one in empty] == pytest.approx(
        [logprob(model, "It was", " day")] * 2, rel=1e-13
    )
    assert [one.prompt_tokens for one in empty] == [0, 0]


def test_an_answer_after_an_answer(model: Model) -> None:
    """A message after a state with an answer begins a new turn, as `generate` has it."""
    first = Generation(model, b"Hello", Sampling(3, {"temperature": 0}, chat=True), keep=True)
    reply = "".join(first)
    state = first.settle()
    again = Generation(model, b"And?", Sampling(5, {"temperature": 0}, chat=True, logprobs=0), state.copy())
    text = "".join(again)
    (found,) = made(model, b"And?", text, chat=True, state=state.copy()).scored
    raw = "".join(one["text"] for one in again.logprobs)
    assert reply
    assert again.prompt.startswith(b"\n\nUser: And?")
    (same,) = made(model, again.prompt, raw, state=state.copy()).scored
    told = [one["logprob"] for one in again.logprobs]  # each rounded to six places
    assert same.logprob == pytest.approx(math.fsum(told), abs=len(told) * 5e-7)
    (plain,) = made(model, again.prompt, " " + text, state=state.copy()).scored
    assert found.logprob == plain.logprob


def test_a_state_that_cannot_be_gone_on_with(model: Model) -> None:
    ended = Generation(model, b"It was", Sampling(5, {"logit_bias": {0: 99.0}}), keep=True)
    assert list(ended) == []
    with pytest.raises(
        UsageError, match="the text that the state has seen has ended: nothing comes after it"
    ):
        made(model, None, "a", state=ended.settle())
    bare = model.new_state()
    model.forward([65], bare)
    with pytest.raises(UsageError, match="the state was not left inside a text"):
        made(model, None, "a", state=bare)
    with pytest.raises(UsageError, match="there is no message to answer"):
        made(model, None, "a", state=paused(model, b"It was"), chat=True)


@pytest.mark.parametrize(
    ("choices", "chat", "message"),
    [
        ([b"a", b""], False, "a choice is empty"),
        ([b" \n"], True, "a choice is empty"),
        ([b"a", b"b", b"a"], False, "the choice 'a' is given twice"),
        ([b"a", b" a"], True, "the choice 'a' is given twice"),
        ([b"\xff", b"\xff "], True, "the choice '\ufffd' is given twice"),
    ],
)
def test_refused_choices(choices: list[bytes], chat: bool, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_choices(choices, chat)
    assert str(caught.value) == message
    check_choices([b"a", b" a", b" "], False)


def test_it_can_be_stopped_in_the_text_and_in_the_choices(model: Model) -> None:
    class Stop:
        def __init__(self, after: int) -> None:
            self.left = after

        def __call__(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise Cancelled("stopped")

    settings = Settings((b" day" * 20, b" x" * 30))
    for after in range(3):
        run = Choosing(model, PROMPT * 60, settings, check=Stop(after))
        with pytest.raises(Cancelled):
            run.run()
        assert run.scored == []


def lines(
    model: Model, given: list[Any], settings: Settings, start: State | None = None
) -> list[dict[str, Any]]:
    data = [one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in given]
    run = ChoosingLines(model, lambda wait: data.pop(0) if data else b"", settings, start)
    found = list(run)
    assert run.given == len(found)
    assert run.failed == sum("error" in one for one in found)
    assert run.rest() == []
    return found


def test_lines(model: Model) -> None:
    found = lines(
        model,
        [
            "It was",
            b"\n",
            {"prompt": "It was", "id": "b", "choices": [" x", " y"]},
            {"prompt": "Which?", "id": None, "system": "Be brief."},
        ],
        Settings((b" day", b" x")),
    )
    expected = [
        made(model, b"It was", " day", " x"),
        made(model, b"It was", " x", " y"),
        made(model, b"Which?", " day", " x", chat=True, system="Be brief."),
    ]
    assert [one["id"] for one in found] == [0, "b", None]
    assert [list(one) for one in found] == [["id", *expected[0].report()]] * 3
    for one, run in zip(found, expected, strict=True):
        assert [choice["logprob"] for choice in one["choices"]] == [choice.logprob for choice in run.scored]
        assert one["best"] == run.report()["best"]


def test_lines_continue_the_state(model: Model) -> None:
    start = paused(model, b"It was")
    found = lines(model, [" a fine", "", " a fine"], Settings((b" day",)), start)
    values = [one["choices"][0]["logprob"] for one in found]
    assert values == pytest.approx(
        [logprob(model, text, " day") for text in ("It was a fine", "It was", "It was a fine")], rel=1e-13
    )


def test_lines_that_fail(model: Model) -> None:
    bad: list[tuple[Any, str]] = [
        (b"oops\n", "not a line of JSON"),
        ([1], "neither a JSON string nor an object with a string `prompt`"),
        ({"choices": ["a"]}, "neither a JSON string nor an object with a string `prompt`"),
        ("no choices", "there are no choices"),
        ({"prompt": "a", "choices": []}, "there are no choices"),
        ({"prompt": "a", "choices": "ab"}, "choices is not a list of strings"),
        ({"prompt": "a", "choices": ["b", 1]}, "choices is not a list of strings"),
        ({"prompt": "a", "choices": ["b", "b"]}, "the choice 'b' is given twice"),
        ({"prompt": "a", "choices": ["b", ""]}, "a choice is empty"),
        (
            {"prompt": "a", "choices": ["\ud800"]},
            "character 0 of the text is half a surrogate pair, not a character",
        ),
        ({"prompt": "a", "choices": ["b"], "system": 1}, "system is not a string"),
        (
            {"prompt": "a", "choices": ["b"], "seed": 1},
            "a line has prompt, choices, id, system, and not 'seed'",
        ),
    ]
    good = {"prompt": "a", "choices": ["b"], "id": "last"}
    found = lines(model, [*(line for line, _ in bad), good], Settings())
    assert [one.get("error") for one in found] == [*(message for _, message in bad), None]
    assert [one["id"] for one in found] == [*range(len(bad)), "last"]


def test_a_line_with_logits_that_are_no_numbers(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise FormatError("the logits are not finite numbers: the model cannot be measured")

    monkeypatch.setattr("rwkvcli.services.choosing.score_choices", broken)
    (found,) = lines(model, ["a"], Settings((b"b",)))
    assert found == {"id": 0, "error": "the logits are not finite numbers: the model cannot be measured"}
