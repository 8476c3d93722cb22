"""Log-probabilities in answers: whose they are, and where their tokens stand."""

from __future__ import annotations

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from model_server import Here

from rwkvcli.runtime.scoring import likeliest

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def test_log_probabilities_are_the_models(here: Here) -> None:
    model = here.model
    body = {"messages": HELLO, "max_tokens": 8, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    content = here.post(CHAT, body).json["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    state, ids = model.new_state(), model.tokenizer.encode(model.template.message("Hello"))
    for token in content:
        logits = model.forward(ids, state)
        ids = token["bytes"]
        own, top = likeliest(logits[: model.tokenizer.vocab_size], ids[0], 3)
        assert token["logprob"] == pytest.approx(own, abs=1e-6)
        assert token["token"] == chr(ids[0])
        told = [(entry["bytes"][0], entry["logprob"]) for entry in token["top_logprobs"]]
        assert told == [(i, pytest.approx(value, abs=1e-6)) for i, value in top]
    events = here.post(CHAT, {**body, "stream": True}).events
    streamed = [
        t for event in events for t in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content


def test_log_probabilities_of_a_text(here: Here) -> None:
    body = {"prompt": "It was", "max_tokens": 6, "temperature": 0, "logprobs": 2, "echo": True}
    choice = here.post(COMPLETIONS, body).json["choices"][0]
    told = choice["logprobs"]
    assert [choice["text"][at] for at in told["text_offset"]] == told["tokens"]
    made = told["top_logprobs"][len(body["prompt"]) :]  # before them: tests/server/test_echo.py
    assert [max(top.values()) for top in made] == told["token_logprobs"][-6:]  # greedy
    assert all(len(top) == 2 for top in made)
    events = here.post(COMPLETIONS, {**body, "stream": True}).events
    parts = [event["choices"][0]["logprobs"] for event in events]
    for name, values in told.items():
        assert [value for part in parts if part for value in part[name]] == values


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_that_is_half_a_character_stands_where_that_does(here: Here, stream: bool) -> None:
    body = {"prompt": "(", "max_tokens": 6, "temperature": 0, "logprobs": 0, "echo": True, "stream": stream}
    turns = {"frequency_penalty": 500, "penalty_decay": 1, "logit_bias": {"195": 10_000, "169": 9900}}
    response = here.post(COMPLETIONS, {**body, **turns})
    choices = [part["choices"][0] for part in (response.events if stream else [response.json])]
    assert "".join(choice["text"] for choice in choices) == "(ééé"
    told = [at for choice in choices if choice["logprobs"] for at in choice["logprobs"]["text_offset"]]
    assert told == [0, 1, 1, 2, 2, 3, 3]
