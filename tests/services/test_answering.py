"""Answers of a model that says what the test tells it to: what its state has seen, and what is told as thoughts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rwkvcli.runtime.sampling import Sampler, SamplingParams
from rwkvcli.runtime.templates import Template, named
from rwkvcli.runtime.thoughts import Part, ThoughtSplitter
from rwkvcli.runtime.tokenizer import WorldTokenizer
from rwkvcli.services.answering import Answer

WORLD = WorldTokenizer()


class Script:
    """A model that draws `tokens` one after the other, whatever it is fed."""

    tokenizer = WORLD

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def logits(self, position: int) -> NDArray[np.float32]:
        logits = np.zeros(WORLD.vocab_size, np.float32)
        logits[self.tokens[min(position, len(self.tokens) - 1)]] = 1
        return logits

    def evaluate(self, tokens: list[int], state: list[int]) -> NDArray[np.float32]:
        state.extend(tokens)
        return self.logits(len(state))


def answer(tokens: list[int], template: Template, think: str = "off", **more: Any) -> Answer:
    model: Any = Script(tokens)
    state: Any = []
    sampler = Sampler(SamplingParams(temperature=0), WORLD.vocab_size)
    made = Answer(model, state, model.logits(0), template, think, sampler, **more)
    for _ in made:
        pass
    assert made.ids == made.state
    return made


@pytest.mark.parametrize(
    ("said", "reply", "seen"),
    [
        (" Hi there.\n\nUser: x", "Hi there.", " Hi there.\n\n"),
        (" Hi there!\n\nUser", "Hi there!", " Hi there!\n\n"),
        (" One.\n\nTwo.\nUser:", "One.\n\nTwo.", " One.\n\nTwo.\n\n"),
        (" Hi \n \n\nUser:", "Hi", " Hi\n\n"),
        ("\n\nUser:", "", "\n\n"),
        (" 你好。\n\nUser", "你好。", " 你好。\n\n"),
        (" Hi.", "Hi.", " Hi.\n\n"),
        (" Hi. \n", "Hi.", " Hi.\n\n"),
        (" Hi.\n\nUs", "Hi.\n\nUs", " Hi.\n\nUs\n\n"),
        ("", "", "\n\n"),
    ],
)
def test_the_state_has_seen_the_answer_and_its_end(said: str, reply: str, seen: str) -> None:
    made = answer([*WORLD.encode(said), 0], named("world"))
    assert (made.reply, made.finish) == (reply, "stop")
    assert WORLD.decode(made.state) == seen


def test_a_token_that_holds_the_end_and_the_stop_string() -> None:
    bang = WORLD.encode("!\n\n")
    made = answer([*WORLD.encode(" Hi"), *bang, *WORLD.encode("User")], named("world"))
    assert (made.reply, made.state) == ("Hi!", [*WORLD.encode(" Hi"), *WORLD.encode("!\n\n")])
    made = answer(WORLD.encode(">Hi✿\nUser"), named("g1-flower"))
    assert (made.reply, WORLD.decode(made.state)) == ("Hi", ">Hi✿\n")


def test_the_length() -> None:
    made = answer(WORLD.encode(" one two three four"), named("world"), max_tokens=2)
    assert (made.reply, made.finish, made.tokens) == ("one two", "length", 2)
    assert WORLD.decode(made.state) == " one two\n\n"


def test_thoughts_and_answer() -> None:
    said = ">\nHm, so\n\nmany.\n</think>\nForty-two.\n\nUser:"
    made = answer(WORLD.encode(said), named("g1"), think="on")
    assert (made.thinking, made.reply) == ("Hm, so\n\nmany.", "Forty-two.")
    assert WORLD.decode(made.state) == ">\nHm, so\n\nmany.\n</think>\nForty-two.\n\n"
    made = answer(WORLD.encode(">\n\nForty-two.\n\nUser:"), named("g1"), think="fast")
    assert (made.thinking, made.reply) == ("", "Forty-two.")
    made = answer(WORLD.encode(" <think>a</think> b\n\nUser:"), named("g1"))
    assert (made.thinking, made.reply) == ("a", "b")


def test_how_the_thinking_forms_are_written() -> None:
    g1, flower = named("g1"), named("g1-flower")
    assert g1.message("Hi", "on") == "User: Hi\n\nAssistant: <think"
    assert g1.message("Hi", "fast") == "User: Hi\n\nAssistant: <think>\n</think"
    assert g1.message("Hi", "off") == g1.message("Hi") == "User: Hi\n\nAssistant:"
    assert flower.message("Hi", "on") == "User✿Hi✿\nBot✿<think"
    assert flower.message("Hi", "fast") == flower.message("Hi") == "User✿Hi✿\nBot✿<think></think"
    assert replace(g1, thinking=None).message("Hi", "on") == g1.message("Hi")


@pytest.mark.parametrize(
    ("text", "begun", "thinking", "reply"),
    [
        ("> a < b </thin </think>\n\n c ", True, "a < b </thin", "c"),
        (">never closed", True, "never closed", ""),
        (" <think> a </think> b", False, "a", "b"),
        (" <thin air", False, "", "<thin air"),
        ("<th", False, "", "<th"),
        ("plain </think> text", False, "", "plain </think> text"),
        ("", True, "", ""),
        ("", False, "", ""),
    ],
)
def test_however_the_text_is_split(text: str, begun: bool, thinking: str, reply: str) -> None:
    for width in (1, 2, 3, 7, 100):
        splitter = ThoughtSplitter(begun, ">" if begun else "")
        parts: list[Part] = []
        for at in range(0, len(text), width):
            parts += splitter.push(text[at : at + width])
        parts += splitter.flush()
        assert "".join(part.text for part in parts if part.thinking) == thinking
        assert "".join(part.text for part in parts if not part.thinking) == reply
