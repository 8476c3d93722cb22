"""`rwkv generate --think`: what stdout gets of a model that thinks first."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cli_runner import Outcome, rwkv_inside
from scripted import ScriptModel

from rwkvcli.services import generation, loading

SAID = "> Four legs.\n\n</think>\n\nIt is\na dog.\n"
ASK = ["generate", "-m", "demo", "--temperature", "0", "--seed", "1", "What is it?"]


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prompts that the model gets in place of the demo."""
    model: Any = ScriptModel(SAID)
    monkeypatch.setattr(loading, "load_model", lambda *_: model)
    return model.prompts


@pytest.mark.parametrize(
    ("way", "out"),
    [
        ("show", "<think>\nFour legs.\n</think>\n\nIt is\na dog."),
        ("hide", "It is\na dog."),
        ("only", "Four legs."),
    ],
)
def test_what_stdout_gets(prompts: list[str], way: str, out: str) -> None:
    assert rwkv_inside(*ASK, "--think", way) == Outcome(0, out, "")
    assert prompts == ["User: What is it?\n\nAssistant: <think"]
    echoed = rwkv_inside(*ASK, "--think", way, "--echo").out
    assert echoed == prompts[0] + (">\n" + out.removeprefix("<think>\n") if way == "show" else out)


def test_json(prompts: list[str]) -> None:
    for way, text, thinking in (
        ("show", "It is\na dog.", "Four legs."),
        ("hide", "It is\na dog.", None),
        ("only", "", "Four legs."),
    ):
        done = rwkv_inside(*ASK, "--think", way, "--json")
        answer = json.loads(done.out)
        assert (done.code, done.err) == (0, "")
        assert (answer["text"], answer.get("thinking"), answer["finish_reason"]) == (text, thinking, "stop")
        events = [
            json.loads(line) for line in rwkv_inside(*ASK, "--think", way, "--stream-json").out.splitlines()
        ]
        assert events[-1]["type"] == "end"
        for kind, whole in (("text", text), ("thinking", thinking)):
            assert "".join(event["text"] for event in events[:-1] if event["type"] == kind) == (whole or "")
        (line,) = map(
            json.loads, rwkv_inside(*ASK[:-1], "--think", way, "--jsonl", stdin='"Hm?"').out.splitlines()
        )
        assert (line["text"], line.get("thinking")) == (text, thinking)
        (one,) = json.loads(rwkv_inside(*ASK, "--think", way, "-N", "1", "--json").out)
        assert (one["text"], one.get("thinking")) == (text, thinking)


def test_a_cut_run_goes_on_with_one_pair_of_tags(prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = [None]

    def save(run: generation.Generation, _path: Any) -> Any:
        kept[0] = run.settle()
        return kept[0]

    monkeypatch.setattr(generation.Generation, "save", save)
    monkeypatch.setattr(loading, "load_state", lambda *_: kept[0])
    for tokens in (1, 2, 4):
        ask = [*ASK[:-1], "--think", "show", "--max-tokens", str(tokens)]
        whole = rwkv_inside(*ask, "--save-state", "s", ASK[-1]).out
        while not kept[0].pause.ended:
            whole += rwkv_inside(*ask, "--state", "s", "--save-state", "s").out
        assert whole == "<think>\nFour legs.\n</think>\n\nIt is\na dog."


def test_a_model_that_does_not_think() -> None:
    done = rwkv_inside(*ASK, "--think", "show")
    assert done == Outcome(
        2, "", "error: models of the family bytes do not think\nhint: leave that setting out, or `off`\n"
    )
    assert rwkv_inside(*ASK, "--think", "off", "--max-tokens", "3").code == 0
    assert "`loud` is not one of show, hide, only, fast, off" in rwkv_inside(*ASK, "--think", "loud").err
