"""The slash commands of `rwkv chat`, typed by a person in a pseudo-terminal."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_runner import rwkv_inside
from live_terminal import LiveTerminal

from rwkvcli.cli.chat_commands import perform

SHORT = ["--max-tokens", "24", "--seed", "1"]


class Chatter(LiveTerminal):
    """A terminal that tells what a message or command was answered."""

    def asked(self, text: str) -> str:
        """What is shown between `text` and the next prompt."""
        shown = self.say(text)
        return shown[shown.rindex(f">>> {text}\n") + len(text) + 5 :].rsplit("\n>>> ", 1)[0].strip()


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    return {"RWKV_SESSIONS": str(tmp_path / "sessions"), "PATH": "", "RWKV_THREADS": "1"}


@pytest.fixture
def chat(place: dict[str, str], tmp_path: Path) -> Chatter:
    terminal = Chatter("chat", "trip", "-m", "demo", *SHORT, env=place, cwd=tmp_path, rows=70)
    terminal.prompt()
    return terminal


def left(chat: Chatter, place: dict[str, str]) -> list[str]:
    """Leave; the messages and answers that were saved."""
    chat.send("/exit\r")
    assert chat.finish() == 0
    out = rwkv_inside("sessions", "export", "trip", "--format", "jsonl", env=place).out
    return [json.loads(line)["content"] for line in out.splitlines()]


def test_back_and_forth(chat: Chatter, place: dict[str, str]) -> None:
    assert "nothing to undo" in chat.asked("/undo")
    first, second = chat.asked("Hello"), chat.asked("And you?")
    assert chat.asked("/undo") == "taken back: “And you?”\n1 turn; /redo brings it back"
    assert chat.asked("And you?") == second
    assert chat.asked("/undo 2").startswith("taken back: “Hello” and 1 more\nnothing was said;")
    assert chat.asked("/redo") == "back again: “Hello”; 1 turn"
    assert chat.asked("/redo 5") == "back again: “And you?”; 2 turns"
    assert chat.asked("/retry 7") != second
    chat.send("/edit\r")
    chat.until(lambda text: text.endswith(">>> And you?"))
    chat.send("\x7f\x7f\x7f\x7fthey?\r")
    chat.until(">>> And they?\n")
    chat.prompt()
    assert chat.asked("/undo") == "taken back: “And they?”\n1 turn; /redo brings it back"
    assert chat.asked("/clear").startswith("a new conversation; until the next message or /read, /redo")
    assert chat.asked("/redo 1") == "back again: “Hello”; 1 turn"
    sent, reply = left(chat, place)
    assert (sent, reply) == ("Hello", first.split("\n")[0])


def test_branches(chat: Chatter, place: dict[str, str]) -> None:
    chat.asked("Hello")
    assert chat.asked("/branch aside").startswith("on the new branch aside")
    chat.asked("Aside")
    assert chat.asked("/switch main") == "on branch main: 1 turn, last “Hello”"
    assert chat.asked("/branch") == "* main: 1 turn, last “Hello”\n  aside: 2 turns, last “Aside”"
    assert "no branch 'nowhere'" in chat.asked("/switch nowhere")
    assert "there is a branch aside already" in chat.asked("/branch aside")
    assert len(left(chat, place)) == 2


def test_files(chat: Chatter, place: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a book.txt").write_text("It was a fine morning.\n" * 10)
    told = chat.asked('/read "a book.txt"')
    assert told == "231 tokens of a book.txt were read; /undo forgets them"
    assert "no such file" in chat.asked("/read nowhere.txt")
    assert chat.asked("/save here.state").startswith("the state is in here.state")
    there = "error: here.state exists already\nhint: name another file, or remove it"
    assert chat.asked("/save here.state") == chat.asked("/export md here.state") == there
    chat.asked("Hello")
    assert chat.asked("/load here.state") == "going on from a state that has seen 231 tokens"
    assert "not a state file" in chat.asked("/load 'a book.txt'")
    answer = chat.asked("Hello").split("\n")[0]
    assert chat.asked("/export md") == "the conversation is in trip.md"
    assert answer in (tmp_path / "trip.md").read_text()
    assert "say in which form" in chat.asked("/export pdf")
    assert chat.asked("/export jsonl out.jsonl") == "the conversation is in out.jsonl"
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[-1])["content"] == answer
    assert chat.asked("/copy").endswith("by the terminal, if it allows that")
    assert b"\x1b]52;c;" + base64.b64encode(answer.encode()) + b"\x07" in chat.raw
    assert len(left(chat, place)) == 3


def test_settings(chat: Chatter, place: dict[str, str]) -> None:
    shown = chat.asked("/set")
    assert "temperature = 0.7  (usual for this model)\n" in shown
    assert "max-tokens = 24\n" in shown
    assert chat.asked("/set temp=0") == "temperature is 0, from the next answer on"
    assert chat.asked("/set max_tokens = 5") == "max-tokens is 5, from the next answer on"
    assert len(chat.asked("Hello").split("\n")[0]) <= 5
    for text, why in (
        ("/set warmth=1", "no setting 'warmth'"),
        ("/set temp=hot", "temperature takes a number, not `hot`"),
        ("/set temp=-1", "temperature must be 0 or more"),
        ("/set temp", "say to what"),
        ("/think loudly", "no way to think 'loudly'"),
        ("/think show", "do not think"),
        ("/undo many", "`many` is not a whole number from 1 to 2**64 - 1"),
        ("/undo 0", "`0` is not a whole number from 1"),
        (f"/retry {2**64}", "is not a whole number from 1 to 2**64 - 1"),
        ("/unod", "did you mean /undo?"),
        ("/nonsense", "/help lists them"),
        ("/switch", "say which: /switch NAME"),
    ):
        assert why in chat.asked(text)
    assert "temperature = 0.0\n" in chat.asked("/set")
    assert chat.asked("/set seed=12") == "seed is 12, from the next answer on"
    assert "\nseed = 12\n" in chat.asked("/set")
    assert chat.asked("/set temp=default") == "temperature is default, from the next answer on"
    assert chat.asked("/think").startswith("think: off")
    assert chat.asked("/system Be brief.").endswith("a new conversation begins with them")
    assert chat.asked("/system") == "instructions: Be brief."
    assert chat.asked("/system -") == "there are no instructions now"
    assert chat.asked("/system Be brief.") == "instructions are set"
    chat.asked("Hello")
    assert left(chat, place)[0] == "Be brief."


def test_a_number_of_any_length_is_refused_and_ends_nothing() -> None:
    told: list[Exception] = []
    perform(SimpleNamespace(fail=told.append, talk=SimpleNamespace(undo=None)), "/undo " + "9" * 5000)  # type: ignore[arg-type]
    assert [str(error) for error in told] == [f"`{'9' * 40}` is not a whole number from 1 to 2**64 - 1"]


def test_what_is_told(chat: Chatter, place: dict[str, str]) -> None:
    chat.send("/set min")
    chat.until("min-p=")
    chat.send("\t0.1\r")
    chat.until("min-p is 0.1, from the next answer on\n>>>")
    chat.prompt()
    assert "nothing was said yet" in chat.asked("/stats")
    assert chat.asked("/state").startswith(
        "nothing was said; the state takes 406 kB, as it did at the first token\n"
    )
    chat.asked("Hello")
    stats = chat.asked("/stats")
    assert re.match(r"message: 23 tokens in [\d.]+ s \([\d.]+ tokens/s\)\nanswer: 24 tokens in ", stats)
    state = chat.asked("/state")
    assert re.match(
        r"\d+ tokens seen in 1 turn; the state takes 406 kB, as it did at the first token\n", state
    )
    assert "/undo [N]" in chat.asked("/help")
    chat.send("/br")
    chat.until("/branch  go on")
    chat.send("\t")
    chat.until(">>> /branch")
    chat.send(" x\t\x03")
    chat.prompt()
    assert len(left(chat, place)) == 2


def test_reading_can_be_stopped(chat: Chatter, place: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("It was a fine morning.\n" * 50_000)
    chat.send("/read long.txt\r")
    chat.until("long.txt ━")
    for _ in range(20):
        chat.pump(0.05)
    chat.send("\x03")
    told = chat.until("tokens of long.txt were read")
    assert "^C" not in told
    count = int(re.search(r"stopped: ([\d,]+) tokens", told)[1].replace(",", ""))  # type: ignore[index]
    chat.prompt()
    assert f"{count:,} tokens seen in " in chat.asked("/state")
    assert count < 1_000_000
    chat.asked("Hello")
    left(chat, place)
