"""`rwkv chat` when a signal comes at a moment that is chosen: nothing is lost, and the terminal is left as it was."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import live_terminal
import pytest
from cli_runner import rwkv_inside
from live_terminal import LiveTerminal

if sys.platform == "win32":
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)

import termios

SHORT = ["--max-tokens", "30", "--seed", "1"]
ENDLESS = ["--max-tokens", "-1", "--logit-bias", "0=-inf", "--logit-bias", "10=-inf", "--seed", "1"]

AT = """
import importlib, os, runpy, sys
signum, when, count, path, sys.argv = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], ["rwkv", *sys.argv[5:]]
module, owner, name = path.split(":")
owner = getattr(importlib.import_module(module), owner)
function, calls = getattr(owner, name), 0
def signalled(self, *args, **named):
    global calls
    calls += 1
    if when == "before" and calls == count:
        os.kill(os.getpid(), signum)
    try:
        return function(self, *args, **named)
    finally:
        if when == "after" and calls == count:
            if hasattr(self, "flush"):
                self.flush()  # what was written is on the screen
            os.kill(os.getpid(), signum)
setattr(owner, name, signalled)
runpy.run_module("rwkvcli", run_name="__main__", alter_sys=True)
"""
"""Runs the command, which gets a signal before or after the nth call of a method."""

MOMENTS = [
    "before 2 prompt_toolkit.shortcuts:PromptSession:prompt",
    "before 2 prompt_toolkit.application:Application:run",
    "after 2 prompt_toolkit.input.vt100:raw_mode:__enter__",
    "after 2 prompt_toolkit.output.vt100:Vt100_Output:enable_bracketed_paste",
    "before 1 prompt_toolkit.input.vt100:raw_mode:__exit__",
    "before 1 prompt_toolkit.output.vt100:Vt100_Output:disable_bracketed_paste",
    "after 1 prompt_toolkit.application:Application:run",
    "before 2 rwkvcli.cli.chat_terminal:Chat:tell",
]
"""In the conversation of `begun`: as the second prompt is drawn, as the first is left, and in between."""


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    return {"RWKV_SESSIONS": str(tmp_path / "sessions"), "RWKV_THREADS": "1"}


def begun(
    place: dict[str, str], monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, moment: str
) -> LiveTerminal:
    """A conversation in which one message was sent."""
    program = [sys.executable, "-P", "-c", AT, str(int(signum)), *moment.split()]
    monkeypatch.setattr(live_terminal, "RWKV", program)
    terminal = LiveTerminal("chat", "trip", "-m", "demo", *SHORT, env=place)
    terminal.prompt()
    terminal.send("Hello\r")
    return terminal


def messages(place: dict[str, str]) -> list[str]:
    out = rwkv_inside("sessions", "export", "trip", "--format", "jsonl", env=place).out
    return [json.loads(line)["content"] for line in out.splitlines()]


def leaves_it_as_it_was(terminal: LiveTerminal) -> bool:
    """Whether the terminal reads lines after the end, and shows what is typed and where."""
    while terminal.pump(1):
        pass
    flags = termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN
    return (
        termios.tcgetattr(terminal.child.child_fd)[3] & flags == flags
        and terminal.raw.count(b"\x1b[?2004h") == terminal.raw.count(b"\x1b[?2004l")
        and terminal.raw.rfind(b"\x1b[?25l") <= terminal.raw.rfind(b"\x1b[?25h")
    )


@pytest.mark.parametrize(
    ("signum", "code", "moment"),
    [(signal.SIGTERM, 143, moment) for moment in MOMENTS] + [(signal.SIGHUP, 129, MOMENTS[3])],
)
def test_a_signal_that_ends_at_any_moment(
    place: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    signum: signal.Signals,
    code: int,
    moment: str,
) -> None:
    terminal = begun(place, monkeypatch, signum, moment)
    assert leaves_it_as_it_was(terminal)
    assert b"Traceback" not in terminal.raw
    assert b"xception" not in terminal.raw
    assert terminal.finish() == code
    before_the_answer = moment.startswith(("before 1", "after 1"))
    assert len(messages(place)) == (0 if before_the_answer else 2)


@pytest.mark.parametrize("moment", MOMENTS[1::2])
def test_ctrl_c_at_any_moment_ends_no_conversation(
    place: dict[str, str], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    terminal = begun(place, monkeypatch, signal.SIGINT, moment)
    terminal.until(lambda text: text.count(">>> ") > 1)
    terminal.prompt()
    terminal.say("Are you there?")
    terminal.send("\x04")
    assert leaves_it_as_it_was(terminal)
    assert terminal.finish() == 0
    assert b"xception" not in terminal.raw
    assert messages(place)[-2] == "Are you there?"


def test_a_terminal_that_is_closed_during_an_answer(place: dict[str, str]) -> None:
    """The system says so by SIGHUP and SIGCONT."""
    terminal = LiveTerminal("chat", "trip", "-m", "demo", *ENDLESS, env=place)
    terminal.prompt()
    terminal.send("Hello\r")
    terminal.until(lambda text: len(text) > 600)
    shown = " ".join(terminal.text().partition(">>> Hello")[2].split())
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), terminal.child.child_fd)
    assert terminal.child.wait() == 129
    sent, reply = messages(place)
    assert sent == "Hello"
    assert " ".join(reply.split()).startswith(shown)
