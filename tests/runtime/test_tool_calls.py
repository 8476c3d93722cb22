"""Calls of tools in answers: what a grammar lets through, and how it is taken apart."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvcli.errors import UsageError
from rwkvcli.runtime.grammar import GrammarMatcher
from rwkvcli.runtime.templates import named, templates
from rwkvcli.runtime.tokenizer import ByteTokenizer, Tokenizer, WorldTokenizer
from rwkvcli.runtime.tool_calls import CallForm, CallSplitter

NAMES = ("get", "get.more-2", "now")
FORM = CallForm.of(named("g1"))
ROME, THREE = '{"city":"Ro\\"}{me"}', '{ "n" : [ 3, {} ] }'
CALL, MORE = FORM.render("get", ROME), FORM.render("get.more-2", THREE)
WIDE = '```json\n{\n  "name": "get",\n  "arguments": {\n    "city": "Rome"\n  }\n}\n```'
JSON = '```json\n{"city": "Rome"}\n```'
PACKAGE = '```json\n{\n  "name": "my-package",\n  "version": 1\n}\n```'
LINE = '```json\n{"name":"my-package","arguments":{}}\n```'
SPACED = '```json\n{"name": "get", "arguments": {"city": "Rome"}}\n```'
WORLD, BYTES = WorldTokenizer(), ByteTokenizer()


def told(pieces: list[str], form: CallForm = FORM) -> tuple[str, list[list[str]], bool]:
    """The text, the names and arguments of the calls, and whether the last is whole."""
    splitter, text = CallSplitter(form, NAMES), ""
    calls: list[list[str]] = []
    for piece in [new for each in pieces for new in splitter.push(each)] + splitter.flush():
        if piece.call is None:
            assert piece.text
            assert not calls
            text += piece.text
        elif piece.name:
            assert piece.call == len(calls)
            calls.append([piece.name, ""])
        else:
            assert piece.text
            assert piece.call == len(calls) - 1
            calls[-1][1] += piece.text
    assert splitter.calls == len(calls)
    return text, calls, splitter.whole


SPLIT: list[tuple[str, tuple[str, list[list[str]], bool]]] = [
    ("", ("", [], True)),
    ("Well, yes.\n\n", ("Well, yes.", [], True)),
    (CALL, ("", [["get", ROME]], True)),
    (f"{CALL}\n{MORE}\n\n", ("", [["get", ROME], ["get.more-2", THREE]], True)),
    (f"I look.\n\n{CALL}", ("I look.", [["get", ROME]], True)),
    (f"{JSON}\n{CALL}", (JSON, [["get", ROME]], True)),
    (f"{JSON}\n", (JSON, [], True)),
    (f"{PACKAGE} is it", (f"{PACKAGE} is it", [], True)),
    (f"So: {WIDE}", ("So:", [["get", '{\n    "city": "Rome"\n  }']], True)),
    ("Well.\n\nUser: And?", ("Well.", [], True)),
    (f"Well.\nUser: {CALL}", ("Well.", [], True)),
    ("Well.\n\nUse", ("Well.\n\nUse", [], True)),
    ("Well. ```json\n{", ("Well. ```json\n{", [], True)),
    ("a\n```json\n{ \"name\":1} and much more" + " text" * 40, ("a\n```json\n{ \"name\":1} and much more" + " text" * 40, [], True)),
    (f"{LINE} is it", (f"{LINE} is it", [], True)),
    (f"{LINE}\n{SPACED}", (LINE, [["get", '{"city": "Rome"}']], True)),
    ('```json\n{"name":"ge', ('```json\n{"name":"ge', [], True)),
    ('```json\n{"name":"get"', ("", [["get", ""]], False)),
    ('```json\n{"name":"get","arg', ("", [["get", ""]], False)),
    (CALL[: CALL.index('me"}')], ("", [["get", '{"city":"Ro\\"}{']], False)),
    (CALL.removesuffix("}\n```"), ("", [["get", ROME]], True)),
    (f"{CALL}\n{MORE}"[:-8], ("", [["get", ROME], ["get.more-2", THREE.removesuffix("] }")]], False)),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "parts"), SPLIT)
def test_text_and_calls(answer: str, parts: tuple[str, list[list[str]], bool]) -> None:
    assert told([answer]) == parts
    assert told(list(answer)) == parts


FRAGMENTS = st.sampled_from(
    [CALL, MORE, WIDE, JSON, PACKAGE, LINE, SPACED, "```json\n{", '"name":', "```json", "\n", " ", "\n\nUser", "\nUser:", "é", "a b"]
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=6), st.data())
def test_the_split_does_not_matter(fragments: list[str], data: Any) -> None:
    answer = "".join(fragments)
    places = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    pieces = [answer[a:b] for a, b in zip([0, *places], [*places, len(answer)], strict=True)]
    assert told(pieces) == told([answer])


def test_text_is_told_as_it_comes() -> None:
    splitter = CallSplitter(FORM, NAMES)
    shown = [
        [piece.text for piece in splitter.push(text)] for text in ("It is", " ", "so", "\n`", "`x", "``")
    ]
    assert shown == [["It is"], [], [" so"], [], ["\n``x"], []]


@pytest.mark.parametrize("family", templates())
def test_every_family_has_a_form(family: str) -> None:
    template = named(family)
    form = CallForm.of(template)
    assert form.before
    assert not form.before[0].isspace()
    assert told([form.render("now", " ")], form) == ("", [["now", "{}"]], True)
    assert template.tools.count("{tools}") == template.result.count("{result}") == 1
    assert template.results.index("{name}") < template.results.index("{result}")


def constraint(family: str = "g1", *, free: bool, several: bool) -> Any:
    pytest.importorskip("llguidance")
    from rwkvcli.runtime.call_constraint import CallConstraint
    from rwkvcli.runtime.constraint import Constraint

    string = {"type": "string", "maxLength": 9}
    schemas: list[dict[str, Any]] = [
        {"properties": {"city": string}, "required": ["city"]},
        {"properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "array", "maxItems": 2}}},
        {"properties": {}},
    ]
    tools = {
        name: Constraint.of_schema({"type": "object", "additionalProperties": False, **schema})
        for name, schema in zip(NAMES, schemas, strict=True)
    }
    return CallConstraint.of_tools(tools, named(family), free=free, several=several)


def followed(matcher: GrammarMatcher, text: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """How far the text comes, and whether it is then complete, may end, or has to go on."""
    ids = tokenizer.encode(text)
    allowed = np.zeros(tokenizer.vocab_size, np.float32)
    for number, token in enumerate(ids):
        if matcher.complete:
            return tokenizer.decode(ids[:number]), "complete"
        allowed[:] = 0
        matcher.strike(memoryview(allowed))
        if allowed[token]:
            return tokenizer.decode(ids[:number]), "no"
        matcher.push(token)
    if not matcher.complete:
        allowed[:] = 0
        matcher.strike(memoryview(allowed))
    return text, "complete" if matcher.complete else "on" if allowed[tokenizer.eos_id] else "may end"


NOW = FORM.render("now", "{}")
ROOM = FORM.render("get", '{"city": "Rome"}')
FOLLOWED = [
    (True, True, " Well, yes.", " Well, yes.", "may end"),
    (True, True, f" Well.\n{ROOM}", f" Well.\n{ROOM}", "may end"),
    (True, True, f" {ROOM}\n{NOW}", f" {ROOM}\n{NOW}", "may end"),
    (True, True, f" {ROOM}\n\nUser", f" {ROOM}\n\n", "complete"),
    (True, True, f" {ROOM}, so", f" {ROOM}", "no"),
    (True, False, f" {ROOM}\n{NOW}", f" {ROOM}", "complete"),
    (True, True, " Well.\n\nUser: And", " Well.\n\nUser", "complete"),
    (True, True, f" {JSON} {PACKAGE}", f" {JSON} {PACKAGE}", "may end"),
    (True, True, f" {WIDE}", f" {WIDE}", "may end"),
    (True, False, f" {WIDE}", f" {WIDE}", "complete"),
    (True, True, f" {LINE} {ROOM}", f" {LINE} {ROOM}", "may end"),
    (True, True, f" {SPACED}\n{NOW}", f" {SPACED}\n{NOW}", "may end"),
    (True, True, ' ```json\n{"name":"now","version"', ' ```json\n{"name":"now","', "no"),
    (True, True, ' ```json\n{"name": "now","x"', ' ```json\n{"name": "now","', "no"),
    (False, True, ' ```json\n{"name":"x', ' ```json\n{"name":"', "no"),
    (True, True, ' ```json\n{"name":"get","arguments":{}', ' ```json\n{"name":"get","arguments":{', "no"),
    (False, True, f" {ROOM}\n{NOW}", f" {ROOM}\n{NOW}", "may end"),
    (False, True, " Well", " ", "no"),
    (False, True, CALL, "", "no"),
    (False, False, f" {NOW}", f" {NOW}", "complete"),
    (False, True, ' ```json\n{"name":"get.more-2","arguments":{"n":[1,2', ' ```json\n{"name":"get.more-2","arguments":{"n":[1,2', "on"),
]  # fmt: skip


@pytest.mark.parametrize(("free", "several", "text", "passed", "end"), FOLLOWED)
def test_what_is_let_through(free: bool, several: bool, text: str, passed: str, end: str) -> None:
    own = constraint(free=free, several=several)
    assert followed(own.answer_matcher(BYTES, False, ""), text, BYTES) == (passed, end)
    came, how = followed(own.answer_matcher(WORLD, False, ""), text, WORLD)
    assert (passed.startswith(came), how) == (True, end)


def test_thoughts_call_nothing() -> None:
    thoughts = f"> I could: {NOW}</think>"
    for free in (True, False):
        matcher = constraint(free=free, several=False).answer_matcher(WORLD, True, ">")
        assert followed(matcher, f"{thoughts}\n{NOW}", WORLD) == (f"{thoughts}\n{NOW}", "complete")


@pytest.mark.parametrize("family", templates())
def test_a_call_stands_as_in_the_conversation(family: str) -> None:
    template = named(family)
    own = constraint(family, free=False, several=True)
    text = template.answer.replace("{reply}", NOW)
    came, how = followed(own.answer_matcher(WORLD, False, template.lead), text, WORLD)
    assert how == "complete"
    assert text.startswith(came)
    assert came.startswith(template.head + NOW)


def test_what_ends_an_answer_may_stand_in_a_call() -> None:
    form = CallForm.of(named("g1-flower"))
    call = form.render("get", '{"city":"✿"}')
    matcher = constraint("g1-flower", free=True, several=False).answer_matcher(WORLD, False, ">")
    assert followed(matcher, f">Look: {call}", WORLD) == (f">Look: {call}", "complete")
    assert told([f"Look: {call}"], form) == ("Look:", [["get", '{"city":"✿"}']], True)
    matcher = constraint("g1-flower", free=True, several=False).answer_matcher(WORLD, False, ">")
    assert followed(matcher, f">Look✿{call}", WORLD) == (">Look✿", "complete")
    assert told(["Look✿"], form) == ("Look", [], True)


def drawn(matcher: GrammarMatcher, draw: random.Random) -> str:
    """A text that is let through, white space only where nothing else is."""
    answer = bytearray()
    while not matcher.complete:
        logits = np.zeros(BYTES.vocab_size, np.float32)
        matcher.strike(memoryview(logits))
        allowed = [int(token) for token in np.flatnonzero(logits == 0)]
        token = draw.choice([token for token in allowed if token not in b" \n\t"] or allowed)
        matcher.push(token)
        answer.append(token)
    return answer.decode()


def test_whatever_is_drawn_calls_a_tool() -> None:
    draw, seen = random.Random(5), set()
    for _ in range(30):
        text, calls, whole = told(
            [drawn(constraint(free=False, several=False).answer_matcher(BYTES, False, ""), draw)]
        )
        ((name, arguments),) = calls
        found = json.loads(arguments)
        seen.add(name)
        assert (text, whole) == ("", True)
        if name == "get":
            assert found.keys() == {"city"}
            assert len(found["city"]) <= 9
        elif name == "now":
            assert found == {}
        else:
            assert found.keys() <= {"n"}
            assert len(found.get("n", [])) <= 2
    assert seen == set(NAMES)


def test_tools_have_a_limit_together() -> None:
    pytest.importorskip("llguidance")
    from rwkvcli.runtime.call_constraint import CallConstraint
    from rwkvcli.runtime.constraint import LARGEST, Constraint

    large = Constraint.of_schema({"type": "object", "description": "x" * LARGEST})
    with pytest.raises(UsageError, match="the tools cannot be used: larger than 256 KB together"):
        CallConstraint.of_tools({"a": large, "b": large}, named("g1"), free=True, several=True)
