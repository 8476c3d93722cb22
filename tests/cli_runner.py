"""Running `rwkv`: exact stdout, stderr and exit code; as a process of its own, in pipes or in a pseudo-terminal, or in
this process, which takes a third of the time."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest import mock

import pytest

RWKV = [sys.executable, "-P", "-m", "rwkvcli"]  # -P: not the checkout that happens to be the current folder
ROWS, COLUMNS = 30, 100
_NOWHERE = "/nowhere/of/the/tests"
"""Where nothing was downloaded; a test that downloads names a folder of its own."""
_OURS = ("RWKV_", "HF_", "NO_COLOR", "COLUMNS", "PYTHONPATH", "PYTHONUTF8", "LC_", "LANG", "PYTHONDONTWRITE")
"""Beginnings of names. The last is Python's own: without compiled files every start compiles the program anew."""


ENDING = [
    (getattr(signal, name), code)
    for name, code in (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129))
    if hasattr(signal, name)
]
"""The signals that end a program, and the exit codes then."""
KNOWS_HOMES = pytest.mark.skipif(
    sys.platform == "win32", reason="Python on Windows only guesses the home folders of others"
)
HUB_LINKS = pytest.mark.skipif(
    sys.platform == "win32", reason="the Hub's cache has files in place of links on Windows"
)
READER_GONE = -signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 141
"""The exit code when nobody reads stdout any more."""


@dataclass(frozen=True)
class Outcome:
    """What a finished process left behind."""

    code: int
    out: str
    err: str


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what changes the command's behaviour, and with `extra`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}
    root = str(Path(__file__).parent.parent)
    here = {} if _is_installed() else {"PYTHONPATH": root}
    if sys.platform == "win32":
        here["HF_HUB_DISABLE_SYMLINKS"] = "1"  # which take a privilege
    return {**kept, **here, "COLUMNS": "80", "LC_ALL": "C.UTF-8", "HF_HUB_OFFLINE": "1",
            "RWKV_CUDA_LIBRARY": "", "RWKV_CONFIG": os.devnull, "HF_HOME": _NOWHERE, "RWKV_MODELS": f"{_NOWHERE}/models",
            **extra}  # fmt: skip


def rwkv(
    *args: str | Path,
    stdin: bytes | str = b"",
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    **more: Any,
) -> Outcome:
    """Run the command with `stdin` in a pipe, stdout and stderr in pipes."""
    _check_system(more)
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*RWKV, *map(str, args)],
        input=data,
        capture_output=True,
        cwd=cwd,
        env=environment(**(env or {})),
        timeout=60,
        check=False,
        **more,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def rwkv_inside(
    *args: str | Path,
    stdin: bytes | str = b"",
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> Outcome:
    """The same within this process, many times as fast: for tests of what a command says and does, and not of locales,
    signals, descriptors, imports, or what a library settles when it is first imported.
    """
    from rwkvcli.cli.app import main

    out, err = io.BytesIO(), io.BytesIO()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())  # which has a descriptor, as the real one does
        file.write(stdin.encode() if isinstance(stdin, str) else stdin)
        file.seek(0)
        streams = {
            "stdin": io.TextIOWrapper(file, encoding="utf-8"),
            "stdout": io.TextIOWrapper(out, encoding="utf-8", newline="\n"),
            "stderr": io.TextIOWrapper(err, encoding="utf-8", newline="\n"),
        }
        for name, stream in streams.items():
            stack.enter_context(mock.patch.object(sys, name, stream))
        stack.enter_context(mock.patch.dict(os.environ, environment(**(env or {})), clear=True))
        stack.enter_context(contextlib.chdir(cwd or Path.cwd()))
        code = main(list(map(str, args)))
        streams["stdout"].flush()
        streams["stderr"].flush()
        return Outcome(code, out.getvalue().decode(), err.getvalue().decode())


class Running(subprocess.Popen[bytes]):
    """A process; the test that sends it a signal ends there as skipped on Windows, where that ends it as `kill` does."""

    def send_signal(self, number: int) -> None:
        """Send it."""
        if sys.platform == "win32":
            self.kill()
            self.communicate()
            pytest.skip("Windows sends one process no signal")
        super().send_signal(number)


def start(*args: str | Path, cwd: Path | None = None, command: Sequence[str] = RWKV, **more: Any) -> Running:
    """Start the command and leave it running. Pipes have no buffer, whose bytes `communicate` would not see."""
    _check_system(more)
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.PIPE)
    more.setdefault("stdin", subprocess.DEVNULL)
    more.setdefault("env", environment())
    return Running([*command, *map(str, args)], cwd=cwd, bufsize=0, **more)


def small_files(size: int) -> Callable[[], None]:
    """What, done in a process before it begins, keeps it from writing files of more bytes."""
    if sys.platform == "win32":
        pytest.skip("Windows does not limit how large a file of a process may be")
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _check_system(more: dict[str, Any]) -> None:
    if sys.platform == "win32" and "preexec_fn" in more:
        pytest.skip("Windows does nothing in a process before it begins")


def receive(pipe: IO[bytes], count: int) -> bytes:
    """The next `count` bytes of a pipe without a buffer; fewer only at its end."""
    data = b""
    while len(data) < count and (more := pipe.read(count - len(data))):
        data += more
    return data


def pseudo_terminals() -> Any:
    """The package pexpect. It knows no pseudo-terminals of Windows: a test that needs one is skipped there."""
    if sys.platform == "win32":
        pytest.skip("pexpect makes no pseudo-terminals on Windows")
    import pexpect

    return pexpect


class Terminal:
    """The command in a pseudo-terminal, and the screen that a person would see."""

    def __init__(self, *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
        everything = environment(**{"TERM": "xterm-256color", **(env or {})})
        everything.pop("COLUMNS")
        self.child = pseudo_terminals().spawn(
            sys.executable,
            [*RWKV[1:], *map(str, args)],
            cwd=cwd,
            env=everything,  # type: ignore[arg-type]
            dimensions=(ROWS, COLUMNS),
            timeout=30,
        )
        self.raw = b""

    def until(self, text: str) -> None:
        """Wait until `text` was written."""
        self.child.expect_exact(text)
        self.raw += (self.child.before or b"") + text.encode()

    def finish(self) -> Outcome:
        """Wait for the end; `out` is the screen without empty lines at its end."""
        self.child.expect(pseudo_terminals().EOF)
        self.raw += self.child.before or b""
        self.child.close()
        code = self.child.exitstatus if self.child.exitstatus is not None else -(self.child.signalstatus or 0)
        return Outcome(code, self.screen(), "")

    def screen(self) -> str:
        """What stands on the screen."""
        import pyte

        screen = pyte.Screen(COLUMNS, ROWS)
        pyte.ByteStream(screen).feed(self.raw)
        return "\n".join(line.rstrip() for line in screen.display).rstrip("\n")


def _is_installed() -> bool:
    """Whether `rwkvcli` comes from site-packages rather than from this checkout."""
    import rwkvcli

    return "site-packages" in Path(rwkvcli.__file__).parts  # which may lie below the checkout, in .venv
