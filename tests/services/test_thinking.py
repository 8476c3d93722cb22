"""Thoughts of reasoning models in `Generation`: the form of the prompt, what is told as what, and going on later."""

from __future__ import annotations

from typing import Any

import pytest
from scripted import ScriptModel, ScriptState

from rwkvcli.errors import UsageError
from rwkvcli.runtime.state_file import Pause
from rwkvcli.runtime.templates import named
from rwkvcli.services.generation import Generation, Settings

THINKS = ">\nFour legs, and\n\nit barks.\n</think>\n\nIt is a dog. "
GREEDY = {"temperature": 0.0, "seed": 1}


def made(text: str, think: str | None, template: str = "g1", **more: Any) -> tuple[Generation, ScriptModel]:
    model: Any = ScriptModel(text, template)
    settings = Settings(more.pop("max_tokens", -1), GREEDY, chat=True, think=think, **more)
    run = Generation(model, b"What is it?", settings)
    pieces = list(run)
    assert "".join(pieces) == run.text and all(pieces)
    return run, model


@pytest.mark.parametrize("think", ["show", "hide"])
def test_thoughts_are_told_from_the_answer(think: str) -> None:
    run, model = made(THINKS, think)
    assert model.prompts == ["User: What is it?\n\nAssistant: <think"]
    assert (run.thinking, run.text, run.finish_reason) == (
        "Four legs, and\n\nit barks.", "It is a dog.", "stop",
    )  # fmt: skip
    report = run.report()
    assert report["text"] == "It is a dog."
    assert report.get("thinking") == (run.thinking if think == "show" else None)


def test_tokens_of_thoughts_are_counted() -> None:
    run, model = made(THINKS, "hide")
    ids = model.tokenizer.encode(THINKS)
    until = next(n for n in range(len(ids)) if "</think>" in model.tokenizer.decode(ids[:n]))
    assert (run.thinking_tokens, run.completion_tokens) == (until, len(ids))
    cut, _ = made(THINKS, "hide", max_tokens=3)
    assert (cut.thinking_tokens, cut.completion_tokens) == (3, 3)
    ended, _ = made("> So", "show")
    assert ended.thinking_tokens == ended.completion_tokens == len(model.tokenizer.encode("> So"))
    for think in ("fast", "off", None):
        assert made("> Yes.", think)[0].thinking_tokens == 0


def test_only_the_thoughts() -> None:
    run, model = made(THINKS, "only")
    assert (run.thinking, run.text, run.finish_reason) == ("Four legs, and\n\nit barks.", "", "stop")
    written = len(model.tokenizer.encode(THINKS[: THINKS.index("It is")]))
    assert run.completion_tokens <= written  # the answer was not waited for
    assert run.report()["thinking"] == run.thinking


def test_without_thoughts() -> None:
    run, model = made("> Yes.", "fast")
    assert model.prompts == ["User: What is it?\n\nAssistant: <think>\n</think"]
    assert (run.text, run.thinking) == ("Yes.", "")
    run, model = made("> Yes.", "fast", "g1-flower", system="Be brief.")
    assert model.prompts == ["System✿Be brief.✿\nUser✿What is it?✿\nBot✿<think></think"]
    assert run.text == "Yes."
    for think in ("off", None):
        run, model = made(" <think>x</think> y", think)
        assert model.prompts == ["User: What is it?\n\nAssistant:"]
        assert (run.text, run.thinking) == ("<think>x</think> y", "")


def test_families_that_do_not_think_refuse() -> None:
    for think in ("show", "hide", "only"):
        with pytest.raises(UsageError, match="models of the family world do not think"):
            made("x", think, "world")
    assert made(" x", "fast", "world")[0].text == "x"
    with pytest.raises(UsageError, match="no way to think 'maybe'"):
        made("x", "maybe")


def test_a_family_may_choose_its_words_otherwise_when_it_thinks() -> None:
    flower = named("g1-flower")
    assert flower.settings(chat=True, think="on") == {
        "temperature": 0.96, "top_p": 0.76, "top_k": 32,
        "presence_penalty": 1.0, "frequency_penalty": 0.1, "penalty_decay": 0.988,
    }  # fmt: skip
    assert flower.settings(chat=True, think="fast") == flower.settings(chat=True)
    run, _ = made(THINKS, "show", "g1-flower")
    assert run._sampler.params.presence_penalty == 1.0


@pytest.mark.parametrize("think", ["show", "hide", "only"])
@pytest.mark.parametrize("text", [THINKS, "><b\n</think>\n\n \n yes </think> no", ">\n</think>\nshort"])
def test_a_cut_anywhere_changes_nothing(think: str, text: str) -> None:
    model: Any = ScriptModel(text)
    settings = Settings(-1, GREEDY, chat=True, think=think)
    whole = Generation(model, b"Hi", settings)
    told = list(whole.parts())
    for step in (1, 2, 3, 5):
        parts, state = [], None
        while True:
            limited = Settings(step, GREEDY, chat=True, think=think)
            run = Generation(model, b"Hi" if state is None else None, limited, state, keep=True)
            before = run.told_before
            assert before == (parts[-1].thinking if parts else None) or before is None
            parts += run.parts()
            state = run.settle()
            assert isinstance(state.pause, Pause)
            if run.finish_reason == "stop":
                break
        for thinking in (True, False):
            joined, expected = (
                "".join(part.text for part in group if part.thinking == thinking) for group in (parts, told)
            )
            assert joined == expected


def test_thoughts_that_were_cut_stay_thoughts() -> None:
    model: Any = ScriptModel(THINKS)
    first = Generation(model, b"Hi", Settings(3, GREEDY, chat=True, think="show"), keep=True)
    assert "".join(first) == "" and first.thinking
    state: ScriptState | Any = first.settle()
    second = Generation(model, None, Settings(-1, GREEDY, chat=True), state)
    assert "".join(second) == "It is a dog."
    assert first.thinking + second.thinking == "Four legs, and\n\nit barks."
