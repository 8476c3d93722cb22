"""`rwkv chat` in a real pseudo-terminal, on the demo model: what a person types, and the screen that results."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from cli_runner import rwkv_inside
from live_terminal import LiveTerminal

if sys.platform == "win32":
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)

import termios

ENDLESS = ["--max-tokens", "-1", "--logit-bias", "0=-inf", "--logit-bias", "10=-inf", "--seed", "1"]
SHORT = ["--max-tokens", "30", "--seed", "1"]


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    return {"RWKV_SESSIONS": str(tmp_path / "sessions"), "RWKV_THREADS": "1"}


def opened(place: dict[str, str], *args: str, **more: object) -> LiveTerminal:
    terminal = LiveTerminal("chat", "trip", *args, env=place, **more)  # type: ignore[arg-type]
    terminal.prompt()
    return terminal


def messages(place: dict[str, str], name: str = "trip") -> list[str]:
    out = rwkv_inside("sessions", "export", name, "--format", "jsonl", env=place).out
    return [json.loads(line)["content"] for line in out.splitlines()]


def test_a_conversation_and_its_opening_and_closing_lines(place: dict[str, str]) -> None:
    terminal = opened(place, "-m", "demo", *SHORT)
    lines = terminal.text().split("\n")
    assert lines[0].startswith("demo: RWKV-7, 5.4 million parameters, bf16, 10.8 MB; cpu, ")
    assert lines[1].startswith("demo is a toy")
    assert lines[2] == "  rwkv chat g1-1.5b"
    assert lines[3:] == [
        "session trip, new; /help lists the commands, Ctrl-D leaves",
        ">>> message, or /help",
    ]
    terminal.say("Hello, who are you?")
    terminal.send("\x04")
    assert terminal.finish() == 0
    sent, reply = messages(place)
    assert (sent, len(reply)) == ("Hello, who are you?", 29)
    assert terminal.text().split("\n")[4:] == [
        ">>> Hello, who are you?",
        reply,
        "(ended by its length: /set max-tokens=N)",
        "",
        ">>>",
        "saved: `rwkv chat trip` goes on from here",
    ]
    again = opened(place)
    shown = again.text().split("\n")
    assert shown[3:] == [
        "session trip, 1 turn; /help lists the commands, Ctrl-D leaves", "", ">>> Hello, who are you?", reply, "",
        ">>> message, or /help",
    ]  # fmt: skip
    again.send("\x1b[A")
    again.until(lambda text: text.endswith("\n>>> Hello, who are you?"))  # the history lasts
    again.send("\x03\x04")
    assert again.finish() == 0


def test_messages_of_several_lines(place: dict[str, str], tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "written\\r\\nin the editor" > "$1"\n')
    editor.chmod(0o755)
    terminal = opened({**place, "EDITOR": str(editor)}, "-m", "demo", "--max-tokens", "3")
    for typed, seen, sent in (
        ("one\x1b\rtwo", ">>> one\n... two", "one\ntwo"),
        ('"""first\rsecond"""', '>>> """first\n... second"""', "first\nsecond"),
        ("\x1b[200~pasted\n\n/undo\x1b[201~", ">>> pasted\n...\n... /undo", "pasted\n\n/undo"),
        ("\x07", ">>> written\n... in the editor", "written\nin the editor"),
        ("x" * 100, f">>> {'x' * 76}\n    {'x' * 24}", "x" * 100),
        ("日本😀語\x7f\x7f本x", ">>> 日本本x", "日本本x"),
    ):
        terminal.send(typed)
        terminal.until(lambda text, seen=seen: _without_stubs(text).endswith(seen))
        terminal.send("\r")
        terminal.prompt()
        assert messages(place)[-2] == sent
    terminal.send("\x04")
    assert terminal.finish() == 0


def _without_stubs(text: str) -> str:
    """pyte puts nothing into the second cell of a wide character, but does show it as a space at times."""
    return text.replace("\u0000", "")


def test_ctrl_c_stops_the_answer_only_and_ctrl_d_leaves(place: dict[str, str]) -> None:
    terminal = opened(place, "-m", "demo", *ENDLESS)
    terminal.send("Hello\r")
    terminal.until(lambda text: len(text) > 600)
    terminal.send("\x03")
    text = terminal.until("(stopped)")
    terminal.prompt()
    written = text[text.index(">>> Hello\n") + 10 : text.index("\n(stopped)")]
    assert " ".join(written.split()) == " ".join(messages(place)[1].split())
    terminal.send("half a mess\x03")
    terminal.prompt()
    terminal.send("\x03")
    terminal.until("Ctrl-D leaves; Ctrl-C stops an answer\n>>>")
    terminal.send("\x04")
    assert terminal.finish() == 0
    assert len(messages(place)) == 2


@pytest.mark.parametrize(
    ("signum", "code", "answering"), [(signal.SIGTERM, 143, False), (signal.SIGHUP, 129, True)]
)
def test_signals_that_end_save_and_leave_the_terminal_as_it_was(
    place: dict[str, str], signum: signal.Signals, code: int, answering: bool
) -> None:
    terminal = opened(place, "-m", "demo", *(ENDLESS if answering else SHORT))
    if answering:
        terminal.send("Hello\r")
        terminal.until(lambda text: len(text) > 600)
    else:
        terminal.say("Hello")
    flags = termios.ECHO | termios.ICANON | termios.ISIG
    assert termios.tcgetattr(terminal.child.child_fd)[3] & flags != flags
    os.kill(terminal.child.pid, signum)
    while terminal.pump(1):
        pass
    assert termios.tcgetattr(terminal.child.child_fd)[3] & flags == flags
    assert terminal.finish() == code
    assert len(messages(place)) == 2
    assert terminal.raw.count(b"\x1b[?2004h") == terminal.raw.count(b"\x1b[?2004l")
    assert b"Traceback" not in terminal.raw


def test_waiting_takes_no_processor_time(place: dict[str, str]) -> None:
    terminal = opened(place, "-m", "demo", *SHORT)
    terminal.say("Hello")

    def ticks() -> int:
        return sum(
            map(int, Path(f"/proc/{terminal.child.pid}/stat").read_text().rsplit(")")[-1].split()[11:13])
        )

    end = time.monotonic() + 30
    used = 2
    while used > 1:  # what is still to be settled after an answer takes its time on a busy machine
        assert time.monotonic() < end
        terminal.pump(0.1)
        begin = ticks()
        time.sleep(0.7)
        used = ticks() - begin
    terminal.send("\x04")
    assert terminal.finish() == 0


def test_a_slow_terminal_does_not_slow_the_model(place: dict[str, str]) -> None:
    terminal = opened(place, "-m", "demo", "--max-tokens", "501", *ENDLESS[2:])
    terminal.send("Hello\r")
    terminal.until(lambda text: len(text) > 450)
    terminal.send("\x13")  # Ctrl-S: from here on the terminal takes nothing
    end = time.monotonic() + 60
    journal = Path(place["RWKV_SESSIONS"]) / "trip" / "turns.jsonl"
    while not (journal.exists() and len(messages(place)) == 2) and time.monotonic() < end:
        terminal.pump(0.05)
    assert "(ended by its length" not in terminal.text()
    assert len(messages(place)[1]) == 500  # the answer is whole but for the blank before it, and saved
    terminal.send("\x11")
    terminal.until("(ended by its length")
    terminal.prompt()
    terminal.send("\x04")
    assert terminal.finish() == 0


def test_a_resized_terminal_wraps_at_its_new_width(place: dict[str, str]) -> None:
    terminal = opened(place, "-m", "demo", "--max-tokens", "300", *ENDLESS[2:])
    terminal.child.setwinsize(40, 30)
    terminal.screen.resize(40, 30)
    terminal.prompt()
    terminal.send("Hello\r")
    text = terminal.until("(ended by its length")
    answer = text[text.index(">>> Hello\n") + 10 : text.index("(ended")].strip().split("\n")
    assert len(answer) > 9
    assert max(map(len, answer)) <= 29
    assert " ".join(answer) == messages(place)[1]  # broken between words only
    terminal.send("\x04")
    assert terminal.finish() == 0


def test_a_dumb_terminal_gets_plain_text(place: dict[str, str]) -> None:
    terminal = LiveTerminal("chat", "trip", "-m", "demo", *SHORT, env={**place, "TERM": "dumb"})
    terminal.until(">>>")
    terminal.send("Hello\r")
    terminal.until("(ended by its length")
    terminal.until(lambda text: text.split("\n")[-1].startswith(">>>"))
    assert messages(place)[0] == "Hello"
    terminal.send("\x03")
    terminal.until("^C\nCtrl-D leaves; Ctrl-C stops an answer\n>>>")
    terminal.send("\x04")
    assert terminal.finish() == 0
    assert b"\x1b" not in terminal.raw


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with job control")
def test_suspended_and_taken_up_again(place: dict[str, str]) -> None:
    terminal = LiveTerminal(
        "chat", "trip", "-m", "demo", "--max-tokens", "1000", *ENDLESS[2:], shell="bash --norc -i", columns=400,
        env={**place, "PS1": "", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    terminal.send(terminal.command)
    terminal.prompt()
    terminal.send("half")
    terminal.until(">>> half")
    terminal.send("\x1a")
    terminal.until("Stopped")
    terminal.send("stty -a\r")
    assert " icanon" in terminal.until(" echo ")
    terminal.send("clear; fg\r")
    terminal.until(">>> half")
    terminal.send(" a message\r")
    terminal.until(lambda text: len(text.partition("a message\n")[2]) > 200)
    terminal.send("\x1a")
    terminal.until("Stopped")
    terminal.send("fg; echo 4''2\r")  # what is typed is not what is printed, and no word of the model's
    terminal.until(
        lambda text: len(text.partition("4''2\n")[2].partition("--seed 1\n")[2]) > 300
    )  # after what was typed, and what the shell says of fg
    terminal.send("next\x04\x7f")
    terminal.until("(ended by its length")
    shown = terminal.until(lambda text: text.endswith(">>> nex"))
    assert "next" not in shown
    assert messages(place)[0] == "half a message"
    terminal.send("\x03\x04")
    terminal.until("42")
    terminal.send("exit\r")
    assert terminal.finish() == 0


def test_what_is_typed_during_an_answer_comes_after_it(place: dict[str, str]) -> None:
    terminal = opened(place, "-m", "demo", "--max-tokens", "300", *ENDLESS[2:])
    terminal.send("Hello\r")
    terminal.until(lambda text: len(text) > 500)
    terminal.send("Again\r\x04")
    assert terminal.finish() == 0
    assert messages(place)[::2] == ["Hello", "Again"]


def test_what_is_no_longer_there_to_be_saved_to(place: dict[str, str]) -> None:
    terminal = opened(place, "-m", "demo", *SHORT)
    terminal.say("Hello")
    folder = Path(place["RWKV_SESSIONS"]) / "trip"
    folder.rename(folder.with_name("gone"))
    terminal.say("Are you there?")
    terminal.until("not saved; the conversation goes on, and every turn tries again")
    folder.with_name("gone").rename(folder)
    terminal.say("And now?")
    terminal.until("saved again, with all that was said")
    terminal.send("\x04")
    assert terminal.finish() == 0
    assert messages(place)[::2] == ["Hello", "Are you there?", "And now?"]
