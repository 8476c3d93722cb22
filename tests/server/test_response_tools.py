"""Tools, formats and thoughts in the Responses API."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("llguidance")

from model_server import Here, serving
from response_events import CHAT, RESPONSES, ask, calls_of, new_tokens, text_of
from scripted import ServedScript

from rwkvcli.runtime.templates import named

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
}  # fmt: skip
ABOUT = {"name": "get_weather", "description": "The weather", "parameters": PARAMETERS, "strict": True}
WEATHER, NOW = {"type": "function", **ABOUT}, {"type": "function", "name": "now"}
CHAT_TOOLS = [{"type": "function", "function": ABOUT}, {"type": "function", "function": {"name": "now"}}]
NAMED = {"type": "function", "name": "get_weather"}
ROME = '{"city":"Rome","days":2}'
FENCE = '```json\n{"name":"get_weather","arguments":' + ROME + "}\n```"
FENCE_NOW = '```json\n{"name":"now","arguments":{}}\n```'
DEEP: dict[str, Any] = functools.reduce(lambda inner, _: {"x": inner}, range(600), {})
GREEDY = {"temperature": 0, "presence_penalty": 0, "frequency_penalty": 0}
ASKED = {"input": "Hello", "tools": [WEATHER, NOW], "seed": 3, "max_output_tokens": 400}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


def chat(here: Here, body: dict[str, Any]) -> dict[str, Any]:
    """The same from the other address."""
    response = here.post(CHAT, body)
    assert response.status == 200, response.body
    found: dict[str, Any] = response.json
    return found


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("several", [True, False])
def test_what_has_to_be_called_is(here: Here, choice: Any, several: bool) -> None:
    body = {**ASKED, "tool_choice": choice, "parallel_tool_calls": several, "store": False}
    other = choice if choice == "required" else {"type": "function", "function": {"name": "get_weather"}}
    for seed in range(3):
        said = ask(here, {**body, "seed": seed})
        expected = chat(
            here,
            {
                "messages": [{"role": "user", "content": "Hello"}], "tools": CHAT_TOOLS, "tool_choice": other,
                "parallel_tool_calls": several, "seed": seed, "max_tokens": 400,
            },
        )["choices"][0]["message"]  # fmt: skip
        calls = calls_of(said)
        assert said["output"] == calls
        assert [(call["name"], call["arguments"]) for call in calls] == [
            (call["function"]["name"], call["function"]["arguments"]) for call in expected["tool_calls"]
        ]
        assert all(call["id"].startswith("fc_") and call["call_id"].startswith("call_") for call in calls)
        assert {call["status"] for call in calls} == {"completed"}
        assert len({call["call_id"] for call in calls}) == len(calls)
        assert several or len(calls) == 1
        assert (said["tool_choice"], said["parallel_tool_calls"]) == (choice, several)
        assert said["tools"] == [
            WEATHER, {**NOW, "description": None, "parameters": None, "strict": False}
        ]  # fmt: skip


def test_a_call_that_is_cut_is_told_as_far_as_it_came(here: Here) -> None:
    body = {**ASKED, "tool_choice": NAMED, "parallel_tool_calls": False}
    (whole,) = calls_of(ask(here, body))
    opening = len(' ```json\n{"name":"get_weather","arguments":')
    cut = ask(here, {**body, "max_output_tokens": opening + 4})
    (call,) = cut["output"]
    assert (call["arguments"], call["status"], cut["status"]) == (
        whole["arguments"][:4],
        "incomplete",
        "incomplete",
    )
    stopped = ask(here, {**body, "stop": '"city"'})
    (call,) = stopped["output"]
    assert (call["status"], stopped["status"]) == ("incomplete", "completed")
    before = ask(here, {**body, "max_output_tokens": 5})
    assert (text_of(before), calls_of(before), before["status"]) == ("", [], "incomplete")


@pytest.mark.parametrize("family", ["g1", "world", "plain"])
def test_a_chain_with_calls_is_read_once(family: str) -> None:
    model: Any = ServedScript("", family)
    template = named(family)
    with serving(model) as here:
        body = {"tools": [WEATHER, NOW], **GREEDY, "instructions": "Be brief.", "max_output_tokens": 200}
        model.say(f"{template.head}I look.\n{FENCE}\n{FENCE_NOW}")
        first = here.post(RESPONSES, {**body, "input": "Hello"}).json
        assert [item["type"] for item in first["output"]] == ["message", "function_call", "function_call"]
        assert text_of(first) == "I look."
        assert [(call["name"], call["arguments"]) for call in calls_of(first)] == [("get_weather", ROME), ("now", "{}")]  # fmt: skip
        gave = ["Sun", [{"type": "input_text", "text": "no"}, {"type": "input_text", "text": "on"}]]
        outputs = [
            {"type": "function_call_output", "call_id": call["call_id"], "output": output}
            for call, output in zip(calls_of(first), gave, strict=True)
        ]
        model.prompts.clear()
        model.say(f"{template.head}It is sunny.")
        said = here.post(RESPONSES, {**body, "input": outputs, "previous_response_id": first["id"]}).json
        assert (text_of(said), said["status"]) == ("It is sunny.", "completed")
        after = template.tail + template.message(
            "Function output of get_weather:\nSun\n\nFunction output of now:\nnoon"
        )
        # what is new: the end of the answer, which was drawn and not fed, and what came of the calls
        (read,) = model.prompts
        assert read.endswith(after)
        assert len(read) - len(after) <= len("```")
        assert new_tokens(said) == len(model.tokenizer.encode(read))
        # the same sent anew is the same prompt, also with thoughts between
        thoughts = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
        sent = [{"role": "user", "content": "Hello"}, thoughts, *first["output"], *outputs]
        again = here.post(RESPONSES, {**body, "input": sent, "store": False}).json
        assert again["usage"]["input_tokens_details"]["cached_tokens"] == again["usage"]["input_tokens"]
        # as it is where the calls are what came before, and where they are referred to
        named_ = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
        again = here.post(RESPONSES, {**body, "input": [sent[0], *named_, *outputs], "store": False}).json
        assert again["usage"]["input_tokens_details"]["cached_tokens"] == again["usage"]["input_tokens"]
        # two that go on from the calls
        model.say(f"{template.head}Rain.")
        outputs[0] = {**outputs[0], "output": "Rain"}
        branch = here.post(RESPONSES, {**body, "input": outputs, "previous_response_id": first["id"]}).json
        assert text_of(branch) == "Rain."
        assert branch["usage"]["input_tokens_details"]["cached_tokens"] > 0
        model.say(f"{template.head}Bye.")
        last = here.post(RESPONSES, {**body, "input": "Thanks", "previous_response_id": said["id"]}).json
        assert new_tokens(last) <= len(
            model.tokenizer.encode("." + template.tail + template.message("Thanks"))
        )


def test_calls_of_a_chain_are_those_of_a_chat(here: Here) -> None:
    body = {"tools": [WEATHER, NOW], "seed": 4, "max_output_tokens": 400}
    first = ask(here, {**body, "input": "Hello", "tool_choice": "required"})
    outputs = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": "noon"} for call in calls_of(first)
    ]  # fmt: skip
    said = ask(here, {**body, "input": outputs, "previous_response_id": first["id"]})
    calls = [
        {
            "id": call["call_id"], "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }
        for call in calls_of(first)
    ]  # fmt: skip
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "noon"} for call in calls]
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "tool_calls": calls}, *results]
    expected = chat(here, {"messages": messages, "tools": CHAT_TOOLS, "seed": 4, "max_tokens": 400})
    assert text_of(said) == expected["choices"][0]["message"]["content"]
    assert said["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]


def test_text_goes_before_calls_and_the_log_probabilities_with_it() -> None:
    model: Any = ServedScript("", "g1")
    with serving(model) as here:
        model.say(f" I look.\n{FENCE}")
        said = ask(here, {**ASKED, **GREEDY, **LOGPROBS})
        message, call = said["output"]
        assert (message["status"], call["arguments"]) == ("completed", ROME)
        told = message["content"][0]["logprobs"]
        assert "".join(token["token"] for token in told).strip() == "I look."
        assert all(len(token["top_logprobs"]) == 2 for token in told)


REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type is web_search, which is not supported", "tools[0].type"),
    ({"tools": [NOW, {"type": "mcp", "server_label": "x"}]}, "tools[1].type is mcp, which is not supported", "tools[1].type"),
    ({"tools": [{"name": "now"}]}, "tools[0].type is missing", "tools[0].type"),
    ({"tools": [CHAT_TOOLS[0]]}, "tools[0].name is not 1 to 64 letters", "tools[0].name"),
    ({"tools": [NOW, NOW]}, "tools[1].name is that of another tool: now", "tools[1].name"),
    ({"tools": [{**NOW, "parameters": {"type": "array"}}]}, "tools[0].parameters of now: the schema is not that of an object", "tools[0].parameters"),
    ({"tool_choice": "none", "tools": [{**NOW, "parameters": {"x": float("nan")}}]}, "the request has numbers that are none in JSON", None),
    ({"tool_choice": "none", "tools": [{**NOW, "parameters": DEEP}]}, "or too many levels", None),
    ({"tool_choice": "any"}, 'tool_choice is one of auto, none, required, or {"type": "function", "name": ...}', "tool_choice"),
    ({"tool_choice": {"type": "custom", "name": "now"}}, "tool_choice is one of auto", "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "then"}}, "tool_choice names 'then'", "tool_choice"),
    ({"parallel_tool_calls": "yes"}, "parallel_tool_calls is not true or false", "parallel_tool_calls"),
    ({"text": {"format": {"type": "json_object"}}}, "the answer is held to two things: tools, and a format", "tools"),
    ({"tools": [], "regex": "a", "text": {"format": {"type": "json_object"}}}, "the text is held to two things: text.format, and what", "text.format"),
    ({"tools": [], "text": {"format": {"type": "json_schema", "schema": {}, "strict": 1}}}, "text.format.strict is not true or false", "text.format.strict"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message", "param"), REFUSED)
def test_bad_tools_and_formats(here: Here, body: dict[str, Any], message: str, param: str | None) -> None:
    response = here.post(RESPONSES, {**ASKED, **body})
    assert response.status == 400
    assert message in response.json["error"]["message"]
    assert response.json["error"]["param"] == param


def test_tools_that_are_not_called_are_passed_over(here: Here) -> None:
    body = {**ASKED, "tool_choice": "none", "max_output_tokens": 2}
    said = ask(here, {**body, "tools": [{"type": "web_search"}]})
    assert (said["tool_choice"], said["tools"]) == ("none", [])
    said = ask(here, {**body, "choices": ["yes", "no"], "max_output_tokens": 9})
    assert (said["tool_choice"], len(said["tools"])) == ("none", 2)
    assert text_of(said) in ("yes", "no")


def test_formats(here: Here) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}}, "required": ["age"], "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "name": "person", "strict": True, "schema": schema}
    body = {"input": "Who?", "seed": 5, "max_output_tokens": 200}
    said = ask(here, {**body, "text": {"format": form}})
    assert json.loads(text_of(said)).keys() == {"age"}
    assert said["text"] == {"format": form}
    assert text_of(ask(here, {**body, "schema": schema})) == text_of(said)
    bias = {"34": 30, "44": -100, "125": 25}
    found = text_of(ask(here, {**body, "text": {"format": {"type": "json_object"}}, "logit_bias": bias}))
    assert isinstance(json.loads(found), dict)


def test_log_probabilities_are_those_of_a_chat(here: Here) -> None:
    for limit in (30, 300):
        body = {"seed": 7, "max_tokens": limit}
        said = ask(here, {"input": "Hello", **body, **LOGPROBS})
        messages = [{"role": "user", "content": "Hello"}]
        expected = chat(here, {"messages": messages, **body, "logprobs": True, "top_logprobs": 2})
        (message,) = said["output"]
        assert message["content"][0]["logprobs"] == expected["choices"][0]["logprobs"]["content"]
        assert said["top_logprobs"] == 2


@pytest.mark.parametrize("way", [{"reasoning": {"effort": "low"}}, {"think": "show"}, {"think": "hide"}])
def test_thoughts(way: dict[str, Any]) -> None:
    model: Any = ServedScript("", "g1")
    with serving(model) as here:
        thoughts, answer = "A greeting. What now?", "Good day."
        model.say(f"> {thoughts}\n</think>\n{answer}")
        body = {"input": "Hello", **GREEDY, **way, **LOGPROBS}
        said = ask(here, body)
        *shown, message = said["output"]
        assert text_of(said) == answer
        if "hide" in way.values():
            assert shown == []
        else:
            (item,) = shown
            assert item["id"].startswith("rs_")
            assert {**item, "id": None} == {
                "id": None, "type": "reasoning", "status": "completed", "summary": [],
                "content": [{"type": "reasoning_text", "text": thoughts}],
            }  # fmt: skip
        assert said["reasoning"]["effort"] == way.get("reasoning", {}).get("effort")
        count = len(model.tokenizer.encode(f"> {thoughts}\n</think>"))
        assert abs(said["usage"]["output_tokens_details"]["reasoning_tokens"] - count) <= 1
        told = "".join(token["token"] for token in message["content"][0]["logprobs"])
        assert told.strip() == answer
        # thoughts are not sent again: the conversation goes on from before them
        model.say("> More.</think>\nBye.")
        model.prompts.clear()
        after = here.post(RESPONSES, {**body, "input": "And?", "previous_response_id": said["id"]}).json
        assert text_of(after) == "Bye."
        assert after["usage"]["input_tokens_details"]["cached_tokens"] > 0
        assert thoughts not in "".join(model.prompts)
        assert answer in "".join(model.prompts)
        listed = here.get(f"{RESPONSES}/{after['id']}/input_items?order=asc").json["data"]
        assert [item["type"] for item in listed] == [
            "message",
            *[item["type"] for item in said["output"]],
            "message",
        ]


def test_thoughts_that_are_cut() -> None:
    model: Any = ServedScript("", "g1")
    with serving(model) as here:
        model.say("> A greeting. What now?</think>\nGood day.")
        said = ask(here, {"input": "Hello", **GREEDY, "think": "show", "max_output_tokens": 4})
        thoughts, message = said["output"]
        assert (bool(thoughts["content"][0]["text"]), thoughts["status"]) == (True, "incomplete")
        assert (message["status"], text_of(said), said["status"]) == ("incomplete", "", "incomplete")
        used = said["usage"]
        assert used["output_tokens_details"]["reasoning_tokens"] == used["output_tokens"] == 4
