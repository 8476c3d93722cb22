"""`rwkv serve --keep`: conversations outlive the server, and are what they would be without it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from cli_runner import rwkv_inside
from served_process import ask, served

from rwkvcli.services.kept_states import kept_folder

TURNS = ("Tell me of the rivers of the north.", "And of those of the south?", "Which of them is longest?")
NO_END = {"logit_bias": {"0": -1000, "10": -1000}}


class Talk:
    """A conversation, of which a program sends all with every message."""

    def __init__(self, **more: Any) -> None:
        self.messages: list[dict[str, str]] = []
        self.more = {"temperature": 1.0, "max_tokens": 24, **NO_END, **more}

    def turn(self, url: str) -> tuple[str, int, int]:
        """The answer to the next message; tokens of the prompt, and how many of them were known."""
        number = len(self.messages) // 2
        self.messages.append({"role": "user", "content": TURNS[number]})
        said = ask(url, {"messages": self.messages, "seed": number, **self.more})
        self.messages.append(said["choices"][0]["message"])
        used = said["usage"]
        known = used["prompt_tokens_details"]["cached_tokens"]
        return self.messages[-1]["content"], used["prompt_tokens"], known


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> list[str]:
    """End the server. Returns what it said on stderr."""
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return err.decode().splitlines()


@pytest.mark.parametrize("cache", ["512MB", "0"])
def test_a_conversation_goes_on_after_a_restart(tmp_path: Path, cache: str) -> None:
    with served() as (_, url):
        talk = Talk()
        expected = [talk.turn(url) for _ in TURNS]
    keep = ("--keep", str(tmp_path / "kept"), "--cache", cache)
    talk, turns = Talk(), []
    for _ in TURNS:
        with served(*keep) as (process, url):
            turns.append(talk.turn(url))
            end(process)
            assert process.returncode == 0
    assert [text for text, _, _ in turns] == [text for text, _, _ in expected]
    assert turns[0][2] == 0
    for (_, tokens, known), (_, _, before) in zip(turns[1:], expected[1:], strict=True):
        assert known == before
        assert (
            tokens - known < 50
        )  # at most one for each of 26 bytes of a message, 20 of the template, one drawn


def test_a_conversation_goes_on_from_a_state_too(tmp_path: Path) -> None:
    manual = tmp_path / "manual.state"
    assert rwkv_inside("state", "build", "-m", "demo", "-o", manual, stdin="The manual says so.").code == 0
    keep = ("--keep", str(tmp_path / "kept"), "--state", str(manual))
    talk, other = Talk(model="manual"), Talk()
    for known in (False, True):
        with served(*keep) as (process, url):
            assert (talk.turn(url)[2] > 50) is known  # its first prompt alone has 53 tokens
            assert (other.turn(url)[2] > 50) is known
            end(process)


def test_a_folder_is_of_one_server(tmp_path: Path) -> None:
    with served("--keep", str(tmp_path)) as (process, _):
        done = rwkv_inside("serve", "-m", "demo", "--port", "0", "--keep", tmp_path)
        assert (done.code, done.out) == (2, "")
        assert done.err == (
            f"error: {tmp_path} is in use by another server ({process.pid})\n"
            "hint: each server needs a folder of its own\n"
        )


def test_what_it_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for args, message in (
        (("--keep", tmp_path / "file"), f"error: {tmp_path / 'file'}: not a folder\nhint: --keep names"),
        (("--keep-size", "much"), "error: 'much' is no size\n"),
        (("--keep", tmp_path, "--keep-size", "1kB"), "error: one state of this model takes 406,528 bytes"),
    ):
        done = rwkv_inside("serve", "-m", "demo", "--port", "0", *args)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(message)
    config = {"RWKV_CONFIG": str(tmp_path / "config.toml")}
    for key, value in (("keep", str(tmp_path / "kept")), ("keep-size", "2kB")):
        assert rwkv_inside("config", "set", f"serve.{key}", value, env=config).code == 0
    done = rwkv_inside("serve", "-m", "demo", "--port", "0", env=config)
    assert done.err.endswith("and all are to take 2,000\nhint: --keep-size SIZE allows more\n")
    done = rwkv_inside("serve", "-m", "demo", "--port", "0", "--keep", "")
    assert "error: invalid value for '--keep': the name is empty\n" in done.err


def test_how_many_states_there_are_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rwkvcli.services.serving import Texts

    monkeypatch.setattr(Texts, "run", Texts.close)
    with kept_folder(str(tmp_path)):
        pass
    done = rwkv_inside("serve", "-m", "demo", "--port", "0", "--keep", tmp_path)
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith(f"states of earlier conversations in {tmp_path}: 0\ndemo answers at ")
    done = rwkv_inside("--json", "serve", "-m", "demo", "--port", "0", "--keep", tmp_path)
    assert done.out.endswith('"states": 0}\n')


def test_a_second_signal_ends_the_writing(tmp_path: Path) -> None:
    program = """if True:
        import sys, time
        from rwkvcli.cli.app import main
        from rwkvcli.services import kept_states, prefixes
        prefixes._LAST = 1000.0
        def write(*_):
            print("writing", file=sys.stderr, flush=True)
            time.sleep(1000)
        kept_states.KeptStates._write = write
        sys.exit(main())
    """
    command: Sequence[str] = [sys.executable, "-P", "-c", program]
    with served("-q", "--keep", str(tmp_path), command=command) as (process, url):
        Talk().turn(url)
        assert process.stderr is not None
        line = b""
        while not line.endswith(b"writing\n"):
            line += process.stderr.read(1)
        for _ in range(60):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
                break
        assert process.poll() is not None
