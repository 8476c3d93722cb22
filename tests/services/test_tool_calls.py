"""What the arguments of calls conform to, and how tools and calls stand in a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from rwkvcli.errors import UsageError
from rwkvcli.runtime.grammar import GrammarMatcher
from rwkvcli.runtime.templates import named
from rwkvcli.runtime.tokenizer import ByteTokenizer
from rwkvcli.services.tool_calls import Tool, calling, instructions, result

X = {"x": {"type": "string"}}
KNOWN: list[tuple[dict[str, Any] | None, str, str]] = [
    (None, "{}", '{"y":1}'),
    ({}, '{"y":1}', "1"),
    ({"properties": X}, '{"x":""}', '{"y":1}'),
    ({"type": "object", "properties": X, "required": ["x"]}, '{"x":""}', "{}"),
    ({"properties": X, "additionalProperties": True}, '{"x":"","y":1}', '{"x":1}'),
    ({"properties": X, "required": ["x", "y"]}, '{"x":"","y":1}', '{"x":""}'),
    ({"properties": X, "allOf": [{"properties": {"y": {"type": "integer"}}}]}, '{"x":"","y":1}', '{"x":1}'),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": X}}}, '{"x":""}', '{"x":1}'),
]


def conforms(matcher: GrammarMatcher, text: str) -> bool:
    try:
        matcher.resume(ByteTokenizer().encode(text))
    except UsageError:
        return False
    return matcher.complete


@pytest.mark.parametrize(("parameters", "good", "bad"), KNOWN)
def test_arguments(parameters: dict[str, Any] | None, good: str, bad: str) -> None:
    pytest.importorskip("llguidance")
    own = Tool("a", parameters=parameters).arguments()
    assert conforms(own.matcher(ByteTokenizer()), good)
    assert not conforms(own.matcher(ByteTokenizer()), bad)


@pytest.mark.parametrize(
    "key", [{"uniqueItems": True}, {"items": {"type": "string", "format": "isbn"}}, {"not": {}}]
)
def test_what_cannot_be_kept_to_is_passed_over_unless_it_is_strict(key: dict[str, Any]) -> None:
    pytest.importorskip("llguidance")
    parameters = {"properties": {"x": {"type": "array", **key}}}
    own = Tool("a", parameters=parameters).arguments()
    assert conforms(own.matcher(ByteTokenizer()), '{"x":["",""]}')
    assert not conforms(own.matcher(ByteTokenizer()), '{"x":1}')
    refusing = {**parameters, "x-guidance": {"lenient": False}}
    for tool in (Tool("a", parameters=parameters, strict=True), Tool("a", parameters=refusing)):
        with pytest.raises(UsageError, match="the schema cannot be used"):
            tool.arguments()


@pytest.mark.parametrize("kind", ["array", ["object", "null"], None])
def test_arguments_are_an_object(kind: Any) -> None:
    with pytest.raises(UsageError, match="the schema is not that of an object"):
        Tool("a", parameters={"type": kind}).arguments()


def test_texts() -> None:
    template = named("g1")
    tools = [Tool("a", "Ä {tools}", {"b": 1, "a": 2}), Tool("b")]
    assert instructions(template, tools) == (
        'Tools:\n[{"name":"a","description":"Ä {tools}","parameters":{"b":1,"a":2}},{"name":"b"}]\n'
        "If a tool is needed, return only a JSON function call:\n"
        '```json\n{"name":"NAME","arguments":{}}\n```\nOtherwise answer.'
    )
    call = '```json\n{"name":"a","arguments":{"x": 1}}\n```'
    assert calling(template, "", [("a", '{"x": 1}')]) == call
    assert calling(template, " So. ", [("a", ' {"x": 1}'), ("b", "")]) == (
        f'So.\n{call}\n```json\n{{"name":"b","arguments":{{}}}}\n```'
    )
    assert result(template, "{name}", None) == "Function output:\n{name}"
    assert result(template, "{result}{name}", "a") == "Function output of a:\n{result}{name}"
