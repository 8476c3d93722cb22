"""The Responses API as OpenAI's own client, and what is made of it, use it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("openai")

import openai
from model_server import Here
from openai.types.responses import Response
from response_events import CHAT, RESPONSES, events_of

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": False}  # fmt: skip
TOOL: dict[str, Any] = {"type": "function", "name": "roll", "description": "A die", "parameters": SCHEMA, "strict": True}  # fmt: skip
SEED = {"extra_body": {"seed": 5}}


def client(here: Here, **more: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=here.url, **{"api_key": "none", **more}, max_retries=0)


def chat(here: Here, *texts: str) -> str:
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    body = {"messages": messages, "seed": 5, "max_tokens": 40}
    return str(here.post(CHAT, body).json["choices"][0]["message"]["content"])


def test_bodies_are_as_the_client_has_them(here: Here) -> None:
    for more in (
        {},
        {"max_output_tokens": 3, "include": ["message.output_text.logprobs"], "top_logprobs": 2},
        {"instructions": "Be kind.", "metadata": {"a": "b"}, "truncation": "auto", "max_output_tokens": 3},
        {"text": {"format": {"type": "text"}}, "max_output_tokens": 3, "store": False},
    ):
        body = here.post(RESPONSES, {"input": "Hello", "seed": 5, **more}).json
        Response.model_validate(body, strict=True)
        for event in events_of(here.post(RESPONSES, {"input": "Hello", "seed": 5, "stream": True, **more})):
            if "response" in event:
                Response.model_validate(event["response"], strict=True)


def test_a_chain_and_a_branch(here: Here) -> None:
    with client(here) as asks:
        first = asks.responses.create(model="any", input="Hello", max_output_tokens=40, **SEED)
        assert first.output_text == chat(here, "Hello")
        assert first.usage is not None
        for text in ("And?", "Why?"):
            after = asks.responses.create(
                model="any", input=text, previous_response_id=first.id, max_output_tokens=40, **SEED
            )
            assert after.output_text == chat(here, "Hello", first.output_text, text)
            assert after.usage is not None
            assert after.usage.input_tokens_details.cached_tokens > 0
            assert after.previous_response_id == first.id
        assert asks.responses.retrieve(first.id).output_text == first.output_text
        listed = asks.responses.input_items.list(after.id, limit=1, order="asc")
        assert [item.type for item in listed] == ["message", "message", "message"]  # a page each
        asks.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match="no response"):
            asks.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError, match="no response") as gone:
            asks.responses.create(model="any", input="Hello", previous_response_id=first.id)
        assert (gone.value.code, gone.value.param) == ("previous_response_not_found", "previous_response_id")
        with pytest.raises(openai.BadRequestError, match="none is made in the background"):
            asks.responses.cancel(after.id)
        # what was answered is sent back as it was
        history: list[Any] = [
            {"role": "user", "content": "Hello"},
            *first.output,
            {"role": "user", "content": "Why?"},
        ]
        sent = asks.responses.create(model="any", input=history, max_output_tokens=40, **SEED)
        assert sent.output_text == after.output_text


def test_streams(here: Here) -> None:
    with client(here) as asks:
        text, end = "", None
        for event in asks.responses.create(
            model="any", input="Hello", max_output_tokens=300, stream=True, **SEED
        ):
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.completed":
                end = event.response
        assert end is not None
        assert text == end.output_text
        with asks.responses.stream(
            model="any", input="And?", previous_response_id=end.id, max_output_tokens=300, **SEED
        ) as stream:
            pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
        assert final.output_text == "".join(pieces)
        assert final.status == "completed"


def test_calls(here: Here) -> None:
    pytest.importorskip("llguidance")
    with client(here) as asks:
        more: dict[str, Any] = {"model": "any", "tools": [TOOL], "max_output_tokens": 400, **SEED}
        with asks.responses.stream(input="Hello", tool_choice="required", **more) as stream:
            kinds = {event.type for event in stream}
            first = stream.get_final_response()
        assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= kinds
        calls = [item for item in first.output if item.type == "function_call"]
        assert calls
        for call in calls:
            assert call.name == "roll"
            assert call.parsed_arguments == json.loads(call.arguments)
            assert 0 <= call.parsed_arguments["n"] <= 9
        outputs: list[Any] = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "6"} for call in calls
        ]
        said = asks.responses.create(input=outputs, previous_response_id=first.id, **more)
        assert said.usage is not None
        assert said.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens - 2
        Response.model_validate(here.get(f"{RESPONSES}/{said.id}").json, strict=True)
        whole: list[Any] = [{"role": "user", "content": "Hello"}, *first.output, *outputs]
        assert asks.responses.create(input=whole, **more).output_text == said.output_text


def test_an_answer_that_conforms_to_a_class(here: Here) -> None:
    pytest.importorskip("llguidance")
    pydantic = pytest.importorskip("pydantic")
    person = pydantic.create_model("Person", name=(str, pydantic.Field(max_length=8)), tall=(bool, ...))
    with client(here) as asks:
        said = asks.responses.parse(model="demo", input="Who?", text_format=person, **SEED)
        assert isinstance(said.output_parsed, person)
        with asks.responses.stream(model="demo", input="Who?", text_format=person, **SEED) as stream:
            assert stream.until_done().get_final_response().output_parsed == said.output_parsed


def test_many_at_once(here: Here) -> None:
    async def one(asks: openai.AsyncOpenAI, previous: str, seed: int) -> str:
        stream = await asks.responses.create(
            model="demo", input="And?", previous_response_id=previous, extra_body={"seed": seed},
            max_output_tokens=40, stream=True,
        )  # fmt: skip
        return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=here.url, api_key="none", max_retries=0) as asks:
            first = await asks.responses.create(model="demo", input="Hello", max_output_tokens=10, **SEED)
            alone = [await one(asks, first.id, seed) for seed in range(4)]
            return [*alone, *await asyncio.gather(*(one(asks, first.id, seed) for seed in range(4)))]

    found = asyncio.run(all_of_them())
    assert found[:4] == found[4:]
