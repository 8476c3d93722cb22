"""Answers and texts that conform to something, over HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("llguidance")

from model_server import Here

from rwkvcli.runtime.constraint import Constraint
from rwkvcli.services.generation import Generation, Settings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "maximum": 150, "minimum": 0},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
ASKED = {"messages": [{"role": "user", "content": "Who?"}], "seed": 5, "max_tokens": 200}
CLOSED = {"type": "object", "required": ["x"], "additionalProperties": False}


def said(here: Here, body: dict[str, Any]) -> str:
    response = here.post(CHAT, {**ASKED, **body})
    assert response.status == 200, response.body
    choice = response.json["choices"][0]
    assert choice["finish_reason"] == "stop"
    streamed = here.post(CHAT, {**ASKED, **body, "stream": True}).events
    text = choice["message"]["content"]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in streamed) == text
    return str(text)


def test_a_schema(here: Here) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    text = said(here, {"response_format": form})
    person = json.loads(text)
    assert person.keys() == {"name", "age"}
    assert len(person["name"]) <= 8
    assert 0 <= person["age"] <= 150
    settings = Settings(200, {"seed": 5}, chat=True, constraint=Constraint.of_schema(PERSON))
    assert "".join(Generation(here.model, b"Who?", settings)) == text
    assert said(here, {"schema": PERSON}) == text


def test_what_a_schema_cannot_be_held_to_is_passed_over_unless_it_is_strict(here: Here) -> None:
    unique = {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3, "uniqueItems": True}
    for more in ({}, {"strict": False}, {"strict": None}):
        about = {"name": "list", "schema": {"properties": {"x": unique}, **CLOSED}, **more}
        found = json.loads(said(here, {"response_format": {"type": "json_schema", "json_schema": about}}))
        assert found.keys() == {"x"}
        assert len(found["x"]) <= 3
        assert {*found["x"]} <= {"a", "b"}
    for strict, message in (
        (True, 'unimplemented keys: ["uniqueItems"]'),
        (1, "strict is not true or false"),
    ):
        form = {"type": "json_schema", "json_schema": {**about, "strict": strict}}
        response = here.post(CHAT, {**ASKED, "response_format": form})
        assert response.status == 400
        assert message in response.json["error"]["message"]


def test_any_object(here: Here) -> None:
    body = {
        **ASKED,
        "response_format": {"type": "json_object"},
        "logit_bias": {"34": 30, "44": -100, "125": 25},
    }
    choice = here.post(CHAT, body).json["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_choices_expressions_and_grammars(here: Here) -> None:
    assert said(here, {"choices": ["yes", "no"]}) in ("yes", "no")
    assert re.fullmatch("[a-c]{5}", said(here, {"regex": "[a-c]{5}"}))
    assert said(here, {"grammar": 'start: "x" "y"'}) == "xy"
    body = {"prompt": "It was ", "regex": "[0-9]{4}", "n": 3, "seed": 1}
    texts = [choice["text"] for choice in here.post(COMPLETIONS, body).json["choices"]]
    assert all(re.fullmatch("[0-9]{4}", text) for text in texts)


def test_plain_text_is_a_format(here: Here) -> None:
    body = {**ASKED, "max_tokens": 20}
    plain = here.post(CHAT, body).json["choices"]
    assert here.post(CHAT, {**body, "response_format": {"type": "text"}}).json["choices"] == plain


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"response_format": "json"}, "response_format is not an object"),
        ({"response_format": {}}, "response_format has the type text, json_object, or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format has the type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
            "response_format has the type",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "person"}}}},
            "the schema cannot be used",
        ),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "held to two things"),
        ({"regex": "("}, "the regular expression cannot be used"),
        ({"regex": "a", "choices": ["a"]}, "regex and choices do not go together"),
        ({"schema": "{}"}, "schema is not an object"),
        ({"choices": "yes"}, "choices takes a list of strings"),
        ({"choices": []}, "there are no choices"),
    ],
)
def test_bad_formats(here: Here, body: dict[str, Any], message: str) -> None:
    response = here.post(CHAT, {**ASKED, **body})
    assert response.status == 400
    assert message in response.json["error"]["message"]
