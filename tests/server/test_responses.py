"""The Responses API over HTTP: what a response is, what it goes on from, and what is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from model_server import Here, serving
from response_events import CHAT, RESPONSES, ask, events_of, new_tokens, put_together, text_of

from rwkvcli import Model

HELLO = [{"role": "user", "content": "Hello"}]
ASKED = {"input": "Hello", "seed": 5, "max_output_tokens": 60}


def chat(here: Here, messages: list[Any], **more: Any) -> str:
    """What the same conversation gets from the other address."""
    body = {"messages": messages, "seed": 5, "max_tokens": 60, **more}
    response = here.post(CHAT, body)
    assert response.status == 200, response.body
    return str(response.json["choices"][0]["message"]["content"])


def asked(here: Here, body: dict[str, Any]) -> dict[str, Any]:
    response = here.post(RESPONSES, {**ASKED, **body})
    assert response.status == 200, response.body
    found: dict[str, Any] = response.json
    return found


def test_a_response_is_the_answer_of_a_chat(here: Here) -> None:
    before = int(time.time())
    said = ask(here, {**ASKED, "max_output_tokens": 300, "metadata": {"a": "b"}})
    (message,) = said["output"]
    text = chat(here, HELLO, max_tokens=300)
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    assert message["id"].startswith("msg_")
    assert message == {
        "id": message["id"], "type": "message", "status": "completed", "role": "assistant", "content": [part]
    }  # fmt: skip
    assert said["id"].startswith("resp_")
    assert before <= said["created_at"] <= said["completed_at"] <= time.time()
    usage = said["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}
    rest = {
        name: said[name]
        for name in said
        if name not in ("id", "created_at", "completed_at", "output", "usage")
    }
    params = here.model.template.settings(True)
    assert rest == {
        "object": "response", "status": "completed", "error": None, "incomplete_details": None, "model": "demo",
        "background": False, "instructions": None, "max_output_tokens": 300, "metadata": {"a": "b"},
        "parallel_tool_calls": True, "previous_response_id": None, "reasoning": {"effort": None, "summary": None},
        "store": True, "temperature": params["temperature"], "top_p": params["top_p"],
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_logprobs": 0,
        "truncation": "disabled",
    }  # fmt: skip


def test_the_settings_of_the_sampler_are_those_of_all(here: Here) -> None:
    for more in ({"temperature": 0}, {"temperature": 1.3, "top_k": 9}, {"min_p": 0.2}, {"stop": "e"}):
        assert text_of(ask(here, {**ASKED, **more})) == chat(here, HELLO, **more)
    greedy = ask(here, {**ASKED, "temperature": 0, "top_p": 0.5})
    assert (greedy["temperature"], greedy["top_p"]) == (0, 0.5)


def test_an_answer_that_is_cut_is_incomplete(here: Here) -> None:
    for limit in (0, 1, 20):
        said = ask(here, {**ASKED, "max_output_tokens": limit})
        assert (said["status"], said["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert said["completed_at"] is None
        assert [item["status"] for item in said["output"]] == ["incomplete"]
        assert said["usage"]["output_tokens"] == limit
        text = text_of(said)
        assert text == chat(here, HELLO, max_tokens=limit)
        messages = [*HELLO, {"role": "assistant", "content": text}, {"role": "user", "content": "Go on"}]
        after = asked(here, {"input": "Go on", "previous_response_id": said["id"]})
        assert text_of(after) == chat(here, messages)


PARTS = [{"type": "input_text", "text": "Hel"}, {"type": "text", "text": "lo"}]
FORMS: list[tuple[Any, list[dict[str, str]]]] = [
    (HELLO, HELLO),
    ([{"type": "message", "role": "user", "content": "Hello", "status": "completed"}], HELLO),
    ([{"role": "user", "content": PARTS}], HELLO),
    ([{"role": "developer", "content": "Be kind."}, *HELLO], [{"role": "system", "content": "Be kind."}, *HELLO]),
    (
        [
            *HELLO,
            {"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}], "phase": "final_answer"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "And?"},
        ],
        [
            *HELLO,
            {"role": "assistant", "content": "Hi"},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "And?"},
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "messages"), FORMS)
def test_input_of_every_form(here: Here, given: Any, messages: list[Any]) -> None:
    said = asked(here, {"input": given})
    assert text_of(said) == chat(here, messages)
    said = asked(here, {"input": given, "instructions": "Be brief."})
    assert text_of(said) == chat(here, [{"role": "system", "content": "Be brief."}, *messages])
    assert said["instructions"] == "Be brief."


@pytest.mark.parametrize("how", [{"temperature": 0}, {"seed": 11}])
def test_a_chain_is_the_conversation_and_is_read_once(here: Here, how: dict[str, Any]) -> None:
    messages: list[dict[str, str]] = []
    previous: dict[str, Any] | None = None
    template = here.model.template
    for number, text in enumerate(("How are you?", "And the ship?", "Why?")):
        body = {"input": f"{text} {how}", "max_output_tokens": 30, **how}
        if previous is not None:
            body["previous_response_id"] = previous["id"]
        said = asked(here, {**body, "stream": False})
        messages.append({"role": "user", "content": f"{text} {how}"})
        if number:
            # what is new: the answer's last token, unless it was a space, and the message in its form, a token a byte
            assert said["usage"]["input_tokens_details"]["cached_tokens"] > 0
            assert new_tokens(said) <= 1 + len(template.tail + template.message(messages[-1]["content"]))
        assert said["previous_response_id"] == (previous["id"] if previous else None)
        assert text_of(said) == chat(here, messages, max_tokens=30, **how)
        streamed = put_together(events_of(here.post(RESPONSES, {**ASKED, **body, "stream": True})))
        assert text_of(streamed) == text_of(said)
        messages.append({"role": "assistant", "content": text_of(said)})
        previous = streamed if number == 1 else said  # what was streamed can be gone on from as well


def test_two_go_on_from_the_same_response(here: Here) -> None:
    first = asked(here, {"input": "A fork in the road", "max_output_tokens": 20})
    begin = [
        {"role": "user", "content": "A fork in the road"},
        {"role": "assistant", "content": text_of(first)},
    ]
    for text in ("Left", "Right", "Left"):
        after = asked(here, {"input": text, "previous_response_id": first["id"]})
        messages = [*begin, {"role": "user", "content": text}]
        assert after["usage"]["input_tokens_details"]["cached_tokens"] > 0
        assert text_of(after) == chat(here, messages)
        last = asked(here, {"input": "Why?", "previous_response_id": after["id"]})
        end = [{"role": "assistant", "content": text_of(after)}, {"role": "user", "content": "Why?"}]
        assert text_of(last) == chat(here, [*messages, *end])


def test_instructions_are_those_of_the_request(here: Here) -> None:
    first = asked(here, {"input": "Hello", "instructions": "Be kind.", "max_output_tokens": 20})
    messages = [*HELLO, {"role": "assistant", "content": text_of(first)}, {"role": "user", "content": "And?"}]
    for instructions in ("Be kind.", "Be brief.", None):
        body = {"input": "And?", "previous_response_id": first["id"], "instructions": instructions}
        system = [{"role": "system", "content": instructions}] if instructions else []
        assert text_of(asked(here, body)) == chat(here, [*system, *messages])


def test_a_state_is_a_model_here_too(model: Model) -> None:
    manual = model.new_state()
    model.evaluate(model.tokenizer.encode("The manual."), manual)
    with serving(model, states={"manual": manual}) as here:
        first = asked(here, {"model": "manual"})
        assert first["model"] == "manual"
        assert text_of(first) == chat(here, HELLO, model="manual")
        messages = [
            *HELLO,
            {"role": "assistant", "content": text_of(first)},
            {"role": "user", "content": "And?"},
        ]
        for name in ("manual", "demo"):
            after = asked(here, {"input": "And?", "previous_response_id": first["id"], "model": name})
            assert text_of(after) == chat(here, messages, model=name)
            assert (after["usage"]["input_tokens_details"]["cached_tokens"] > 0) == (name == "manual")


def test_what_is_stored_is_given_back_and_forgotten(here: Here) -> None:
    first = asked(here, {"metadata": {"run": "7"}})
    path = f"{RESPONSES}/{first['id']}"
    assert here.get(path).json == first
    assert here.get(f"{path}?stream=false&include=x").json == first
    after = asked(here, {"input": "And?", "previous_response_id": first["id"]})
    cancelled = here.post(f"{path}/cancel", {})
    assert (cancelled.status, cancelled.json["error"]["message"]) == (
        400, "the response is whole: none is made in the background"
    )  # fmt: skip
    assert here.get(f"{path}?stream=true").status == 400
    deleted = here.ask("DELETE", path, None, {})
    assert deleted.json == {"id": first["id"], "object": "response", "deleted": True}
    for gone in (
        here.get(path),
        here.ask("DELETE", path, None, {}),
        here.get(f"{path}/input_items"),
        here.post(f"{path}/cancel", {}),
    ):
        assert gone.status == 404
        assert gone.json["error"]["message"] == f"no response '{first['id']}' is stored here"
    refused = here.post(RESPONSES, {**ASKED, "previous_response_id": first["id"]})
    assert refused.status == 400
    assert refused.json["error"] == {
        "message": f"no response '{first['id']}' is stored here (send the conversation in input)",
        "type": "invalid_request_error", "param": "previous_response_id", "code": "previous_response_not_found",
    }  # fmt: skip
    # what goes on from it has all of the conversation
    last = asked(here, {"input": "Why?", "previous_response_id": after["id"]})
    said = [("user", "Hello"), ("assistant", text_of(first)), ("user", "And?"), ("assistant", text_of(after))]
    messages = [{"role": role, "content": text} for role, text in (*said, ("user", "Why?"))]
    assert text_of(last) == chat(here, messages)


def test_what_is_not_to_be_stored_is_not(here: Here) -> None:
    first = asked(here, {})
    for stream in (False, True):
        response = here.post(
            RESPONSES, {**ASKED, "store": False, "stream": stream, "previous_response_id": first["id"]}
        )
        said = put_together(events_of(response)) if stream else response.json
        assert said["store"] is False
        assert here.get(f"{RESPONSES}/{said['id']}").status == 404
        assert here.post(RESPONSES, {**ASKED, "previous_response_id": said["id"]}).status == 400


def test_the_items_that_a_response_was_made_of(here: Here) -> None:
    first = asked(here, {"input": [{"role": "developer", "content": "Be kind."}, {"id": "mine", **HELLO[0]}]})
    after = asked(here, {"input": "And?", "previous_response_id": first["id"]})
    path = f"{RESPONSES}/{after['id']}/input_items"
    whole = here.get(f"{path}?order=asc").json
    system, user, made, new = whole["data"]
    assert made == first["output"][0]
    assert (system["role"], user["id"], new["role"]) == ("developer", "mine", "user")
    assert new["content"] == [{"type": "input_text", "text": "And?"}]
    assert (whole["object"], whole["has_more"]) == ("list", False)
    assert (whole["first_id"], whole["last_id"]) == (system["id"], new["id"])
    assert here.get(path).json["data"] == [new, made, user, system]
    page = here.get(f"{path}?limit=2&after={new['id']}").json
    assert (page["data"], page["has_more"]) == ([made, user], True)
    page = here.get(f"{path}?limit=2&after={user['id']}").json
    assert (page["data"], page["has_more"]) == ([system], False)
    assert here.get(f"{path}?after={system['id']}").json == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False
    }  # fmt: skip
    for query, message in (("limit=0", "limit is from 1"), ("limit=x", "limit is from 1"), ("order=up", "order is"), ("after=x", "after is")):  # fmt: skip
        refused = here.get(f"{path}?{query}")
        assert (refused.status, refused.json["error"]["param"]) == (400, query.partition("=")[0])
        assert message in refused.json["error"]["message"]


def test_an_item_can_be_referred_to(here: Here) -> None:
    first = asked(here, {})
    (made,) = first["output"]
    for reference in ({"type": "item_reference", "id": made["id"]}, {"id": made["id"]}):
        said = asked(here, {"input": [*HELLO, reference, {"role": "user", "content": "And?"}]})
        messages = [
            *HELLO,
            {"role": "assistant", "content": text_of(first)},
            {"role": "user", "content": "And?"},
        ]
        assert text_of(said) == chat(here, messages)
    assert here.ask("DELETE", f"{RESPONSES}/{first['id']}", None, {}).status == 200
    refused = here.post(RESPONSES, {"input": [*HELLO, reference]})
    assert (refused.status, refused.json["error"]["param"]) == (400, "input[1].id")


PICTURE = {"type": "input_image", "image_url": "data:"}
USER = {"role": "user"}
REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"input": None}, "input is neither a string nor a list of items", "input"),
    ({"input": {}}, "input is neither a string nor a list of items", "input"),
    ({"input": []}, "input is a list of at least one message", "input"),
    ({"input": [{"type": "reasoning", "id": "a", "summary": []}]}, "input is a list of at least one message", "input"),
    ({"input": ["Hello"]}, "input[0] is not an object", "input[0]"),
    ({"input": [{}]}, "the role in input[0] is none of system, developer, user, assistant", "input[0].role"),
    ({"input": [{"role": "tool", "content": "x"}]}, "the role in input[0] is none of", "input[0].role"),
    ({"input": [{"role": ["user"]}]}, "the role in input[0] is none of", "input[0].role"),
    ({"input": [{**USER}]}, "input[0].content is neither a string nor a list of texts", "input[0].content"),
    ({"input": [*HELLO, {**USER, "content": [PICTURE]}]}, "input[1].content is neither a string nor a list of texts (models here read text alone)", "input[1].content"),
    ({"input": [{**USER, "content": "x", "id": 5}]}, "input[0].id is not a string", "input[0].id"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type is web_search_call, which is not supported", "input[0].type"),
    ({"input": [{"type": "item_reference"}]}, "input[0].id is missing", "input[0].id"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id is that of no item that is stored here: 'x'", "input[0].id"),
    ({"input": [{"type": "function_call", "name": "a", "arguments": ""}]}, "input[0].call_id is missing", "input[0].call_id"),
    ({"input": [{"type": "function_call", "call_id": "a", "arguments": ""}]}, "input[0].name is not 1 to 64 letters", "input[0].name"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "a"}]}, "input[0].arguments is missing", "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "output": ""}]}, "input[0].call_id is missing", "input[0].call_id"),
    ({"input": [{"type": "reasoning"}, {"type": "function_call_output", "call_id": "a", "output": ""}]}, "input[1].call_id is the id of no call before it", "input[1].call_id"),
    ({"input": [{"type": "function_call_output", "call_id": "a", "output": [PICTURE]}]}, "input[0].output is neither a string nor a list", "input[0].output"),
    ({"input": [*HELLO, {"role": "assistant", "content": "Hi"}]}, "the last message is not the person's", None),
    ({"instructions": ["Be kind."]}, "instructions is not a string", "instructions"),
    ({"previous_response_id": 5}, "previous_response_id is not a string", "previous_response_id"),
    ({"background": True}, "background is not supported", "background"),
    ({"conversation": "conv_1"}, "conversation is not supported", "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt is not supported", "prompt"),
    ({"messages": HELLO}, "messages is not supported (it is input here)", "messages"),
    ({"response_format": {"type": "text"}}, "response_format is not supported (it is text.format here)", "response_format"),
    ({"n": 2}, "n is not supported: a response has one answer", "n"),
    ({"truncation": "none"}, "truncation is auto or disabled", "truncation"),
    ({"metadata": {"a": 1}}, "metadata is not an object of strings", "metadata"),
    ({"metadata": []}, "metadata is not an object", "metadata"),
    ({"store": "no"}, "store is not true or false", "store"),
    ({"stream": "yes"}, "stream is not true or false", "stream"),
    ({"include": "x"}, "include is not a list", "include"),
    ({"top_logprobs": 101, "include": ["message.output_text.logprobs"]}, "logprobs are told of 0 to 100 tokens", "logprobs"),
    ({"max_output_tokens": -2}, "max_output_tokens is from 0 up, or -1", "max_output_tokens"),
    ({"max_output_tokens": "9"}, "max_output_tokens is not a whole number", "max_output_tokens"),
    ({"reasoning": "high"}, "reasoning is not an object", "reasoning"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort is one of none, minimal", "reasoning.effort"),
    ({"reasoning": {"effort": "high"}}, "models of the family bytes do not think", None),
    ({"temperature": -1}, "temperature must be 0 or more", None),
    ({"text": "json"}, "text is not an object", "text"),
    ({"text": {"format": "json"}}, "text.format is not an object", "text.format"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format has the type text, json_object, or json_schema with schema", "text.format"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "message", "param"), REFUSED)
def test_bad_responses(
    here: Here, body: dict[str, Any], message: str, param: str | None, stream: bool
) -> None:
    response = here.post(RESPONSES, {**ASKED, "stream": stream, **body})
    assert response.status == 400
    error = response.json["error"]
    assert message in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)


def test_what_programs_send_without_need_is_passed_over(here: Here) -> None:
    plain = asked(here, {"temperature": 0})
    body = {
        "model": "gpt-5", "user": "me", "service_tier": "auto", "prompt_cache_key": "a", "safety_identifier": "b",
        "background": False, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "truncation": "auto",
        "include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"}, "seed": -1, "metadata": None,
        "text": {"verbosity": "low"}, "stream_options": {"include_obfuscation": False}, "instructions": None, "n": 1,
        "temperature": 0, "conversation": None, "prompt": None, "previous_response_id": None, "store": None,
    }  # fmt: skip
    said = asked(here, body)
    assert (text_of(said), said["model"], said["truncation"]) == (text_of(plain), "demo", "auto")


def test_methods_keys_and_pages_of_others(model: Model) -> None:
    with serving(model, key="sesame", origins=["http://page.example"]) as here:
        for method, path in (
            ("POST", RESPONSES),
            ("GET", f"{RESPONSES}/resp_1"),
            ("DELETE", f"{RESPONSES}/resp_1"),
            ("GET", f"{RESPONSES}/resp_1/input_items"),
            ("POST", f"{RESPONSES}/resp_1/cancel"),
        ):
            assert here.ask(method, path, b"{}", {"Content-Type": "application/json"}).status == 401
        assert here.get(f"{RESPONSES}/resp_1", Authorization="Bearer sesame").status == 404
        assert here.get(RESPONSES, Authorization="Bearer sesame").status == 405
        asks = {"Access-Control-Request-Method": "DELETE", "Origin": "http://page.example"}
        response = here.ask("OPTIONS", f"{RESPONSES}/resp_1", None, asks)
        assert response.headers["access-control-allow-origin"] == "http://page.example"
        assert "DELETE" in response.headers["access-control-allow-methods"]


def test_responses_are_noted(here: Here) -> None:
    here.log.clear()
    body = {"input": "A line for the log", "max_output_tokens": 7, "seed": 1}
    here.post(RESPONSES, body)
    here.post(RESPONSES, {**body, "stream": True})
    count = len(here.model.template.message("A line for the log"))
    for line, known in zip(here.log, (0, count), strict=True):
        assert line.startswith(f"{RESPONSES} 200: {count} tokens in ({known} known), 7 out, ")
