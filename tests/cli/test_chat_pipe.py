"""`rwkv chat` without a terminal, and `rwkv sessions`: answers alone on stdout, saved and resumed, whole after signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_runner import ENDING, Outcome, environment, rwkv, rwkv_inside, start

SHORT = ["--max-tokens", "24"]


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    return {"RWKV_SESSIONS": str(tmp_path / "sessions"), "RWKV_THREADS": "1"}


def chat(place: dict[str, str], stdin: str | bytes, *args: str, **more: str) -> Outcome:
    return rwkv_inside("chat", *args, stdin=stdin, env={**place, **more})


def test_each_line_is_a_turn_and_answers_stand_alone(place: dict[str, str]) -> None:
    lines = "\ufeffHello\r\n\n  And you?  \nlast without an end"
    done = rwkv("chat", "-m", "demo", "--seed", "1", *SHORT, stdin=lines, env=place)
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == 3 and done.out.endswith("\n")
    assert not Path(place["RWKV_SESSIONS"]).exists()
    again = chat(place, "Hello\nAnd you?\n/undo\n", "demo", "--seed", "1", *SHORT)
    assert again.err == ""
    assert again.out.splitlines()[:2] == done.out.splitlines()[:2]
    assert chat(place, "", "demo") == Outcome(0, "", "")


def test_a_named_conversation_goes_on_where_it_was(place: dict[str, str]) -> None:
    whole = chat(place, "One\nTwo\nThree\n", "demo", "--seed", "1", *SHORT)
    parts = [chat(place, "One\n", "trip", "-m", "demo", "--seed", "1", *SHORT)]
    parts += [chat(place, text, "trip") for text in ("Two\n", "Three")]
    assert "".join(part.out for part in parts) == whole.out
    assert not any(part.err or part.code for part in parts)
    as_json = json.loads(chat(place, "Four \udcff".encode("utf-8", "surrogateescape"), "trip", "--json").out)
    assert as_json["usage"] == {"prompt_tokens": len("User: Four x\n\nAssistant:"), "completion_tokens": 24}
    assert as_json["finish_reason"] == "length"
    listed = json.loads(rwkv_inside("sessions", "--json", env=place).out)
    assert [(item["name"], item["model"], item["turns"]) for item in listed] == [("trip", "demo", 4)]
    # a default model does not count against the one of the session, one that is asked for does
    assert chat(place, "Five\n", "trip", RWKV_MODEL="nowhere.pth").code == 0
    wrong = chat(place, "Six\n", "trip", "-m", "nowhere.pth")
    assert (wrong.code, wrong.out) == (3, "")
    late = chat(place, "Six\n", "trip", "-s", "Be brief.")
    assert (late.code, late.out) == (2, "")
    assert "this one has begun" in late.err


def test_sessions_of_the_shell(place: dict[str, str], tmp_path: Path) -> None:
    assert rwkv_inside("sessions", env=place) == Outcome(
        0, "", f"no conversations in {place['RWKV_SESSIONS']}: `rwkv chat NAME` begins one\n"
    )
    answer = chat(place, "Hello\n", "trip", "-m", "demo", "-s", "Be brief.", *SHORT).out.strip()
    assert rwkv_inside("sessions", "list", env=place).out.splitlines()[1].split()[:3] == ["trip", "demo", "1"]
    out = rwkv_inside("sessions", "export", "trip", "--format", "jsonl", env=place).out
    assert [json.loads(line)["content"] for line in out.splitlines()] == ["Be brief.", "Hello", answer]
    assert rwkv_inside("sessions", "export", "trip", "--json", env=place) == Outcome(0, out, "")
    markdown = rwkv_inside("sessions", "export", "trip", env=place)
    assert rwkv_inside("sessions", "export", "trip", "--json", "--format", "md", env=place) == markdown
    file = tmp_path / "trip.md"
    assert rwkv_inside("sessions", "export", "trip", "-o", file, env=place) == Outcome(0, "", "")
    assert file.read_text() == f"# trip\n\n> Be brief.\n\n## User\n\nHello\n\n## Assistant\n\n{answer}\n"
    assert "exists already" in rwkv_inside("sessions", "export", "trip", "-o", file, env=place).err
    assert rwkv_inside("sessions", "rm", "trip", env=place) == Outcome(0, "", "trip was removed\n")
    assert rwkv_inside("sessions", "rm", "trip", env=place).code == 3
    for words in (["rm"], ["export", "a", "b"], ["list", "a"], ["move"]):
        assert rwkv_inside("sessions", *words, env=place).code == 2


def test_the_second_process_on_a_session_is_told(place: dict[str, str]) -> None:
    process = start("chat", "trip", "-m", "demo", *SHORT, stdin=subprocess.PIPE, env=environment(**place))
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"Hello\n")
    process.stdin.flush()
    assert process.stdout.readline()
    done = chat(place, "Hello\n", "trip")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: session trip is open in another process ({process.pid})\n"
        "hint: end that one, or begin another session\n"
    )
    assert rwkv_inside("sessions", "rm", "trip", env=place).code == 2
    process.communicate(timeout=30)
    assert chat(place, "Hello\n", "trip").code == 0


@pytest.mark.parametrize(("signum", "code"), ENDING)
def test_a_signal_keeps_the_answer_as_far_as_it_came(
    place: dict[str, str], signum: signal.Signals, code: int
) -> None:
    endless = ["--max-tokens", "-1", "--logit-bias", "0=-inf", "--logit-bias", "10=-inf", "--seed", "1"]
    process = start("chat", "trip", "-m", "demo", *endless, stdin=subprocess.PIPE, env=environment(**place))
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"Hello\nNever answered\n")
    process.stdin.flush()
    first = os.read(process.stdout.fileno(), 20)  # unbuffered: communicate() reads the rest
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, b"")
    done = rwkv_inside("sessions", "export", "trip", "--format", "jsonl", env=place)
    (_, reply) = [json.loads(line) for line in done.out.splitlines()]
    assert reply["content"] == (first + out).decode().removesuffix("\n")


def test_what_the_configuration_says_is_for_conversations_that_begin(
    place: dict[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    lines = ["model = 'demo'", "[chat]", "temperature = 0", "max-tokens = 9", "system = 'Be brief.'",
             "think = 'hide'", "sampler-order = 'temperature-first'"]  # fmt: skip

    def told(stdin: str, *args: str) -> Any:
        done = rwkv_inside("chat", *args, "--json", stdin=stdin, env={**place, "RWKV_CONFIG": str(config)})
        assert (done.code, done.err) == (0, ""), done.err
        return json.loads(done.out)

    config.write_text("\n".join(lines))
    first = told("Hello", "trip")
    assert first["usage"]["completion_tokens"] == 9
    assert told("Hello", "--seed", "3")["text"] == first["text"]
    assert told("Hello", "--temperature", "2", "--seed", "3")["text"] != first["text"]
    alone = rwkv_inside("chat", "-m", "demo", "-s", "Be brief.", "--temperature", "0", "--max-tokens", "9",
                        stdin="Hello")  # fmt: skip
    assert alone.out == first["text"] + "\n"
    config.write_text("\n".join([*lines[:2], "max-tokens = 5", "system = 'Be long.'"]))
    assert told("And you?", "trip")["usage"]["completion_tokens"] == 9  # it goes on with its own settings
    assert told("Hello", "--max-tokens", "7")["usage"]["completion_tokens"] == 7
    assert told("Hello")["usage"]["completion_tokens"] == 5
    assert told("Hello")["usage"]["prompt_tokens"] == len("Be long.\n\nUser: Hello\n\nAssistant:")
    assert told("Hello", "-s", "")["usage"]["prompt_tokens"] == len("User: Hello\n\nAssistant:")
    config.write_text("[chat]\ntop-p = -1\n")
    wrong = rwkv_inside("chat", "demo", stdin="Hello", env={"RWKV_CONFIG": str(config)})
    assert (wrong.code, wrong.err) == (
        2,
        "error: top_p must be above 0, not -1.0\nhint: 1 is off; for greedy use temperature 0\n",
    )


def test_what_makes_no_sense(place: dict[str, str]) -> None:
    for args, message in (
        (["trip", "--no-save", "-m", "demo"], "--no-save keeps nothing"),
        (["a:b", "-m", "demo"], "'a:b' is no name for a session"),
        (["my trip"], "'my trip' is no name for a session"),
        (["", "-m", "demo"], "'' is no name for a session"),
        (["-m", "demo", "--think", "show"], "do not think"),
        (["-m", "demo", "--top-p", "-1"], "top_p"),
        (["-m", "demo", "--template", "alpaca"], "no template 'alpaca'"),
    ):
        done = chat(place, "Hi\n", *args)
        assert (done.code, done.out) == (2, "")
        assert message in done.err
    done = chat(place, "Hi\n")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("error: no model is on this machine")
    assert not Path(place["RWKV_SESSIONS"]).exists()
