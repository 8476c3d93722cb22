"""Log-probabilities of the tokens of a text, against float64 softmax."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from cli_runner import rwkv_inside
from scripted import ScriptModel

from rwkvcli import Model
from rwkvcli.errors import FormatError
from rwkvcli.runtime.scoring import likeliest
from rwkvcli.services.generation import Generation, Settings


@pytest.mark.parametrize("count", [0, 1, 3, 7, 9])
def test_the_likeliest_are_those_of_a_softmax(count: int) -> None:
    rng = np.random.default_rng(count)
    for logits in (rng.normal(0, 5, 7), [2.0, 1.0, 2.0, 2.0, -50.0, 1.0, 0.0], [0.0] * 7):
        values = np.asarray(logits, np.float32)
        wide = values.astype(np.float64)
        expected = wide - np.log(np.exp(wide - wide.max()).sum()) - wide.max()
        order = sorted(range(7), key=lambda i: (-values[i], i))[:count]
        own, top = likeliest(values, 4, count)
        assert own == pytest.approx(expected[4], abs=1e-12)
        assert [token for token, _ in top] == order
        assert [value for _, value in top] == pytest.approx(list(expected[order]), abs=1e-12)
    with pytest.raises(FormatError):
        likeliest(np.array([0, np.nan], np.float32), 0, count)


def test_every_token_of_a_text_is_judged_by_the_model_alone() -> None:
    model = Model.load("demo")
    sampling = {"temperature": 1.5, "seed": 3, "presence_penalty": 1.0, "logit_bias": {32: -3.0}}
    run = Generation(model, b"It was", Settings(12, sampling, logprobs=2))
    assert "".join(run) == "".join(Generation(model, b"It was", Settings(12, sampling)))
    assert len(run.logprobs) == run.completion_tokens == 12
    assert "".join(one["text"] for one in run.logprobs) == run.text
    state, logits = model.new_state(), np.empty(0)
    tokens = model.tokenizer.encode("It was")
    for one in run.logprobs:
        logits = model.forward(tokens, state).astype(np.float64)
        expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert one["logprob"] == pytest.approx(expected[one["id"]], abs=1e-6)
        first, second = one["top"]
        assert first["id"] == int(np.argmax(expected))
        assert first["logprob"] >= second["logprob"] == pytest.approx(np.sort(expected)[-2], abs=1e-6)
        tokens = [one["id"]]


def test_half_characters_and_stop_strings() -> None:
    model: Any = ScriptModel("a😀bc")
    run = Generation(model, b"What is it?", Settings(20, {"temperature": 0}, stop=("c",), logprobs=0))
    assert "".join(run) == "a😀b"
    assert len(run.logprobs) == run.completion_tokens
    assert all(one["top"] == [] for one in run.logprobs)


def test_the_command_line() -> None:
    ask = ["generate", "-m", "demo", "--seed", "1", "--max-tokens", "3", "--logprobs", "2"]
    whole = json.loads(rwkv_inside(*ask, "--json", "It was").out)
    assert [len(one["top"]) for one in whole["logprobs"]] == [2, 2, 2]
    assert list(whole)[-2:] == ["model", "logprobs"]
    last = json.loads(rwkv_inside(*ask, "--stream-json", "It was").out.splitlines()[-1])
    (line,) = map(json.loads, rwkv_inside(*ask, "--jsonl", stdin='"It was"').out.splitlines())
    first, _ = json.loads(rwkv_inside(*ask, "-N", "2", "--json", "It was").out)
    assert last["logprobs"] == line["logprobs"] == first["logprobs"] == whole["logprobs"]
    refused = rwkv_inside(*ask, "It was")
    assert (refused.code, refused.out) == (2, "")
    assert "error: --logprobs stands in JSON: ask for that by --json" in refused.err
    assert "`-1` is below 0" in rwkv_inside(*ask, "--logprobs", "-1", "x").err
