"""Log-probabilities of prompts: whose they are, where their tokens stand, and that nothing else changes them."""

from __future__ import annotations

import io
import json
import math
import threading
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from watched_calls import tokens_of_calls

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from model_server import Here, serving
from quant_models import world_model
from text_oracles import log_softmax, rounding

from rwkvcli import Model
from rwkvcli.server import answers, app
from rwkvcli.services.evaluation import measure
from rwkvcli.services.states import Building

COMPLETIONS = "/v1/completions"
TEXT = "It was a fine day, and the old man sat by the fire."
GREEDY = {"temperature": 0, "echo": True}
ROUNDED = 0.5e-6 + rounding(65536)
"""Six digits after the point."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(world_model(tmp_path_factory.mktemp("world")), threads=1)


@pytest.fixture(scope="module")
def over_world(world: Model) -> Any:
    with serving(world) as server:
        yield server


def oracle(model: Model, ids: list[int], count: int) -> dict[str, Any]:
    """What an answer has to say of the prompt `ids`, by one softmax of everything in float64."""
    rows = log_softmax(
        model.forward(ids, model.new_state(), all_logits=True)[:, : model.tokenizer.vocab_size]
    )
    text = model.tokenizer.decode
    tops: list[Any] = [None]
    for row in rows[:-1]:
        order = sorted(np.argpartition(-row, count)[: count + 1], key=lambda i: -row[i])[:count]
        tops.append({text([int(i)]): pytest.approx(row[i], abs=ROUNDED) for i in order})
    chosen = [rows[at, token] for at, token in enumerate(ids[1:])]
    return {
        "tokens": [text([token]) for token in ids],
        "token_logprobs": [None, *(pytest.approx(value, abs=ROUNDED) for value in chosen)],
        "top_logprobs": tops,
        "text_offset": [len(text(ids[:at])) for at in range(len(ids))],
    }


def choices(here: Here, **body: Any) -> list[dict[str, Any]]:
    answer = here.post(COMPLETIONS, {**GREEDY, **body})
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json["choices"]
    return found


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("name", ["here", "over_world"])
def test_a_prompt_is_judged_by_the_model(name: str, count: int, request: pytest.FixtureRequest) -> None:
    here: Here = request.getfixturevalue(name)
    ids = here.model.tokenizer.encode(TEXT)
    answer = here.post(COMPLETIONS, {**GREEDY, "prompt": TEXT, "logprobs": count, "max_tokens": 0}).json
    told = {"logprobs": oracle(here.model, ids, count), "finish_reason": "length"}
    assert answer["choices"] == [{"index": 0, "text": TEXT, **told}]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(ids), 0)
    plain = here.post(
        COMPLETIONS, {"prompt": TEXT, "logprobs": count, "max_tokens": 6, "temperature": 0}
    ).json
    whole = choices(here, prompt=TEXT, logprobs=count, max_tokens=6)[0]
    assert whole["text"] == TEXT + plain["choices"][0]["text"]
    for part, values in plain["choices"][0]["logprobs"].items():
        assert len(whole["logprobs"][part]) == len(ids) + len(values)
        if part != "text_offset":
            assert whole["logprobs"][part][len(ids) :] == values


def test_prompts_come_in_four_forms(over_world: Here) -> None:
    tokenizer = over_world.model.tokenizer
    texts = ["One morning", " the ship", "naïve 日本"]
    ids = [tokenizer.encode(text) for text in texts]
    more = {"logprobs": 2, "max_tokens": 1}
    each = [choices(over_world, prompt=text, **more)[0] for text in texts]
    assert [choice["text"].startswith(text) for choice, text in zip(each, texts, strict=True)] == [True] * 3
    assert [choices(over_world, prompt=one, **more)[0] for one in ids] == each
    for prompts in (texts, ids):
        together = choices(over_world, prompt=prompts, **more)
        assert [{**choice, "index": 0} for choice in together] == each
        assert [choice["index"] for choice in together] == [0, 1, 2]


def test_it_is_what_score_and_perplexity_say(here: Here) -> None:
    """As programs reckon that compare models: the sum over a continuation's tokens, the made one left out."""
    model, lead = here.model, "The old man"
    endings = [" sat.", " sat by the fire.", " ran", "xyz"]
    prompts = [[*model.tokenizer.encode(lead), *model.tokenizer.encode(ending)] for ending in endings]
    found = choices(here, prompt=prompts, logprobs=1, max_tokens=1)
    sums = [math.fsum(choice["logprobs"]["token_logprobs"][len(lead) : -1]) for choice in found]
    assert sums == pytest.approx(model.score(lead, endings), abs=ROUNDED * max(map(len, endings)))
    whole = choices(here, prompt=[0, *model.tokenizer.encode(TEXT)], logprobs=1, max_tokens=1)[0]
    loss = -math.fsum(whole["logprobs"]["token_logprobs"][1:-1])
    assert loss == pytest.approx(measure(model, io.BytesIO(TEXT.encode())).nll.total, abs=ROUNDED * len(TEXT))


def test_the_likeliest_token_is_known_by_its_value(here: Here) -> None:
    """Programs compare a token's log-probability with the largest, to the last digit."""
    model, ids = here.model, here.model.tokenizer.encode(TEXT * 3)
    told = choices(here, prompt=ids, logprobs=1, max_tokens=1)[0]["logprobs"]
    best = model.forward(ids, model.new_state(), all_logits=True).argmax(axis=1)
    pairs = zip(told["token_logprobs"][1:-1], told["top_logprobs"][1:-1], strict=True)
    greedy = [value == max(top.values()) for value, top in pairs]
    assert greedy == [token == int(top) for token, top in zip(ids[1:], best[:-1], strict=True)]
    assert True in greedy
    assert False in greedy


def test_a_stream_begins_with_the_prompt(here: Here) -> None:
    body = {**GREEDY, "prompt": [TEXT, "So"], "logprobs": 2, "max_tokens": 5, "stop": ["\n"]}
    whole = here.post(COMPLETIONS, body).json
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *events, last = here.post(COMPLETIONS, {**body, **options}).events
    for index, prompt in enumerate(body["prompt"]):  # type: ignore[arg-type, var-annotated]
        pieces = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert pieces[0]["text"] == prompt
        assert len(pieces[0]["logprobs"]["tokens"]) == len(prompt)
        assert "".join(piece["text"] for piece in pieces) == whole["choices"][index]["text"]
        for name, values in whole["choices"][index]["logprobs"].items():
            told = [value for piece in pieces for value in (piece["logprobs"] or {name: []})[name]]
            assert told == values
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][name] == whole["usage"][name]


def test_several_texts_of_a_prompt(here: Here) -> None:
    body = {"prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 4, "seed": 3, "n": 3}
    answer = here.post(COMPLETIONS, body).json
    expected = oracle(here.model, list(TEXT.encode()), 1)
    for choice in answer["choices"]:
        assert choice["text"].startswith(TEXT)
        assert {name: values[: len(TEXT)] for name, values in choice["logprobs"].items()} == expected
    assert len({choice["text"] for choice in answer["choices"]}) == 3
    assert answer["usage"]["prompt_tokens"] == len(TEXT)


def test_the_token_that_ends_a_text_is_told(here: Here, over_world: Here) -> None:
    """With echo alone: so the tokens made are as many as the model drew, which programs count on."""
    for server, text in ((here, "\0"), (over_world, "")):
        body = {"prompt": "So", "max_tokens": 3, "logprobs": 1, "temperature": 0, "logit_bias": {"0": 1000}}
        told = server.post(COMPLETIONS, {**body, "echo": True}).json
        choice = told["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("So", "stop")
        assert choice["logprobs"]["tokens"][-1] == text
        assert choice["logprobs"]["text_offset"][-1] == 2
        size = len(server.model.tokenizer.encode("So"))
        assert len(choice["logprobs"]["token_logprobs"]) == size + 1
        assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (size, 0)
        assert server.post(COMPLETIONS, body).json["choices"][0]["logprobs"]["tokens"] == []


def test_parts_of_characters_stand_where_these_do(here: Here) -> None:
    told = choices(here, prompt="né 日!", logprobs=0, max_tokens=0)[0]
    assert told["logprobs"]["tokens"] == ["n", *"\ufffd\ufffd", " ", *"\ufffd\ufffd\ufffd", "!"]
    assert told["logprobs"]["text_offset"] == [0, 1, 1, 2, 3, 3, 3, 4]
    half = choices(here, prompt=[110, 195], logprobs=0, max_tokens=2)[0]
    assert half["text"][:2] == "n\ufffd"
    assert half["logprobs"]["text_offset"] == [0, 1, 2, 3]


def test_an_empty_prompt_is_the_token_that_ends_texts(here: Here, over_world: Here) -> None:
    for server, text in ((here, "\0"), (over_world, "")):
        told = server.post(COMPLETIONS, {**GREEDY, "prompt": "", "logprobs": 1, "max_tokens": 1}).json
        choice = told["choices"][0]
        assert choice["logprobs"]["tokens"] == [text, choice["text"]]
        assert choice["logprobs"]["token_logprobs"][0] is None
        assert choice["logprobs"]["text_offset"] == [0, 0]
        assert told["usage"]["prompt_tokens"] == 1


def test_what_is_kept_and_what_runs_beside_change_no_digit(model: Model) -> None:
    lead = "Question: what is the sea?\nAnswer: it is deep.\n\n" * 3
    prompts = [lead + ending for ending in ("Why?", "What?", "Who?", "Where is it?", "Why?")]
    with serving(model) as here:
        alone = [choices(here, prompt=prompt, logprobs=3, max_tokens=2)[0] for prompt in prompts[:1]]
        answers = [
            here.post(COMPLETIONS, {**GREEDY, "prompt": prompt, "logprobs": 3, "max_tokens": 2}).json
            for prompt in prompts
        ]
        known = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
        # the second tells where the others differ from it
        assert known == [len(prompts[0]), 0, len(lead) + 2, len(lead) + 2, len(prompts[0])]
        assert answers[0]["choices"] == answers[-1]["choices"] == alone
    with serving(model) as here:
        endless = {"prompt": "It was", "max_tokens": -1, "logit_bias": {"0": -1000}, "stream": True}
        connection = here.connect()
        threads, found = [], {}

        def ask(number: int) -> None:
            found[number] = choices(here, prompt=prompts[number], logprobs=3, max_tokens=2)

        try:
            connection.request("POST", COMPLETIONS, json.dumps(endless), {"Content-Type": "application/json"})
            stream = connection.getresponse()
            stream.readline()
            threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        finally:
            stream.close()
            connection.close()
    assert [found[number] for number in range(len(prompts))] == [answer["choices"] for answer in answers]


def test_a_prompt_is_never_kept_as_logits(over_world: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [1 + number * 7919 % 65000 for number in range(300)]
    asked = tokens_of_calls(monkeypatch, "forward")
    told = choices(over_world, prompt=ids, logprobs=2, max_tokens=0)[0]["logprobs"]
    assert (sum(asked), max(asked)) == (300, 64)  # 64 rows of 65,536 numbers: 16 MB
    monkeypatch.undo()
    expected = oracle(over_world.model, ids, 2)
    assert told["token_logprobs"] == expected["token_logprobs"]
    assert told["top_logprobs"] == expected["top_logprobs"]
    joined = over_world.model.tokenizer.decode(ids)
    assert told["text_offset"][-1] <= len(joined)


def test_after_a_state_the_first_token_is_judged_where_its_logits_are_known(model: Model) -> None:
    built = Building(model, TEXT.encode(), model.new_state()).run()
    bare = model.new_state()
    model.evaluate(model.tokenizer.encode(TEXT), bare)
    bare.pause = None
    with serving(model, states={"built": built, "bare": bare}) as here:
        for _ in range(2):  # read, and kept
            known = choices(here, model="built", prompt=" So", logprobs=1, max_tokens=0)[0]["logprobs"]
            unknown = choices(here, model="bare", prompt=" So", logprobs=1, max_tokens=0)[0]["logprobs"]
            assert math.fsum(known["token_logprobs"]) == pytest.approx(
                model.score(TEXT, [" So"])[0], abs=ROUNDED * len(" So")
            )
            assert unknown["token_logprobs"] == [None, *known["token_logprobs"][1:]]
            assert unknown["top_logprobs"] == [None, *known["top_logprobs"][1:]]


def test_what_makes_no_sense_is_refused(here: Here, over_world: Here) -> None:
    refused = here.post(COMPLETIONS, {"prompt": "So", "echo": True, "logprobs": 101})
    assert (refused.status, refused.json["error"]["param"]) == (400, "logprobs")
    refused = over_world.post(COMPLETIONS, {"prompt": [1, 65535], "echo": True, "logprobs": 1})
    assert refused.status == 400
    assert "token 65535 is outside the vocabulary of 65530" in refused.json["error"]["message"]


def test_openais_client(here: Here) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=here.url, api_key="none", max_retries=0) as asks:
        said = asks.completions.create(
            model="demo", prompt=TEXT, echo=True, logprobs=2, max_tokens=3, temperature=0
        )
        choice = said.choices[0]
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.text.startswith(TEXT)
        assert choice.logprobs.token_logprobs[0] is choice.logprobs.top_logprobs[0] is None
        assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
        pieces = list(
            asks.completions.create(
                model="demo", prompt=TEXT, echo=True, logprobs=2, max_tokens=3, temperature=0, stream=True
            )
        )
        assert pieces[0].choices[0].text == TEXT
        assert "".join(piece.choices[0].text for piece in pieces) == choice.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_prompt_is_told_of_beside_other_requests(
    here: Here, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    begun, asked, write = threading.Event(), threading.Event(), answers.json_in_parts

    def slowly(value: Any) -> str:
        begun.set()
        assert asked.wait(60)
        return write(value)

    monkeypatch.setattr(app, "json_in_parts", slowly)
    body = {**GREEDY, "prompt": TEXT, "logprobs": 1, "max_tokens": 1, "stream": stream}
    told: list[Any] = []
    asking = threading.Thread(target=lambda: told.append(here.post(COMPLETIONS, body)))
    asking.start()
    assert begun.wait(60)
    assert here.get("/health").status == 200
    asked.set()
    asking.join()
    assert told[0].status == 200


TEXTS = st.text('a"\\/,:[]{}\x00\n\x7f\u2028é€😀')
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
)


@given(JSON, st.integers(1, 3))
def test_json_in_parts_is_the_same(value: Any, together: int) -> None:
    with mock.patch.object(answers, "_TOGETHER", together):
        assert answers.json_in_parts(value) == answers.json_of(value)
    assert json.loads(answers.json_of(value)) == value
