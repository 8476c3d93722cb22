"""How an answer looks with thoughts, and that drawing keeps to itself."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pyte
import pytest

from rwkvcli import Model
from rwkvcli.cli import chat_drawing, chat_pipe, render
from rwkvcli.cli.chat_drawing import FRAME, AnswerView, Drawing
from rwkvcli.cli.chat_terminal import Chat
from rwkvcli.cli.console import Console
from rwkvcli.cli.settings import Settings as CliSettings
from rwkvcli.services.answering import Part
from rwkvcli.services.conversation import Conversation, Settings
from rwkvcli.services.snapshots import Snapshots

PARTS = [Part(""), Part("Hm, **so**", True), Part(" many.\nYes", True), Part("It is **42**"), Part(".\nBye")]


def drawn(shows_thoughts: bool, styled: bool) -> str:
    view = AnswerView(styled=styled, wraps=True, shows_thoughts=shows_thoughts)
    return "".join(map(view.push, PARTS)) + view.flush()


def seen(text: str) -> str:
    screen = pyte.Screen(60, 20)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in screen.display).rstrip("\n")


@pytest.mark.parametrize("styled", [True, False])
def test_thoughts_are_shown_or_hidden(styled: bool) -> None:
    answer = "It is 42.\nBye" if styled else "It is **42**.\nBye"
    assert seen(drawn(True, styled)) == f"Hm, **so** many.\nYes\n\n{answer}"
    assert seen(drawn(False, styled)) == answer
    assert ("\x1b" in drawn(True, styled)) == styled


def test_shown_thoughts_are_dim() -> None:
    text = drawn(True, True)
    assert text.index("\x1b[2m") < text.index("Hm") < text.index("\x1b[0m") < text.index("It is")


def test_thoughts_alone() -> None:
    for shows, expected in ((True, "Hm, **so** many.\nYes"), (False, "")):
        view = AnswerView(styled=True, wraps=True, shows_thoughts=shows)
        text = "".join(map(view.push, PARTS[:3])) + view.flush()
        assert seen(text) == expected
        assert text.endswith("\n") and not text.endswith("\n\n")


def test_while_thoughts_go_on_there_is_a_word_for_it() -> None:
    view = AnswerView(styled=True, wraps=True, shows_thoughts=False)
    assert seen("".join(map(view.push, PARTS[:3]))) == "thinking ..."


def test_a_terminal_that_does_not_take_anything_holds_up_nobody() -> None:
    gate, texts = threading.Event(), list[str]()

    def write(text: str) -> None:
        assert gate.wait(20)
        texts.append(text)

    view = AnswerView(styled=False, wraps=False, shows_thoughts=True)
    with Drawing(view, write) as drawing:
        for _ in range(10_000):
            drawing.push(Part("x"))
        gate.set()
    assert "".join(texts) == "x" * 10_000 + "\n"
    assert len(texts) <= 3


def test_no_more_drawings_than_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    sleeps: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(chat_drawing.time, "sleep", lambda seconds: (sleeps.append(seconds), sleep(0.001)))
    with Drawing(AnswerView(styled=False, wraps=False, shows_thoughts=True), texts.append) as drawing:
        for _ in range(100):
            drawing.push(Part("word "))
            sleep(0.001)
    assert "".join(texts) == "word " * 100 + "\n"
    assert sleeps == [FRAME] * (len(texts) - 1)


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    def write(_text: str) -> None:
        raise OSError(5, "gone")

    with Drawing(AnswerView(styled=True, wraps=True, shows_thoughts=True), write) as drawing:
        for part in PARTS:
            drawing.push(part)
            time.sleep(0.01)


@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_a_long_message_is_read_below_a_bar(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int] | str] = []

    class Bar:
        def __init__(self, _console: Console) -> None:
            told.append("begun")

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            told.append("hidden")
            assert capsys.readouterr().out == ""  # before the answer begins

        def update(self, done: int, total: int) -> None:
            told.append((done, total))

    monkeypatch.setenv("TERM", "dumb")
    for module in (render, chat_pipe):
        monkeypatch.setattr(module, "TextBar", Bar)
    model = Model.load("demo", threads=1)
    talk = Conversation(model, Snapshots(model), settings=Settings(max_tokens=1), seed=1)
    text, size = "word " * 200 + "end", len(b"User: \n\nAssistant:") + 1003
    console = Console(CliSettings())
    if where == "terminal":
        Chat(console, talk, None).answer(lambda stopped: talk.send(text, stopped))
    else:
        (tmp_path / "said").write_text(text)
        with (tmp_path / "said").open() as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            chat_pipe.answer_lines(console, talk)
    assert (told[0], told[-1]) == ("begun", "hidden")
    assert len(told) > 4 and told[-2] == (size, size)
    assert len(talk.history.path()) == 1
