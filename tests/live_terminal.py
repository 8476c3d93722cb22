"""The command in a pseudo-terminal that answers like a real one, and a screen that can be looked at meanwhile."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from cli_runner import RWKV, environment, pseudo_terminals


class LiveTerminal:
    """A person's terminal: type with `send`, look with `text`, wait with `until`."""

    def __init__(
        self,
        *args: str | Path,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        rows: int = 40,
        columns: int = 80,
        shell: str | None = None,
    ) -> None:
        """`shell`: a program that is there to start the command, by `send(self.command)`."""
        everything = environment(**{"TERM": "xterm-256color", **(env or {})})
        everything.pop("COLUMNS")
        words = [*RWKV, *map(str, args)]
        self.command = shlex.join(words) + "\r"
        program, *rest = words if shell is None else shlex.split(shell)
        self._package = pseudo_terminals()
        import pyte

        self.child = self._package.spawn(
            program, rest, cwd=cwd, env=everything, dimensions=(rows, columns), timeout=30,  # type: ignore[arg-type]
        )  # fmt: skip
        self.child.delaybeforesend = None
        self.raw = b""
        self.screen = pyte.HistoryScreen(columns, rows, history=2000, ratio=0.5)
        self.screen.write_process_input = self._answer  # type: ignore[method-assign]
        self._stream = pyte.ByteStream(self.screen)
        self._shown: str | None = None

    def _answer(self, data: str) -> None:
        """What the terminal itself says, asked where the cursor is."""
        self.child.send(data)

    def send(self, text: str) -> None:
        """Type."""
        self.child.send(text)

    def pump(self, seconds: float = 0.05) -> bool:
        """Draw what has come; False at the end of the program."""
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except self._package.TIMEOUT:
            return True
        except self._package.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        self._shown = None
        return True

    def text(self) -> str:
        """What stands on the screen."""
        if self._shown is None:
            self._shown = "\n".join(line.rstrip() for line in self.screen.display).rstrip("\n")
        return self._shown

    def until(self, wanted: Any, seconds: float = 20) -> str:
        """Wait until `wanted` is on the screen (text), or says yes to the screen's text (a function)."""
        test = wanted if callable(wanted) else lambda text: wanted in text
        end = time.monotonic() + seconds
        while not test(self.text()):
            if not self.pump() or time.monotonic() > end:
                if test(self.text()):
                    break
                raise AssertionError(f"never came: {wanted}\n{self.text()}")
        return self.text()

    def prompt(self) -> str:
        """Wait for the line editor to be ready for a message: nothing is typed there yet."""
        return self.until(lambda text: text.split("\n")[-1] == ">>> message, or /help")

    def say(self, text: str) -> str:
        """Send a message or command, and wait for the next prompt."""
        self.send(text)
        self.until(lambda screen: screen.rsplit(">>> ", 1)[-1].startswith(text.rstrip()))
        self.send("\r")
        return self.prompt()

    def finish(self) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        while self.pump(1):
            pass
        self.child.close()
        code: int | None = self.child.exitstatus
        return code if code is not None else -(self.child.signalstatus or 0)
