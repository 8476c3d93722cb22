"""What Windows does otherwise: as far as that can be, tested everywhere."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_runner import environment, rwkv_inside, start

from rwkvcli.cli import clipboard, signals
from rwkvcli.cli.app import main
from rwkvcli.cli.console import is_terminal
from rwkvcli.cli.pipes import can_read
from rwkvcli.cli.signals import end_tidily, exit_code, held_signals, reader_is_gone, time_limit
from rwkvcli.errors import Cancelled, TimedOut, UsageError

on_windows = pytest.mark.skipif(sys.platform != "win32", reason="of Windows")


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit without an alarm."""
    monkeypatch.setattr(signals, "_alarm", signals._timer, raising=False)


def _wait() -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.usefixtures("timer")
def test_a_time_limit_without_an_alarm() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TimedOut, match=r"^not finished after 0.05 s$"), time_limit(0.05):
        _wait()
    with pytest.raises(TimedOut, match=r"^not finished after 0.05 s$"), time_limit(0.05):
        try:
            _wait()
        except TimedOut:
            raise UsageError("llguidance gave up") from None
    with time_limit(60):
        pass
    with pytest.raises(KeyboardInterrupt), time_limit(60):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("timer")
def test_a_time_limit_without_an_alarm_stops_what_only_asks() -> None:
    with pytest.raises(TimedOut), time_limit(0.05), held_signals() as stopped:
        end = time.monotonic() + 10
        while not stopped() and time.monotonic() < end:
            time.sleep(0.01)
        raise Cancelled("stopped")


def test_a_time_limit_counts_while_a_pipe_is_waited_for() -> None:
    process = start("generate", "-m", "demo", "--timeout", "1", stdin=subprocess.PIPE)
    assert process.wait(30) == 124
    assert process.communicate() == (
        b"", b"error: not finished after 1 s\nhint: --timeout gives it more time\n",
    )  # fmt: skip


class _Closed(io.StringIO):
    """A pipe that nobody reads, as Windows tells it."""

    def flush(self) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.parametrize("args", [["--version"], ["tokenize", "--tokenizer", "bytes", "x"]])
def test_a_reader_that_has_gone_is_an_invalid_argument(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reader_is_gone(OSError(errno.EPIPE, "")) and reader_is_gone(OSError(errno.EINVAL, "")) == (
        sys.platform == "win32"
    )
    for module in ("app", "console"):
        monkeypatch.setattr(f"rwkvcli.cli.{module}.reader_is_gone", lambda error: error.errno == errno.EINVAL)
    monkeypatch.delattr(signal, "SIGPIPE", raising=False)
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr("sys.stdout", _Closed())
    assert main(args) == 141
    assert capsys.readouterr().err == ""


def test_ctrl_break_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    assert [exit_code(number) for number in (signal.SIGINT, signal.SIGTERM, 21)] == [130, 143, 130]


@on_windows
def test_ctrl_break_ends_a_program() -> None:
    ctrl_break: Any = signal.Signals["SIGBREAK"]
    before = signal.signal(ctrl_break, signal.SIG_DFL)
    try:
        end_tidily()
        with pytest.raises(SystemExit, match=r"^130$"):
            signal.raise_signal(ctrl_break)
    finally:
        signal.signal(ctrl_break, before)


@on_windows
def test_ctrl_break_ends_a_server_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    from rwkvcli.cli import serve

    ctrl_break: Any = signal.Signals["SIGBREAK"]
    monkeypatch.setattr(serve, "_tell", lambda *_, **__: signal.raise_signal(ctrl_break))
    assert rwkv_inside("serve", "-m", "demo", "--port", "0").code == 0


def test_nul_is_no_terminal() -> None:
    with open(os.devnull) as nothing:
        assert not is_terminal(nothing)
    process = start("generate", "-m", "demo", "--jsonl", stdin=subprocess.DEVNULL)
    assert (process.communicate(timeout=30), process.returncode) == ((b"", b""), 0)


def test_whether_a_pipe_can_be_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    assert not can_read(reader, 0) and not can_read(reader, 0.02)
    os.write(writer, b"x")
    assert can_read(reader, 10)
    assert os.read(reader, 10) == b"x" and not can_read(reader, 0)
    os.close(writer)
    assert can_read(reader, 10) and os.read(reader, 10) == b""
    os.close(reader)
    with (tmp_path / "file").open("w+b") as file:
        assert can_read(file.fileno(), 0)


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "utf-8"])
def test_pipes_are_utf8_in_any_code_page(encoding: str) -> None:
    process = start(
        "generate", "-m", "demo", "--max-tokens", "0", "--echo",
        stdin=subprocess.PIPE, env=environment(PYTHONIOENCODING=encoding),
    )  # fmt: skip
    out, err = process.communicate("\ufeffé 😀\r\nb\x1ac\r\n".encode(), timeout=30)
    assert (process.returncode, out, err) == (0, "é 😀\nb\x1ac".encode(), b"")


def test_lines_of_a_file_are_bytes(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b'"a"\r\n{"prompt": "b", "id": "\x1a"}\r\n"c"')
    done = rwkv_inside("generate", "-m", "demo", "--jsonl", "-f", "lines", "--max-tokens", "1", cwd=tmp_path)
    # a raw control character is no JSON, and what stands after it is read all the same
    assert [line.partition(",")[0] for line in done.out.splitlines()] == ['{"id": 0', '{"id": 1', '{"id": 2']
    assert done.code == 7


def test_the_clipboard_takes_utf16(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(sys, "platform", "win32")
    for name in ("WAYLAND_DISPLAY", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        clipboard.subprocess, "run", lambda *words, **how: given.append((words, how["input"]))
    )
    assert clipboard.copy("é 😀", given.append) == "by clip.exe"
    assert given == [((["clip.exe"],), "é 😀".encode("utf-16"))]
