"""Tools over HTTP: what calls of them look like, what came of them, and what is refused."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("llguidance")

from model_server import Here, serving
from scripted import ServedScript

from rwkvcli.runtime.templates import named

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a “city”",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 8},
                "days": {"$ref": "#/$defs/days"},
            },
            "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
        },
        "strict": True,
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
ASKED = {"messages": HELLO, "tools": TOOLS, "seed": 3, "max_tokens": 400}
ROME = '{"city":"Rome","days":2}'
FENCE = '```json\n{"name":"get_weather","arguments":' + ROME + "}\n```"
FENCE_NOW = '```json\n{"name":"now","arguments":{}}\n```'
GREEDY = {"temperature": 0, "presence_penalty": 0, "frequency_penalty": 0}


def choices(here: Here, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the answer, which is the same as a stream."""
    response = here.post(CHAT, body)
    assert response.status == 200, response.body
    found: list[dict[str, Any]] = response.json["choices"]
    streamed: list[dict[str, Any]] = [{"calls": [], "text": "", "finish": None} for _ in found]
    for event in here.post(CHAT, {**body, "stream": True}).events:
        (choice,) = event["choices"]
        one, delta = streamed[choice["index"]], choice["delta"]
        assert one["finish"] is None
        one["finish"] = choice["finish_reason"]
        if "content" in delta:
            assert not one["calls"]
            one["text"] += delta["content"] or ""
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(one["calls"])
                assert call["function"]["arguments"] == ""
                one["calls"].append({key: call[key] for key in ("type", "function")})
            else:
                assert call["index"] == len(one["calls"]) - 1
                one["calls"][-1]["function"]["arguments"] += call["function"]["arguments"]
    for choice, one in zip(found, streamed, strict=True):
        message = choice["message"]
        calls = message.get("tool_calls", [])
        assert len({call["id"] for call in calls}) == len(calls)
        assert all(call["id"].startswith("call_") for call in calls)
        assert [{key: call[key] for key in ("type", "function")} for call in calls] == one["calls"]
        assert message["content"] == (one["text"] or (None if calls else ""))
        assert choice["finish_reason"] == one["finish"]
    return found


def calls_of(choice: dict[str, Any]) -> list[tuple[str, str]]:
    calls = choice["message"].get("tool_calls", [])
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def check(name: str, arguments: str) -> None:
    """That a call conforms."""
    found = json.loads(arguments)
    if name == "now":
        assert found == {}
        return
    assert name == "get_weather"
    assert found.keys() == {"city", "days"}
    assert isinstance(found["city"], str)
    assert len(found["city"]) <= 8
    assert found["days"] in range(1, 10)


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("several", [True, False])
def test_what_has_to_be_called_is(here: Here, choice: Any, several: bool) -> None:
    body = {**ASKED, "tool_choice": choice, "parallel_tool_calls": several, "n": 6}
    seen = set()
    for one in choices(here, body):
        assert one["finish_reason"] == "tool_calls"
        assert one["message"]["content"] is None
        calls = calls_of(one)
        assert len(calls) >= 1
        assert several or len(calls) == 1
        for call in calls:
            check(*call)
            seen.add(call[0])
    assert seen == {"get_weather", "now"} if choice == "required" else {"get_weather"}


def test_text_is_an_answer_too(here: Here) -> None:
    (free,) = choices(here, ASKED)
    (none,) = choices(here, {**ASKED, "tool_choice": "none"})
    assert free == none
    assert free["message"]["content"]
    assert free["finish_reason"] == "stop"


def test_a_call_that_is_cut_is_told_as_far_as_it_came(here: Here) -> None:
    body = {**ASKED, "tool_choice": NAMED, "parallel_tool_calls": False}
    (whole,) = choices(here, body)
    ((name, arguments),) = calls_of(whole)
    opening = len(' ```json\n{"name":"get_weather","arguments":')
    for size, parts in ((5, []), (opening, [(name, "")]), (opening + 4, [(name, arguments[:4])])):
        (cut,) = choices(here, {**body, "max_tokens": size})
        assert (calls_of(cut), cut["finish_reason"]) == (parts, "length")
        assert cut["message"]["content"] == (None if parts else "")
    (stopped,) = choices(here, {**body, "stop": '"city"'})
    assert stopped["finish_reason"] == "stop"
    assert calls_of(stopped) == [(name, arguments[: arguments.index('"city"')])]


def test_logprobs_and_usage(here: Here) -> None:
    body = {**ASKED, "tool_choice": "required", "parallel_tool_calls": False, "logprobs": True}
    said = here.post(CHAT, body).json
    told = said["choices"][0]["logprobs"]["content"]
    assert len(told) == said["usage"]["completion_tokens"]
    text = b"".join(bytes(token["bytes"]) for token in told).decode()
    ((name, arguments),) = calls_of(said["choices"][0])
    assert text == f' ```json\n{{"name":"{name}","arguments":{arguments}}}\n```'
    streamed = [event["choices"][0]["logprobs"] for event in here.post(CHAT, {**body, "stream": True}).events]
    assert [token for one in streamed if one for token in one["content"]] == told


@pytest.mark.parametrize("family", ["g1", "g1-flower", "world", "raven", "plain"])
def test_a_conversation_with_calls_is_read_once(family: str) -> None:
    model: Any = ServedScript("", family)
    template = named(family)
    with serving(model) as here:

        def ask(script: str, messages: list[Any]) -> tuple[dict[str, Any], int]:
            model.say(script)
            body = {"messages": messages, "tools": TOOLS, **GREEDY, "max_tokens": 200}
            said = here.post(CHAT, body).json
            usage = said["usage"]
            return said["choices"][0], usage["prompt_tokens"] - usage["prompt_tokens_details"][
                "cached_tokens"
            ]

        messages: list[Any] = [{"role": "system", "content": "Be brief."}, *HELLO]
        choice, _ = ask(f"{template.head}I look.\n{FENCE}\n{FENCE_NOW}", messages)
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "I look."
        assert calls_of(choice) == [("get_weather", ROME), ("now", "{}")]

        told = {key: value for key, value in WEATHER["function"].items() if key != "strict"}  # type: ignore[attr-defined]
        listed = json.dumps([told, NOW["function"]], ensure_ascii=False, separators=(",", ":"))
        system = (
            "Be brief.\n\nTools:\n"
            + listed
            + (
                "\nIf a tool is needed, return only a JSON function call:\n"
                '```json\n{"name":"NAME","arguments":{}}\n```\nOtherwise answer.'
            )
        )
        assert model.prompts[0] == template.opening(system) + template.message("Hello")
        messages += [choice["message"]]
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": content}
            for call, content in zip(
                choice["message"]["tool_calls"],
                ["Sun,\n\n22 °C", [{"type": "text", "text": "noon"}]],
                strict=True,
            )
        ]
        model.prompts.clear()
        choice, new = ask(f"{template.head}It is sunny.", messages)
        assert (choice["message"]["content"], choice["finish_reason"]) == ("It is sunny.", "stop")
        result = "Function output of get_weather:\nSun,\n\n22 °C\n\nFunction output of now:\nnoon"
        after = template.tail + template.message(result)
        # what is new: the end of the answer, which was drawn and not fed, and what came of the calls
        read = model.prompts[0]
        assert read.endswith(after)
        assert len(read) - len(after) <= len("```")
        assert new == len(model.tokenizer.encode(read))


def test_what_one_call_gave_has_no_name(here: Here) -> None:
    template = here.model.template
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": ""}}
    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon {name}"},
    ]
    said = here.post(CHAT, {"messages": messages, "max_tokens": 1}).json
    text = (
        template.message("Hello")
        + template.closing(FENCE_NOW)
        + template.message("Function output:\nnoon {name}")
    )
    assert said["usage"]["prompt_tokens"] == len(text.encode())
    plain = [
        *HELLO,
        {"role": "assistant", "content": FENCE_NOW},
        {"role": "user", "content": "Function output:\nnoon {name}"},
    ]
    again = here.post(CHAT, {"messages": plain, "max_tokens": 1}).json["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"] == len(text.encode())


def test_arguments_in_another_form_are_read_again() -> None:
    model: Any = ServedScript("", "g1")
    with serving(model) as here:
        model.say(f" {FENCE}")
        body = {"messages": HELLO, "tools": TOOLS, **GREEDY}
        message = here.post(CHAT, body).json["choices"][0]["message"]
        message["tool_calls"][0]["function"]["arguments"] = json.dumps(json.loads(ROME), indent=1)
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sun"}
        prompt = here.post(CHAT, body).json["usage"]["prompt_tokens"]
        used = here.post(CHAT, {**body, "messages": [*HELLO, message, result]}).json["usage"]
        assert used["prompt_tokens_details"]["cached_tokens"] == prompt


def test_json_in_an_answer_is_no_call() -> None:
    model: Any = ServedScript("", "g1")
    text = 'So:\n```json\n{\n  "name": "my-package",\n  "version": 1\n}\n```\nor\n```json\n{"a": 1}\n```\n```json\n{"name":"Ada"}\n```'
    with serving(model) as here:
        model.say(f" {text}\n\nUser: And?")
        (choice,) = choices(here, {"messages": HELLO, "tools": TOOLS, **GREEDY})
        assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
        assert choice["finish_reason"] == "stop"
        model.say(
            ' ```json\n{\n  "name": "get_weather",\n  "arguments": {\n    "city": "Rome",\n    "days": 2\n  }\n}\n```'
        )
        (choice,) = choices(here, {"messages": [*HELLO, *HELLO], "tools": TOOLS, **GREEDY})
        assert json.loads(calls_of(choice)[0][1]) == json.loads(ROME)
        assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call_after_thoughts(choice: str) -> None:
    model: Any = ServedScript("", "g1")
    with serving(model) as here:
        model.say(f"> I could say {FENCE_NOW} but no.</think>\n{FENCE}\n\nUser")
        body = {"messages": HELLO, "tools": TOOLS, "tool_choice": choice, **GREEDY}
        (one,) = choices(here, {**body, "reasoning_effort": "low"})
        assert one["message"]["reasoning_content"] == f"I could say {FENCE_NOW} but no."
        assert calls_of(one) == [("get_weather", ROME)]
        model.say(f">\n{FENCE}")
        (one,) = choices(here, {**body, "reasoning_effort": "none"})
        assert calls_of(one) == [("get_weather", ROME)]


REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"tools": "all"}, "tools is not a list", "tools"),
    ({"tools": [5]}, "tools[0] is not an object", "tools[0]"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type is web_search, which is not supported (tools of the type function are supported)", "tools[0].type"),
    ({"tools": [NOW, {"type": "function"}]}, "tools[1].function is missing", "tools[1].function"),
    ({"tools": [{"type": "function", "function": []}]}, "tools[0].function is not an object", "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name is not 1 to 64 letters", "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name is not 1 to 64 letters", "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools[0].function.name is not 1 to 64 letters", "tools[0].function.name"),
    ({"tools": [NOW, WEATHER, NOW]}, "tools[2].function.name is that of another tool: now", "tools[2].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a", "description": 1}}]}, "tools[0].function.description is not a string", "tools[0].function.description"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": "{}"}}]}, "tools[0].function.parameters is not an object", "tools[0].function.parameters"),
    ({"tools": [{"type": "function", "function": {"name": "a", "strict": 1}}]}, "tools[0].function.strict is not true or false", "tools[0].function.strict"),
    ({"tools": [NOW, {"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]}, "tools[1].function.parameters of a: the schema is not that of an object", "tools[1].function.parameters"),
    ({"tools": [NOW, {"type": "function", "function": {"name": "a", "strict": True, "parameters": {"properties": {"x": {"not": {}}}}}}]}, "tools[1].function.parameters of a: the schema cannot be used", "tools[1].function.parameters"),
    ({"tools": [{"type": "function", "function": {"name": f"t{i}"}} for i in range(129)]}, "tools has 129 tools: more than 128", "tools"),
    ({"tool_choice": "any"}, 'tool_choice is one of auto, none, required, or {"type": "function"', "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice is one of auto, none, required", "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "then"}}}, "tool_choice names 'then', and no tool is called so", "tool_choice"),
    ({"parallel_tool_calls": "yes"}, "parallel_tool_calls is not true or false", "parallel_tool_calls"),
    ({"response_format": {"type": "json_object"}}, "the answer is held to two things: tools, and a format (with tool_choice none no tool is called)", "tools"),
    ({"regex": "a"}, "the answer is held to two things: tools, and a format", "tools"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message", "param"), REFUSED)
def test_bad_tools(here: Here, body: dict[str, Any], message: str, param: str | None) -> None:
    response = here.post(CHAT, {**ASKED, **body})
    assert response.status == 400
    error = response.json["error"]
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    given = {**ASKED, **body, "tool_choice": "none", "max_tokens": 1}
    if "tools" in body:
        assert here.post(CHAT, given).status == 200


def call(**more: Any) -> dict[str, Any]:
    return {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}, **more}


HISTORY: list[tuple[list[Any], str, str]] = [
    ([{"role": "tool", "tool_call_id": "a", "content": ""}], "messages[1].tool_call_id is the id of no call before it", "messages[1].tool_call_id"),
    ([{"role": "assistant", "tool_calls": [call()]}, {"role": "tool", "content": ""}], "messages[2].tool_call_id is the id of no call before it", "messages[2].tool_call_id"),
    ([{"role": "assistant", "tool_calls": [call()]}, {"role": "tool", "tool_call_id": "a"}], "messages[2].content is neither a string nor a list of texts", "messages[2].content"),
    ([{"role": "assistant", "content": None}], "messages[1].content is neither a string nor a list of texts", "messages[1].content"),
    ([{"role": "assistant", "content": None, "tool_calls": []}], "messages[1].content is neither a string", "messages[1].content"),
    ([{"role": "assistant", "content": 5, "tool_calls": [call()]}], "messages[1].content is neither a string", "messages[1].content"),
    ([{"role": "assistant", "tool_calls": {}}], "messages[1].tool_calls is not a list", "messages[1].tool_calls"),
    ([{"role": "assistant", "tool_calls": [1]}], "messages[1].tool_calls[0] is not an object", "messages[1].tool_calls[0]"),
    ([{"role": "assistant", "tool_calls": [call(type="custom")]}], "messages[1].tool_calls[0].type is custom, which is not supported", "messages[1].tool_calls[0].type"),
    ([{"role": "assistant", "tool_calls": [call(id=None)]}], "messages[1].tool_calls[0].id is missing", "messages[1].tool_calls[0].id"),
    ([{"role": "assistant", "tool_calls": [call(function=None)]}], "messages[1].tool_calls[0].function is missing", "messages[1].tool_calls[0].function"),
    ([{"role": "assistant", "tool_calls": [call(function={"name": "now"})]}], "messages[1].tool_calls[0].function.arguments is missing", "messages[1].tool_calls[0].function.arguments"),
    ([{"role": "assistant", "tool_calls": [call(function={"name": "now", "arguments": {}})]}], "messages[1].tool_calls[0].function.arguments is not a string", "messages[1].tool_calls[0].function.arguments"),
    ([{"role": "assistant", "tool_calls": [call(function={"name": "n w", "arguments": ""})]}], "messages[1].tool_calls[0].function.name is not 1 to 64 letters", "messages[1].tool_calls[0].function.name"),
    ([{"role": "assistant", "tool_calls": [call()]}], "the last message is not the person's", ""),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "message", "param"), HISTORY)
def test_bad_history(here: Here, messages: list[Any], message: str, param: str) -> None:
    response = here.post(CHAT, {**ASKED, "messages": [*HELLO, *messages]})
    assert response.status == 400
    error = response.json["error"]
    assert message in error["message"]
    assert error["param"] == (param or None)


def test_a_format_goes_with_tools_that_are_not_called(here: Here) -> None:
    body = {**ASKED, "tool_choice": "none", "choices": ["yes", "no"]}
    assert here.post(CHAT, body).json["choices"][0]["message"]["content"] in ("yes", "no")


def test_without_the_package(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    response = here.post(CHAT, ASKED)
    assert response.status == 400
    message = 'tools needs packages that are not installed: pip install "rwkvcli[grammar]"'
    assert response.json["error"]["message"] == message
    assert here.post(CHAT, {**ASKED, "tool_choice": "none", "max_tokens": 1}).status == 200


def test_openais_client(here: Here) -> None:
    openai = pytest.importorskip("openai")
    messages: list[Any] = list(HELLO)
    more: dict[str, Any] = {"model": "demo", "tools": TOOLS, "seed": 4, "max_tokens": 400}
    with openai.OpenAI(base_url=here.url, api_key="none", max_retries=0) as asks:
        said = asks.chat.completions.create(messages=messages, tool_choice="required", **more)
        message = said.choices[0].message
        assert said.choices[0].finish_reason == "tool_calls"
        for made in message.tool_calls:
            check(made.function.name, made.function.arguments)
        messages.append(message)
        messages += [
            {"role": "tool", "tool_call_id": made.id, "content": "noon"} for made in message.tool_calls
        ]
        # the last token may not have been fed, and one may have ended the text
        known = said.usage.total_tokens - 2
        said = asks.chat.completions.create(messages=messages, **more)
        assert said.choices[0].message.content
        assert said.choices[0].message.tool_calls is None
        assert said.usage.prompt_tokens_details.cached_tokens >= known
        strict = [WEATHER]
        with asks.chat.completions.stream(
            messages=HELLO, tool_choice="required", **{**more, "tools": strict}
        ) as stream:
            kinds = {event.type for event in stream}
            choice = stream.get_final_completion().choices[0]
        assert "tool_calls.function.arguments.delta" in kinds
        assert choice.finish_reason == "tool_calls"
        for made in choice.message.tool_calls:
            check(made.function.name, made.function.arguments)
            assert made.function.parsed_arguments == json.loads(made.function.arguments)
