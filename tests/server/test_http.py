"""The server, asked over real connections: what it answers, whom, and what it refuses."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from model_server import Here, Response, serving

from rwkvcli import Model
from rwkvcli.server import requests
from rwkvcli.services.generation import Generation, Settings
from rwkvcli.services.serving import Stopped, Texts

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"prompt": "It was", "max_tokens": -1, "logit_bias": {"0": -1000}}


def answer(model: Model, message: str, seed: int, max_tokens: int, system: str | None = None) -> Generation:
    """What `rwkv generate --chat` writes."""
    settings = Settings(max_tokens, {"seed": seed}, chat=True, system=system)
    run = Generation(model, message.encode(), settings)
    assert "".join(run) == run.text
    return run


def continuation(model: Model, text: str, max_tokens: int = 512, **sampling: Any) -> Generation:
    run = Generation(model, text.encode(), Settings(max_tokens, sampling))
    assert "".join(run) == run.text
    return run


def test_an_answer_is_that_of_generate(here: Here) -> None:
    expected = answer(here.model, "Hello", 5, 60, "Be kind.")
    body = {"messages": [{"role": "system", "content": "Be kind."}, *HELLO], "seed": 5, "max_tokens": 60}
    response = here.post(CHAT, body)
    assert response.status == 200
    said = response.json
    assert said["object"] == "chat.completion"
    assert said["model"] == "demo"
    assert said["id"].startswith("chatcmpl-")
    message = {"role": "assistant", "content": expected.text, "refusal": None}
    assert said["choices"] == [
        {"index": 0, "message": message, "logprobs": None, "finish_reason": expected.finish_reason}
    ]
    usage = said["usage"]
    assert usage["prompt_tokens"] == expected.prompt_tokens
    assert usage["completion_tokens"] == expected.completion_tokens
    assert usage["total_tokens"] == expected.prompt_tokens + expected.completion_tokens


def test_a_conversation_is_read_once(here: Here) -> None:
    messages: list[dict[str, str]] = [{"role": "system", "content": "Talk about the sea."}]
    told, new = [], []
    before = 0
    for said in ("How are you?", "And the ship?", "Why?"):
        messages.append({"role": "user", "content": said})
        body = here.post(CHAT, {"messages": messages, "seed": 1, "max_tokens": 30}).json
        usage = body["usage"]
        told.append(usage["prompt_tokens_details"]["cached_tokens"])
        new.append(usage["prompt_tokens"] - told[-1])
        messages.append({"role": "assistant", "content": body["choices"][0]["message"]["content"]})
        assert usage["prompt_tokens"] > before
        before = usage["prompt_tokens"]
    assert told[0] == 0
    # what is new: the answer's last token, which was not fed, and the message in its form, a token a byte
    template = here.model.template
    assert new[1:] == [1 + len(template.tail + template.message(said)) for said in ("And the ship?", "Why?")]
    again = here.post(CHAT, {"messages": messages[:2], "seed": 1, "max_tokens": 30}).json
    assert again["choices"][0]["message"]["content"] == messages[2]["content"]


def test_a_stream_has_the_same_pieces(here: Here) -> None:
    body = {"messages": HELLO, "seed": 5, "max_tokens": 60}
    whole = here.post(CHAT, body).json
    response = here.post(CHAT, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, *middle, last, usage = response.events
    assert {event["object"] for event in response.events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in response.events}) == 1
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(event["choices"][0]["delta"]["content"] for event in middle)
    assert text == whole["choices"][0]["message"]["content"]
    assert len(middle) > 5
    assert last["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": whole["choices"][0]["finish_reason"]}
    ]
    assert usage["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage["usage"][name] == whole["usage"][name]
    assert all(event["usage"] is None for event in (first, *middle, last))
    plain = here.post(CHAT, {**body, "stream": True}).events
    assert all("usage" not in event for event in plain)


def test_a_text_is_that_of_generate(here: Here) -> None:
    expected = continuation(here.model, "Once upon a time", 30, seed=9, temperature=1.1, top_k=20)
    body = {"prompt": "Once upon a time", "max_tokens": 30, "seed": 9, "temperature": 1.1, "top_k": 20}
    said = here.post(COMPLETIONS, body).json
    assert said["object"] == "text_completion"
    choice = {"text": expected.text, "index": 0, "logprobs": None, "finish_reason": "length"}
    assert said["choices"] == [choice]
    events = here.post(COMPLETIONS, {**body, "stream": True}).events
    assert "".join(event["choices"][0]["text"] for event in events) == expected.text
    echoed = here.post(COMPLETIONS, {**body, "echo": True}).json["choices"][0]["text"]
    assert echoed == "Once upon a time" + expected.text
    events = here.post(COMPLETIONS, {**body, "echo": True, "stream": True}).events
    assert "".join(event["choices"][0]["text"] for event in events) == echoed


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("It was", ["It was"]),
        (["It was", "Once"], ["It was", "Once"]),
        ([73, 116], ["It"]),
        ([[73, 116], [79]], ["It", "O"]),
        (["It was", [79]], ["It was", "O"]),
        ("", [""]),
        (None, [""]),
    ],
)
def test_prompts_of_every_form(here: Here, prompt: Any, texts: list[str]) -> None:
    body = {"prompt": prompt, "max_tokens": 10, "seed": 2, "n": 2}
    said = here.post(COMPLETIONS, body).json
    expected = [continuation(here.model, text, 10, seed=seed).text for text in texts for seed in (2, 3)]
    assert [choice["text"] for choice in said["choices"]] == expected
    assert [choice["index"] for choice in said["choices"]] == list(range(2 * len(texts)))
    assert said["usage"]["prompt_tokens"] == sum(max(len(text), 1) for text in texts)
    assert said["usage"]["completion_tokens"] == 10 * 2 * len(texts)


def test_stop_strings_and_the_end(here: Here) -> None:
    full = continuation(here.model, "It was", 60, seed=4).text
    stop = full[20:24]
    said = here.post(COMPLETIONS, {"prompt": "It was", "max_tokens": 60, "seed": 4, "stop": stop}).json
    assert said["choices"][0]["text"] == full[: full.index(stop)]
    assert said["choices"][0]["finish_reason"] == "stop"
    said = here.post(COMPLETIONS, {"prompt": "It was", "logit_bias": {"0": 90}, "stop": ["x"]}).json
    assert said["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}


def test_many_at_once_are_each_what_they_are_alone(here: Here) -> None:
    answers: dict[int, str] = {}

    def ask(seed: int) -> None:
        body = {"messages": HELLO, "seed": seed, "max_tokens": 60, "stream": seed % 2 == 0}
        response = here.post(CHAT, body)
        if seed % 2:
            answers[seed] = response.json["choices"][0]["message"]["content"]
        else:
            answers[seed] = "".join(e["choices"][0]["delta"].get("content", "") for e in response.events)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {seed: answer(here.model, "Hello", seed, 60).text for seed in range(20)}


def test_models_and_health(here: Here) -> None:
    (card,) = here.get("/v1/models").json["data"]
    assert (card["id"], card["object"], card["owned_by"]) == ("demo", "model", "rwkv")
    assert here.get("/v1/models/demo").json == card
    missing = here.get("/v1/models/gpt-5")
    assert (missing.status, missing.json["error"]["message"]) == (404, "no model 'gpt-5' here")
    assert here.get("/health").json == {"status": "ok", "active": 0, "waiting": 0}


def test_a_state_is_a_model(model: Model) -> None:
    def after(*texts: bytes, keep: bool = False, **more: Any) -> Generation:
        """`rwkv generate`, one run after the other, each on a copy."""
        state = model.new_state()
        for text in texts[:-1]:
            model.evaluate(model.tokenizer.encode_bytes(text), state)
        run = Generation(model, texts[-1], Settings(20, {"seed": 3}, **more), state, keep=keep)
        assert "".join(run) == run.text
        return run

    manual = model.new_state()
    model.evaluate(model.tokenizer.encode("The manual."), manual)
    talk = after(b"Hello", chat=True, keep=True).settle()
    chat = {"messages": HELLO, "seed": 3, "max_tokens": 20}
    with serving(model, states={"manual": manual, "talk": talk}) as here:
        assert [card["id"] for card in here.get("/v1/models").json["data"]] == ["demo", "manual", "talk"]
        assert here.get("/v1/models/talk").json["id"] == "talk"
        for _ in range(2):
            said = here.post(CHAT, {**chat, "model": "manual"}).json
            expected = after(b"The manual.", b"Hello", chat=True)
            assert said["model"] == "manual"
            assert said["choices"][0]["message"]["content"] == expected.text
            assert said["usage"]["prompt_tokens"] == expected.prompt_tokens
            said = here.post(
                COMPLETIONS, {"model": "manual", "prompt": " It", "seed": 3, "max_tokens": 20}
            ).json
            assert said["choices"][0]["text"] == after(b"The manual.", b" It").text
            again = Generation(model, b"Hello", Settings(20, {"seed": 4}, chat=True), talk.copy())
            said = here.post(CHAT, {**chat, "model": "talk", "seed": 4}).json
            assert said["choices"][0]["message"]["content"] == "".join(again)
            said = here.post(CHAT, {**chat, "model": "demo"}).json
            assert said["choices"][0]["message"]["content"] == answer(model, "Hello", 3, 20).text
        refused = here.post(COMPLETIONS, {"model": "manual", "prompt": ""})
        assert refused.status == 400
        assert "prompt is empty" in refused.json["error"]["message"]


NO_BIAS = "logit_bias is not an object of token ids and numbers"
REFUSED: list[tuple[str, Any, str]] = [
    (CHAT, b"{", "the body is not JSON"),
    (CHAT, b"[" * 100_000, "the body is not JSON"),
    (CHAT, [], "the body is not a JSON object"),
    (CHAT, {}, "messages is a list of at least one"),
    (CHAT, {"messages": "Hello"}, "messages is not a list"),
    (CHAT, {"messages": ["Hello"]}, "the role in messages[0] is none of system, developer, user, assistant"),
    (CHAT, {"messages": [{"role": "critic", "content": ""}]}, "the role in messages[0] is none of"),
    (CHAT, {"messages": [{"role": ["user"]}]}, "the role in messages[0] is none of"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content is neither a string nor a list of texts"),
    (
        CHAT,
        {"messages": [*HELLO, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[1].content is neither a string nor a list of texts (models here read text alone)",
    ),
    (
        CHAT,
        {"messages": [*HELLO, {"role": "assistant", "content": "Hi"}]},
        "the last message is not the person's",
    ),
    (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "half a surrogate pair"),
    (CHAT, b'{"messages": "\xed\xa0\x80"}', "the body is not JSON"),
    (CHAT, {"messages": HELLO, "functions": [{}]}, "functions is not supported"),
    (CHAT, {"messages": HELLO, "max_tokens": "9"}, "max_tokens is not a whole number"),
    (CHAT, {"messages": HELLO, "max_tokens": True}, "max_tokens is not a whole number"),
    (CHAT, {"messages": HELLO, "max_completion_tokens": -2}, "max_completion_tokens is from 0 up, or -1"),
    (CHAT, {"messages": HELLO, "stream": "yes"}, "stream is not true or false"),
    (CHAT, {"messages": HELLO, "n": 0}, "from 1 to 128 texts can be asked for at once, not 0"),
    (CHAT, {"messages": HELLO, "n": 129}, "from 1 to 128 texts can be asked for at once, not 129"),
    (CHAT, {"messages": HELLO, "temperature": "hot"}, "temperature must be a number, not 'hot'"),
    (CHAT, {"messages": HELLO, "temperature": -1}, "temperature must be 0 or more"),
    (CHAT, {"messages": HELLO, "seed": 1.5}, "seed is not a whole number"),
    (CHAT, {"messages": HELLO, "logit_bias": {"a": 1}}, NO_BIAS),
    (CHAT, {"messages": HELLO, "logit_bias": {"1": True}}, NO_BIAS),
    (CHAT, {"messages": HELLO, "logit_bias": {"1": 10**400}}, NO_BIAS),
    (CHAT, {"messages": HELLO, "logit_bias": {"300": 1}}, "logit_bias: token 300 is outside the vocabulary"),
    (CHAT, {"messages": HELLO, "stop": [1]}, "stop is neither a string nor a list of strings"),
    (CHAT, {"messages": HELLO, "stop": ""}, "stop is neither a string nor a list of strings"),
    (CHAT, {"messages": HELLO, "logprobs": 3}, "logprobs is not true or false"),
    (
        CHAT,
        {"messages": HELLO, "logprobs": True, "top_logprobs": 101},
        "logprobs are told of 0 to 100 tokens",
    ),
    (CHAT, {"messages": HELLO, "reasoning_effort": "high"}, "models of the family bytes do not think"),
    (CHAT, {"messages": HELLO, "reasoning_effort": "huge"}, "reasoning_effort is one of none, minimal"),
    (CHAT, {"messages": HELLO, "think": "aloud"}, "no way to think 'aloud'"),
    (COMPLETIONS, {"prompt": 5}, "prompt is neither a string"),
    (COMPLETIONS, {"prompt": []}, "prompt is neither a string"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt is neither a string"),
    (COMPLETIONS, {"prompt": [True]}, "prompt is neither a string"),
    (COMPLETIONS, {"prompt": [256]}, "token 256 is outside the vocabulary of 256"),
    (COMPLETIONS, {"prompt": [2**70]}, "token 1180591620717411303424 is outside the vocabulary of 256"),
    (COMPLETIONS, {"prompt": ["a"] * 65, "n": 2}, "from 1 to 128 texts can be asked for at once, not 130"),
    (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix is not supported"),
    (COMPLETIONS, {"prompt": "a", "echo": "no"}, "echo is not true or false"),
    (COMPLETIONS, {"prompt": "a", "best_of": 3}, "best_of is not supported: ask for n texts"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "message"), REFUSED)
def test_bad_requests(here: Here, path: str, body: Any, message: str, stream: bool) -> None:
    if isinstance(body, dict) and "stream" not in body:
        body = {**body, "stream": stream}
    response = here.post(path, body)
    assert response.status == 400
    error = response.json["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_what_is_wrong_is_named(here: Here) -> None:
    assert here.post(CHAT, {"messages": HELLO, "n": 0}).json["error"]["param"] == "n"


def test_what_programs_send_without_need_is_passed_over(here: Here) -> None:
    body = {
        "model": "gpt-4o", "messages": HELLO, "user": "me", "tools": [], "store": False, "seed": -1, "stop": None,
        "max_tokens": 3, "temperature": None, "metadata": {"a": "b"}, "parallel_tool_calls": True, "best_of": None,
    }  # fmt: skip
    for more in ({}, {"tools": [{"type": "function"}], "tool_choice": "none"}):
        response = here.post(CHAT, {**body, **more})
        assert response.status == 200
        assert response.json["model"] == "demo"


def test_addresses_methods_and_types(here: Here) -> None:
    for response, status, message in (
        (here.get("/"), 404, "no such address"),
        (here.get(CHAT), 405, "not that method here"),
        (here.post("/v1/models", {}), 405, "not that method here"),
        (here.post(CHAT, {}, **{"Content-Type": "text/plain"}), 415, "Content-Type: application/json"),
    ):
        assert response.status == status
        assert message in response.json["error"]["message"]


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True),
        ("LocalHost:80", True),
        ("127.0.0.1:", True),
        ("[::1]", True),
        ("[::1]:8080", True),
        ("evil.example", False),
        ("evil.example:80", False),
        ("localhost.evil.example", False),
        ("localhost@evil.example", False),
        ("evil.example/@localhost", False),
        ("localhost:80:80", False),
        ("[::1", False),
        ("[]", False),
        ("", False),
    ],
)
def test_no_web_page_reaches_it_by_a_name_of_its_own(here: Here, host: str, known: bool) -> None:
    response = here.get("/health", Host=host)
    assert response.status == (200 if known else 400)
    if not known:
        message = (
            f"this is no host {host!r}: the server is for this machine (a proxy has to send Host: localhost)"
        )
        assert response.json["error"]["message"] == message


def test_a_body_that_is_too_large(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    from rwkvcli.server import app

    monkeypatch.setattr(app, "LARGEST_BODY", 1 << 20)
    response = here.post(COMPLETIONS, {"prompt": "x" * (1 << 20)})
    assert response.status == 413
    assert response.json["error"]["message"].startswith(
        "the request is larger than 1 MiB (`rwkv state build`"
    )
    assert here.post(COMPLETIONS, {"prompt": "x", "max_tokens": 1}).status == 200


def test_a_context_of_a_million_tokens_is_not_too_large() -> None:
    from rwkvcli.server import app

    assert len(json.dumps({"prompt": [65535] * 1_000_000})) < app.LARGEST_BODY <= 1 << 23


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/tokenize", "/detokenize"])
def test_a_body_is_read_beside_other_requests(here: Here, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    begun, asked, parsed = threading.Event(), threading.Event(), requests.parsed

    def slowly(body: bytes) -> dict[str, Any]:
        begun.set()
        assert asked.wait(60)
        return parsed(body)

    monkeypatch.setattr(requests, "parsed", slowly)
    thread, answers = held(here, {}, path)
    assert begun.wait(60)
    assert here.get("/health").status == 200
    asked.set()
    thread.join()
    assert answers[0].status in (200, 400)


def test_askers_have_to_know_the_key(model: Model) -> None:
    with serving(model, key="sésame") as here:
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "sesame"}):
            for response in (
                here.get("/v1/models", **headers),
                here.post(CHAT, {"messages": HELLO}, **headers),
            ):
                assert response.status == 401
                assert response.json["error"]["message"] == "the API key is missing or wrong"
        right = "Bearer sésame".encode().decode("latin-1")
        for said in (right, right.replace("Bearer ", "bearer "), right.replace(" ", "  ")):
            assert here.get("/v1/models", Authorization=said).status == 200
        assert here.get("/health").status == 200


@pytest.mark.skipif(sys.platform == "win32", reason="arguments and variables are characters there")
def test_a_key_that_is_no_text(model: Model) -> None:
    with serving(model, key=os.fsdecode(b"k\xff")) as here:
        assert here.get("/v1/models", Authorization="Bearer k").status == 401
        assert here.get("/v1/models", Authorization="Bearer k\xff").status == 200


def test_web_pages_that_may_ask(model: Model) -> None:
    with serving(model, origins=["http://page.example"]) as here:
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        for origin, allowed in (("http://page.example", True), ("http://other.example", False)):
            response = here.ask("OPTIONS", CHAT, None, {"Origin": origin, **asks})
            assert (response.headers.get("access-control-allow-origin") == origin) == allowed
    with serving(model) as here:
        response = here.get("/v1/models", Origin="http://page.example")
        assert "access-control-allow-origin" not in response.headers


def held(here: Here, body: Any, path: str = COMPLETIONS) -> tuple[threading.Thread, list[Response]]:
    """A request that goes on by itself, and where its answer will be."""
    answers: list[Response] = []
    thread = threading.Thread(target=lambda: answers.append(here.post(path, body)))
    thread.start()
    return thread, answers


def test_too_many_are_sent_away(model: Model) -> None:
    with serving(model, size=1, waiting=0) as here:
        refused = here.post(COMPLETIONS, ENDLESS)
        assert refused.status == 503
        assert refused.headers["retry-after"] == "5"
        assert refused.json["error"]["message"] == "0 texts are waiting already"


def test_the_end_of_the_server_is_told(model: Model) -> None:
    running: list[tuple[threading.Thread, list[Response]]] = []
    with serving(model) as here:
        running += [held(here, ENDLESS), held(here, {**ENDLESS, "stream": True})]
        while here.texts.load[0] < 2:
            pass
    for thread, _ in running:
        thread.join()
    (_, (whole,)), (_, (stream,)) = running
    assert whole.status == 503
    assert whole.json["error"]["message"] == str(Stopped("the server is stopping"))
    assert (
        json.loads(stream.body.decode().split("data: ")[-1])["error"]["message"] == "the server is stopping"
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_server_is_an_error_of_the_protocol(
    here: Here, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    prompt = f"nobody asked this before {stream}"
    make: Callable[..., Any] = Model.evaluate
    monkeypatch.setattr(Model, "evaluate", broken)
    response = here.post(COMPLETIONS, {"prompt": prompt, "stream": stream})
    assert response.status == 500
    assert response.json["error"] == {
        "message": "the device is gone", "type": "server_error", "param": None, "code": None
    }  # fmt: skip
    assert [str(fault) for fault in here.faults[-1:]] == ["the device is gone"]
    monkeypatch.setattr(Model, "evaluate", make)
    assert here.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 1}).status == 200


def test_a_fault_outside_of_the_texts_is_told_too(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Texts) -> tuple[int, int]:
        raise RuntimeError("nobody counts")

    monkeypatch.setattr(Texts, "load", property(broken))
    response = here.get("/health")
    assert (response.status, response.json["error"]["message"]) == (500, "nobody counts")
    assert [str(fault) for fault in here.faults[-1:]] == ["nobody counts"]


def test_requests_are_noted(here: Here) -> None:
    here.log.clear()
    here.post(COMPLETIONS, {"prompt": "A line for the log", "max_tokens": 7})
    here.post(COMPLETIONS, {"prompt": "A line for the log", "max_tokens": 7, "seed": 1, "stream": True})
    here.post(COMPLETIONS, {"prompt": "A line for the log", "top_p": -1})
    for line, begin in zip(
        here.log,
        [
            f"{COMPLETIONS} 200: 18 tokens in (0 known), 7 out, ",
            f"{COMPLETIONS} 200: 18 tokens in (18 known), 7 out, ",
        ],
        strict=True,
    ):
        assert line.startswith(begin)
        assert line.endswith(" s")
