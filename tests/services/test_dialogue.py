"""Whole conversations as tokens: the text is that of the family, and a later one begins with an earlier one."""

from __future__ import annotations

import pytest
from vocabularies import byte_level_json

from rwkvcli.errors import UsageError
from rwkvcli.runtime.templates import THINK, Turn, named, templates
from rwkvcli.runtime.tokenizer import ByteTokenizer, JsonTokenizer, Tokenizer, WorldTokenizer
from rwkvcli.services.dialogue import Message, encode

TOKENIZERS = {"world": WorldTokenizer(), "bytes": ByteTokenizer(), "json": JsonTokenizer(byte_level_json())}
SYSTEM, HELLO, HI = (
    Message("system", "Be brief."),
    Message("user", " Hello,\r\n\r\nyou "),
    Message("assistant", " Hi. \n"),
)
AND, ON, LAST = Message("user", "And?"), Message("assistant", "On."), Message("user", "So!")


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("family", templates())
def test_the_text_is_what_the_family_writes(family: str, kind: str) -> None:
    template, tokenizer = named(family), TOKENIZERS[kind]
    encoded = encode(template, tokenizer, [SYSTEM, HELLO, HI, AND, ON, LAST])
    turns = [Turn(HELLO.text, HI.text), Turn(AND.text, ON.text), Turn(LAST.text)]
    ids = encoded.ids
    if template.begin:
        assert ids.pop(0) == tokenizer.eos_id
    assert tokenizer.decode(ids) == template.render(turns, SYSTEM.text)
    assert encoded.lasting is None


@pytest.mark.parametrize("think", THINK)
@pytest.mark.parametrize("family", templates())
def test_a_conversation_begins_with_what_lasts_of_an_earlier_one(family: str, think: str) -> None:
    template, tokenizer = named(family), TOKENIZERS["world"]
    turns = [SYSTEM, HELLO, HI, AND, ON, LAST]
    for size in (2, 4):
        ids, lasting = encode(template, tokenizer, turns[:size], think)
        assert turns[size - 1].role == "user"
        later = encode(template, tokenizer, turns, think).ids
        formed = {"on": template.thinking, "fast": template.fast}.get(think)
        assert (lasting is None) == (formed is None)
        count = len(ids) if lasting is None else lasting
        assert later[:count] == ids[:count]
        assert count == len(ids) or later[count] != ids[count]


def test_thoughts_are_asked_for_behind_the_last_message_alone() -> None:
    tokenizer = TOKENIZERS["world"]
    ids, lasting = encode(named("g1"), tokenizer, [HELLO, HI, AND], "on")
    said = "User: Hello,\nyou\n\nAssistant: Hi.\n\nUser: And?\n\nAssistant:"
    assert tokenizer.decode(ids) == said + " <think"
    assert tokenizer.decode(ids[:lasting]) == said


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([HELLO], "User: Hello,\nyou\n\nAssistant:"),
        ([SYSTEM, SYSTEM, AND], "Be brief.\nBe brief.\n\nUser: And?\n\nAssistant:"),
        ([AND, LAST], "User: And?\nSo!\n\nAssistant:"),
        ([HI, AND], "Assistant: Hi.\n\nUser: And?\n\nAssistant:"),
        ([AND, ON, HI, LAST], "User: And?\n\nAssistant: On.\n\nAssistant: Hi.\n\nUser: So!\n\nAssistant:"),
        ([AND, ON, SYSTEM, LAST], "User: And?\n\nAssistant: On.\n\nUser: Be brief.\nSo!\n\nAssistant:"),
        ([SYSTEM], "User: Be brief.\n\nAssistant:"),
        ([AND, Message("assistant", ""), LAST], "User: And?\n\nAssistant: \n\nUser: So!\n\nAssistant:"),
        ([Message("system", ""), AND], "User: And?\n\nAssistant:"),
    ],
)
def test_messages_in_any_order(messages: list[Message], text: str) -> None:
    tokenizer: Tokenizer = TOKENIZERS["world"]
    assert tokenizer.decode(encode(named("world"), tokenizer, messages).ids) == text


@pytest.mark.parametrize("messages", [[], [AND, ON]])
def test_there_is_something_to_answer(messages: list[Message]) -> None:
    with pytest.raises(UsageError, match="the last message is not the person's"):
        encode(named("world"), TOKENIZERS["world"], messages)


def test_nothing_at_all_is_the_end_of_a_text() -> None:
    assert encode(named("plain"), TOKENIZERS["world"], [Message("user", "")]) == ([0], None)


@pytest.mark.parametrize("family", templates())
def test_what_was_read_before_is_gone_on_with(family: str) -> None:
    template, tokenizer = named(family), TOKENIZERS["world"]
    ids = encode(template, tokenizer, [SYSTEM, HELLO], seam="\n\n").ids
    assert tokenizer.decode(ids) == "\n\n" + template.render([Turn(HELLO.text)], SYSTEM.text)
    assert tokenizer.eos_id not in ids
