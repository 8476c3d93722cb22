"""Texts that conform to something in `Generation`: in conversations, after thoughts, in states, in batches."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quant_models import checkpoint, quantized
from scripted import WORLD, ScriptModel

from quant.synthetic import synthetic_arch
from rwkvcli import Model, State
from rwkvcli.errors import FormatError, UsageError
from rwkvcli.runtime.constraint import Constraint
from rwkvcli.runtime.templates import templates
from rwkvcli.services.batching import Batch, alternatives
from rwkvcli.services.generation import Generation, Settings
from rwkvcli.services.loading import load_state

pytest.importorskip("llguidance")

GREEDY = {"temperature": 0.0, "seed": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0}
YES = Constraint.of_choices(["yes", "no"])
DOG = Constraint.of_schema(
    {
        "type": "object",
        "properties": {"animal": {"type": "string", "maxLength": 12}, "legs": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["animal", "legs"],
        "additionalProperties": False,
    }
)  # fmt: skip
SAID = '{"animal": "dog", "legs": 4}'


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("demo", threads=1)


def answered(
    text: str, constraint: Constraint, think: str | None = None, template: str = "g1", **more: Any
) -> Generation:
    """An answer of a model that wants to say `text`."""
    script: Any = ScriptModel(text, template)
    settings = Settings(
        more.pop("max_tokens", -1), GREEDY, chat=True, think=think, constraint=constraint, **more
    )
    run = Generation(script, b"What is it?", settings)
    pieces = list(run)
    assert "".join(pieces) == run.text and all(pieces)
    return run


@pytest.mark.parametrize("template", [name for name in templates() if name != "plain"])
def test_the_space_and_the_lead_before_an_answer(template: str) -> None:
    lead = templates()[template].lead
    for before in (" ", "\n", "", "\n\n"):
        said = f"{lead}{before}{SAID}"
        run = answered(said + " That is all.", DOG, template=template)
        assert (run.text, run.finish_reason) == (SAID, "stop")
        state: Any = run.settle()
        assert WORLD.decode([token for token in state.seen if token >= 0]).endswith(said)


def test_no_token_is_drawn_after_the_end() -> None:
    run = answered(" yes", YES, logprobs=0)
    assert (run.text, run.finish_reason) == ("yes", "stop")
    assert [told["text"] for told in run.logprobs] == [WORLD.decode((t,)) for t in WORLD.encode(" yes")]
    assert run.completion_tokens == len(run.logprobs) == len(WORLD.encode(" yes"))


def test_the_model_decides_where_it_may_end() -> None:
    digits = Constraint.of_regex("[0-9]{1,6}")
    assert answered(" 123", digits).text == "123"  # it ended there
    assert answered(" 1234567", digits).text == "123456"
    assert (run := answered(" 1234", digits, max_tokens=2)).finish_reason == "length"
    assert run.text == WORLD.decode(WORLD.encode(" 1234")[:2]).strip()
    assert answered(" 123456", digits, max_tokens=len(WORLD.encode(" 123456"))).finish_reason == "stop"


@pytest.mark.parametrize("think", ["show", "hide"])
@pytest.mark.parametrize("template", ["g1", "g1-flower"])
def test_thoughts_are_free(think: str, template: str) -> None:
    thoughts = ">\nIs it yes? User:\n\nno </thin> \u2764 {\n</think>"
    for between in ("", "\n", "\n\n"):
        run = answered(thoughts + between + SAID + " or not", DOG, think, template)
        assert run.thinking == "Is it yes? User:\n\nno </thin> \u2764 {"
        assert (run.text, run.finish_reason) == (SAID, "stop")
    assert answered("> Yes.\n", YES, "fast", template).text in ("yes", "no")


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_run_that_is_cut_in_its_thoughts_goes_on(tokens: int) -> None:
    script: Any = ScriptModel(f"> So.</think>\n{SAID} or not")
    settings = Settings(tokens, GREEDY, chat=True, think="show", constraint=DOG)
    run = Generation(script, b"What is it?", settings, keep=True)
    told = list(run.parts())
    state: Any = run.settle()
    while not state.pause.ended:
        assert run.finish_reason == "length"
        run = Generation(script, None, settings, state, keep=True)
        told += run.parts()
        state = run.settle()
    assert "".join(part.text for part in told if part.thinking) == "So."
    assert "".join(part.text for part in told if not part.thinking) == SAID


def test_thoughts_alone_conform_to_nothing() -> None:
    with pytest.raises(UsageError, match=r"^thoughts alone cannot be held to a schema or grammar$"):
        answered("x", YES, "only")


def test_what_answers_stop_at_does_not_end_them() -> None:
    text = "ab\n\nUser: cd\n\n \u3000"
    spaced = Constraint.of_regex(r"(?s:.{16})")
    assert spaced.white == ""
    assert answered(text, spaced, template="world").text == text  # the white space at the end is part of it
    assert answered(text, spaced, template="world", stop=("cd",)).text == "ab\n\nUser: "
    own = Constraint.of_regex("[\u3000\t]x[ ]+")
    assert answered(" \u3000x  ", own).text == "\u3000x  "
    assert answered("\tx ", own).text == "\tx "


def test_the_whole_of_a_continued_text(model: Model) -> None:
    for seed in range(20):
        settings = Settings(200, {"seed": seed, "temperature": 3.0, "top_p": 1.0}, constraint=DOG)
        run = Generation(model, b"It was", settings)
        said = json.loads("".join(run))
        assert set(said) == {"animal", "legs"} and len(said["animal"]) <= 12 and 0 <= said["legs"] <= 9
        assert run.finish_reason == "stop"


def test_the_api(model: Model) -> None:
    text = "".join(model.generate("It was", regex="[a-z]{5,9}", seed=1))
    assert re.fullmatch("[a-z]{5,9}", text)
    settings = Settings(sampling={"seed": 1}, constraint=Constraint.of_regex("[a-z]{5,9}"))
    assert text == "".join(Generation(model, b"It was", settings))
    state = model.new_state()
    assert "".join(model.generate("It was", choices=["blue", "green"], temperature=0, state=state)) in (
        "blue",
        "green",
    )
    assert state.tokens_seen in (len("It wasblue"), len("It wasgreen"))
    assert json.loads("".join(model.generate("x", schema={"const": [1, None]}))) == [1, None]
    assert json.loads("".join(model.generate("x", schema='{"const": "é"}'))) == "é"
    assert "".join(model.generate("x", grammar='start: "<" "a"~3 ">"')) == "<aaa>"
    with pytest.raises(UsageError, match=r"^regex and choices do not go together$"):
        model.generate("x", regex="a", choices=["a"])
    with pytest.raises(UsageError, match="unclosed group"):
        model.generate("x", regex="(")


def resumed(model: Any, path: Path, settings: Settings, text: bytes | None = None) -> Generation:
    run = Generation(model, text, settings, load_state(path, model), keep=True)
    list(run)
    return run


def test_a_cut_text_goes_on_under_its_constraint_alone(model: Model, tmp_path: Path) -> None:
    settings = Settings(5, {"seed": 2}, constraint=DOG)
    first = Generation(model, b"It was", settings, keep=True)
    list(first)
    first.save(tmp_path / "s")
    for other in (YES, Constraint.of_schema({"type": "array"})):
        with pytest.raises(
            UsageError, match=r"^the text that the state was left in does not fit this schema or grammar$"
        ):
            resumed(model, tmp_path / "s", replace(settings, constraint=other))
    with pytest.raises(UsageError, match="does not fit"):
        resumed(model, tmp_path / "s", replace(settings, constraint=YES, chat=True))
    json.loads(first.text + resumed(model, tmp_path / "s", replace(settings, max_tokens=200)).text)
    assert resumed(model, tmp_path / "s", replace(settings, constraint=None)).completion_tokens == 5
    assert resumed(model, tmp_path / "s", replace(settings, constraint=YES), b"So?").text in ("yes", "no")


def test_a_text_that_was_begun_freely(model: Model, tmp_path: Path) -> None:
    for chat in (False, True):
        free = Settings(0, {"seed": 2}, chat=chat)
        built = Generation(model, b"It was", free, keep=True)
        list(built)
        built.save(tmp_path / "s")  # as `rwkv state build`: nothing was generated
        assert resumed(model, tmp_path / "s", replace(free, max_tokens=9, constraint=YES)).text in (
            "yes",
            "no",
        )
    begun = Generation(model, b"It was", replace(free, max_tokens=4), keep=True)
    list(begun)
    begun.save(tmp_path / "s")
    with pytest.raises(
        UsageError, match=r"^the state was left inside a text that no schema or grammar was given for$"
    ):
        resumed(model, tmp_path / "s", replace(free, constraint=YES))


def test_hostile_states(model: Model, tmp_path: Path) -> None:
    settings = Settings(5, {"seed": 2}, constraint=DOG)
    first = Generation(model, b"It was", settings, keep=True)
    list(first)
    state = first.settle()
    pause: Any = state.pause
    for ids in ("x", {}, 3, [1.0], [True], [-1], [256], [[1]], ["a"]):
        state.pause = replace(pause, sampler={**pause.sampler, "conforming": ids})
        state.save(tmp_path / "s")
        with pytest.raises(FormatError, match=r"^not the state of a sampler: its tokens are none$"):
            resumed(model, tmp_path / "s", settings)
    for ids in ([0], [123] * 100_000, [123, 0], [125]):
        state.pause = replace(pause, sampler={**pause.sampler, "conforming": ids})
        state.save(tmp_path / "s")
        with pytest.raises(UsageError, match="does not fit"):
            resumed(model, tmp_path / "s", settings)


def test_an_old_state_goes_on(model: Model, tmp_path: Path) -> None:
    """One of a version that knew of no constraints has no tokens in it."""
    free = Settings(5, {"seed": 2})
    run = Generation(model, b"It was", free, keep=True)
    list(run)
    state = run.settle()
    assert state.pause is not None and "conforming" not in (state.pause.sampler or {})
    state.save(tmp_path / "s")
    assert resumed(model, tmp_path / "s", free).completion_tokens == 5


LINES: list[Any] = [
    "It was",
    {"prompt": "It was", "seed": 3},
    {"prompt": "It was", "schema": {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"], "additionalProperties": False}},
    {"prompt": "It was", "regex": "[a-z]{3,5}!", "temperature": 2.0},
    {"prompt": "It was", "choices": ["one", "two"], "system": "Be brief."},
    {"prompt": "It was", "grammar": 'start: "<" /[a-z]{1,4}/ ">"'},
    {"prompt": "It was", "schema": None, "max_tokens": 7},
]  # fmt: skip
BAD: list[tuple[Any, str]] = [
    ({"schema": "{}"}, "schema is not an object"),
    ({"schema": {"type": "foo"}}, "the schema cannot be used: invalid type: foo"),
    ({"choices": "a"}, "choices takes a list of strings, not 'a'"),
    ({"choices": []}, "there are no choices"),
    ({"regex": "("}, "the regular expression cannot be used: unclosed group"),
    ({"grammar": 3}, "grammar takes a string, not 3"),
    ({"grammar": 'start: "a"', "regex": "a"}, "regex and grammar do not go together"),
]


def batch(model: Model, lines: list[Any], settings: Settings, size: int) -> list[dict[str, Any]]:
    rest = [json.dumps(line).encode() + b"\n" for line in lines]
    return list(Batch(model, lambda _: rest.pop(0) if rest else b"", settings, size))


def test_lines_are_what_they_are_alone(model: Model) -> None:
    settings = Settings(120, {"seed": 5}, constraint=DOG)
    found = batch(model, LINES, settings, 4)
    for number, (line, result) in enumerate(zip(LINES, found, strict=True)):
        said = {"prompt": line} if isinstance(line, str) else dict(line)
        kinds = {kind: said.pop(kind) for kind in ("schema", "regex", "choices", "grammar") if kind in said}
        own = replace(
            settings,
            max_tokens=said.get("max_tokens", 120),
            constraint=Constraint.of(kinds) if kinds else DOG,
            chat="system" in said,
            system=said.get("system"),
            sampling={"seed": said.get("seed", 5 + number), "temperature": said.get("temperature")},
        )
        run = Generation(model, said["prompt"].encode(), own)
        assert result["text"] == "".join(run) and result["finish_reason"] == run.finish_reason
    assert set(json.loads(found[0]["text"])) == {"animal", "legs"}
    assert json.loads(found[2]["text"])["a"] <= 9
    assert re.fullmatch("[a-z]{3,5}!", found[3]["text"]) and found[4]["text"] in ("one", "two")
    assert re.fullmatch("<[a-z]{1,4}>", found[5]["text"]) and found[6]["finish_reason"] == "length"


def test_lines_that_ask_for_what_cannot_be(model: Model) -> None:
    found = batch(model, [{"prompt": "x", **more} for more, _ in BAD], Settings(3), 2)
    assert [result["error"] for result in found] == [message for _, message in BAD]


def test_alternatives_are_what_they_are_alone(model: Model) -> None:
    settings = Settings(120, {"seed": 5, "temperature": 2.0}, constraint=DOG)
    made = alternatives(model, b"It was", settings, 4)
    for number, one in enumerate(made):
        own = replace(settings, sampling={**settings.sampling, "seed": 5 + number})
        assert one.text == "".join(Generation(model, b"It was", own))
        assert set(json.loads(one.text)) == {"animal", "legs"}


def test_random_models_with_the_world_vocabulary(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "tiny.pth", synthetic_arch("7", 1, 64, 65536))
    quantized(source, tmp_path / "tiny.safetensors", "int8")
    tiny = Model.load(tmp_path / "tiny.safetensors", device="cpu", threads=1)
    texts = set()
    for seed in range(12):
        settings = Settings(
            300,
            {"seed": seed, "temperature": 1.5, "top_p": 1.0},
            chat=seed % 2 == 0,
            template="world",
            constraint=DOG,
        )
        run = Generation(tiny, b"It was", settings)
        said = json.loads("".join(run))
        assert list(said) == ["animal", "legs"] and len(said["animal"]) <= 12 and 0 <= said["legs"] <= 9
        texts.add(run.text)
        made = Generation(tiny, b"It was", replace(settings, max_tokens=3), keep=True)
        begin = "".join(made)
        made.save(tmp_path / "s")
        assert begin + resumed(tiny, tmp_path / "s", settings).text == run.text
    assert len(texts) == 12
    state = State.load(tmp_path / "s", tiny)
    assert all(np.isfinite(array).all() for array in state.to_numpy().values())
