"""OpenAI's own client, as a program uses it."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("openai")

import openai
from model_server import Here

from rwkvcli.services.generation import Generation, Settings


def expected(here: Here, message: str, seed: int, max_tokens: int = 40) -> str:
    return "".join(Generation(here.model, message.encode(), Settings(max_tokens, {"seed": seed}, chat=True)))


def client(here: Here, **more: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=here.url, **{"api_key": "none", **more}, max_retries=0)


def test_a_conversation(here: Here) -> None:
    with client(here) as asks:
        said = asks.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "Hello"}], seed=7, max_completion_tokens=40
        )
        assert said.choices[0].message.content == expected(here, "Hello", 7)
        assert said.choices[0].finish_reason in ("stop", "length")
        assert said.usage is not None
        assert said.usage.prompt_tokens_details is not None
        assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens


def test_a_stream(here: Here) -> None:
    with client(here) as asks:
        stream = asks.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": "Hello"}],
            seed=8,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
        )
        text, usage = "", None
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
        assert text == expected(here, "Hello", 8)
        assert usage is not None


def test_a_text_and_the_models(here: Here) -> None:
    with client(here) as asks:
        assert [model.id for model in asks.models.list()] == ["demo"]
        assert asks.models.retrieve("demo").owned_by == "rwkv"
        said = asks.completions.create(model="demo", prompt="It was", seed=3, max_tokens=20, logprobs=1)
        assert said.choices[0].text == "".join(here.model.generate("It was", 20, seed=3))
        assert said.choices[0].logprobs is not None
        assert said.choices[0].logprobs.tokens is not None
        assert "".join(said.choices[0].logprobs.tokens) == said.choices[0].text
        extended = asks.completions.create(
            model="demo", prompt="It was", seed=3, max_tokens=20, extra_body={"top_k": 1}
        )
        assert extended.choices[0].text == "".join(here.model.generate("It was", 20, top_k=1))


def test_an_answer_that_conforms_to_a_class(here: Here) -> None:
    pytest.importorskip("llguidance")
    pydantic = pytest.importorskip("pydantic")
    person = pydantic.create_model("Person", name=(str, pydantic.Field(max_length=8)), tall=(bool, ...))
    with client(here) as asks:
        said = asks.chat.completions.parse(
            model="demo", messages=[{"role": "user", "content": "Who?"}], response_format=person, seed=5
        )
        assert isinstance(said.choices[0].message.parsed, person)


def test_errors_have_the_right_kind(here: Here) -> None:
    with client(here) as asks:
        with pytest.raises(openai.BadRequestError, match="temperature must be 0 or more") as bad:
            asks.completions.create(model="demo", prompt="It was", temperature=-1)
        assert bad.value.type == "invalid_request_error"
        with pytest.raises(openai.NotFoundError, match="no model 'x' here"):
            asks.models.retrieve("x")


def test_many_streams_at_once(here: Here) -> None:
    async def one(asks: openai.AsyncOpenAI, seed: int) -> str:
        stream = await asks.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Hello"}],
            seed=seed,
            max_tokens=40,
            stream=True,
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=here.url, api_key="none", max_retries=0) as asks:
            return await asyncio.gather(*(one(asks, seed) for seed in range(12)))

    assert asyncio.run(all_of_them()) == [expected(here, "Hello", seed) for seed in range(12)]
