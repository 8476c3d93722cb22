"""Families of models: which one a file belongs to, and what a conversation looks like in each."""

from __future__ import annotations

import pytest

from rwkvcli.errors import FormatError, UsageError
from rwkvcli.runtime.sampling import SamplingParams
from rwkvcli.runtime.streaming import AnswerTrim, StopMatcher
from rwkvcli.runtime.templates import Turn, choose, named, templates


@pytest.mark.parametrize(
    ("tokenizer", "source", "family"),
    [
        ("world", "RWKV-x060-World-1B6-v2.1-20240328-ctx4096.pth", "world"),
        ("world", "rwkv7-g1d-0.4b-20260210-ctx8192.pth", "g1"),
        ("world", "rwkv7-g1-2.9b-20250519-ctx4096.pth", "g1"),
        ("world", "rwkv7-g0-7.2b-20250722-ctx4096.pth", "g1"),
        ("world", "rwkv7-g1h-2.9b.pth", "g1-flower"),
        ("world", "rwkv7-g2-2.9b.pth", "g1-flower"),
        ("world", "RWKV-5-World-1B5.pth", "world"),
        ("world", "", "world"),
        ("world", "mapping-g14.pth", "world"),
        ("json", "RWKV-4-Raven-7B-v12-Eng98.pth", "raven"),
        ("json", "RWKV-4-Pile-169M-20220807-8023.pth", "pile"),
        ("bytes", "demo-weights.safetensors", "bytes"),
        ("bytes", "raven.pth", "bytes"),
        ("none", "anything.pth", "plain"),
    ],
)
def test_the_family_follows_from_the_vocabulary_and_the_name(
    tokenizer: str, source: str, family: str
) -> None:
    assert choose("none", tokenizer, source).name == family


def test_what_the_file_names_comes_first() -> None:
    assert choose("raven", "world", "rwkv7-g1-x.pth").name == "raven"
    with pytest.raises(FormatError, match="unknown template 'later'") as error:
        choose("later", "world", "")
    assert "--template" in (error.value.hint or "")
    with pytest.raises(UsageError, match="no template 'x'"):
        named("x")


TURNS = [Turn(" Hi\r\n\r\n\r\nthere ", " Hello. \n"), Turn("And?")]


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("world", "Be brief.\n\nUser: Hi\nthere\n\nAssistant: Hello.\n\nUser: And?\n\nAssistant:"),
        ("g1", "System: Be brief.\n\nUser: Hi\nthere\n\nAssistant: Hello.\n\nUser: And?\n\nAssistant:"),
        (
            "g1-flower",
            "System✿Be brief.✿\nUser✿Hi\n\n\nthere✿\nBot✿<think></think>Hello.✿\nUser✿And?✿\nBot✿<think></think",
        ),
        ("raven", "Be brief.\n\nBob: Hi\nthere\n\nAlice: Hello.\n\nBob: And?\n\nAlice:"),
        ("pile", "Be brief.\n\nQ: Hi\nthere\n\nA: Hello.\n\nQ: And?\n\nA:"),
        ("bytes", "Be brief.\n\nUser: Hi\nthere\n\nAssistant: Hello.\n\nUser: And?\n\nAssistant:"),
        ("plain", "Be brief.\n\nHi\n\n\nthereHello.\n\nAnd?"),
    ],
)
def test_conversations(family: str, text: str) -> None:
    assert named(family).render(TURNS, "Be brief.") == text
    assert named(family).render(TURNS[1:]) == text[text.index(named(family).message("And?")) :]


@pytest.mark.parametrize("family", templates())
def test_every_family_is_sound(family: str) -> None:
    template = named(family)
    assert not template.reply.endswith(" ")
    for chat in (False, True):
        SamplingParams(**template.settings(chat))
    StopMatcher(template.stop)
    # what ends an answer begins what follows one, or the model could not be stopped in time
    following = template.closing("x") + template.message("y")
    assert not template.stop or any(stop in following for stop in template.stop)
    assert "{" not in template.render([Turn("{user} {reply}")], "{system}").replace(
        "{user} {reply}", ""
    ).replace("{system}", "")


def pushed(pieces: list[str], lead: str = "") -> str:
    trim = AnswerTrim(lead)
    return "".join([*map(trim.push, pieces), trim.flush()])


@pytest.mark.parametrize(
    "text", [" Hello  you. \n\n", "x", "", "  \n", "> a", ">", ">\n\nb ", "a > b", " >c"]
)
@pytest.mark.parametrize("lead", ["", ">", "</x>"])
def test_an_answer_is_trimmed_however_it_is_split(text: str, lead: str) -> None:
    whole = text.strip()
    expected = whole.removeprefix(lead).strip() if lead else whole
    assert pushed([text], lead) == expected
    assert pushed(list(text), lead) == expected
    assert pushed([text[:2], text[2:]], lead) == expected


def test_a_lead_of_several_characters() -> None:
    assert pushed(list(" </x> Hi"), "</x>") == "Hi"
    assert pushed(list("</y> Hi"), "</x>") == "</y> Hi"
    assert pushed(list("</"), "</x>") == "</"
