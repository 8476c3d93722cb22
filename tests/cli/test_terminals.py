"""Locales, terminals that know few characters, and suspension: never an exception, never another text."""

from __future__ import annotations

import io
import os
import signal
import time

import pytest
from cli_runner import Terminal, receive, rwkv, rwkv_inside, start

from rwkvcli.cli.console import is_terminal
from rwkvcli.runtime.tokenizer import WorldTokenizer

POOR = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TEXT = "Über 日本 😀 – “x”"
IDS = [str(token) for token in WorldTokenizer().encode(TEXT)]


@pytest.mark.parametrize(
    "env", [POOR, {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}, {"LC_ALL": "en_US.ISO-8859-1"}]
)
def test_pipes_are_utf8_whatever_the_locale(env: dict[str, str]) -> None:
    done = rwkv("detokenize", "--tokenizer", "world", *IDS, env=env)
    assert (done.code, done.out, done.err) == (0, TEXT, "")
    assert rwkv("tokenize", "--tokenizer", "world", TEXT, env=env).out.split() == IDS
    if env is POOR:
        assert rwkv("tokenize", "--tokenizer", "world", stdin=TEXT, env=env).out.split() == IDS
    wrong = rwkv("show", "Über.pth", env=env)
    assert (wrong.code, wrong.out) == (3, "")
    assert wrong.err.startswith("error: Über.pth does not exist\n")


@pytest.mark.parametrize(
    ("encoding", "seen"),
    [
        ("cp1252", "Über ?? ? – “x”".encode("cp1252")),
        ("ascii", b"?ber ?? ? ? ?x?"),
        ("latin-1", "Über ?? ? ? ?x?".encode("latin-1")),
        ("utf-8", TEXT.encode()),
    ],
)
def test_a_terminal_gets_replacements_for_what_it_cannot_show(encoding: str, seen: bytes) -> None:
    env = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    terminal = Terminal("detokenize", "--tokenizer", "world", *IDS, env=env)
    assert terminal.finish().code == 0
    assert terminal.raw == seen + b"\r\n"
    terminal = Terminal("show", "日本.pth", env={**env, "NO_COLOR": "1"})
    assert terminal.finish().code == 3
    assert b"does not exist" in terminal.raw
    assert b"Traceback" not in terminal.raw


def test_the_c_locale_in_a_terminal() -> None:
    terminal = Terminal("detokenize", "--tokenizer", "world", *IDS, env=POOR)
    assert terminal.finish().code == 0
    assert terminal.raw.endswith(b"\r\n")
    assert b"Traceback" not in terminal.raw


@pytest.mark.skipif(not hasattr(signal, "SIGTSTP"), reason="no job control")
def test_a_suspended_generation_goes_on_where_it_was() -> None:
    args = ["generate", "-m", "demo", "--max-tokens", "300", "--seed", "1", "It was"]
    process = start(*args, process_group=0)  # an orphaned group, as under nohup, would ignore the signal
    assert process.stdout is not None
    first = receive(process.stdout, 20)
    process.send_signal(signal.SIGTSTP)
    pid, status = os.waitpid(process.pid, os.WUNTRACED)
    assert (pid, os.WIFSTOPPED(status)) == (process.pid, True)
    time.sleep(0.1)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert (first + out).decode() == rwkv_inside(*args).out


@pytest.mark.parametrize("terminal", [True, False])
def test_behind_a_bar_stderr_is_what_it_was(terminal: bool) -> None:
    """Rich puts this in its place, before Rich 15 without saying that it is a terminal."""

    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    class StandIn(io.StringIO):
        rich_proxied_file = Stream()

    assert is_terminal(StandIn()) is terminal
