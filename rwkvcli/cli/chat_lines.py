"""Messages of several lines, and reading messages where the line editor cannot draw: TERM=dumb."""

from __future__ import annotations

import sys

from rwkvcli.cli.console import Console
from rwkvcli.cli.signals import Interruption

BLOCK = '"""'
PROMPT = ">>> "
MORE = "... "


def unquoted(text: str) -> str:
    """The message without the quotes around a block of lines."""
    bare = text.strip()
    if bare.startswith(BLOCK):
        return bare.removeprefix(BLOCK).removesuffix(BLOCK).strip("\n")
    return text


def in_block(text: str) -> bool:
    """Whether a block was begun and not ended."""
    bare = text.strip()
    return bare.startswith(BLOCK) and not (bare.endswith(BLOCK) and len(bare) >= 2 * len(BLOCK))


class PlainReader:
    """Reads messages line by line as the terminal itself edits them; the same interface as Editor."""

    def __init__(self, console: Console, signals: Interruption) -> None:
        self._console = console
        self._signals = signals

    def read(self, draft: str = "") -> str:
        """A message. A draft cannot be changed here, so it is shown. Raises EOFError, KeyboardInterrupt."""
        if draft:
            self._console.line(f"(it was: {draft})")
        text = self._line(PROMPT)
        while in_block(text):
            text += "\n" + self._line(MORE)
        return unquoted(text)

    def _line(self, prompt: str) -> str:
        self._console.write(prompt)
        try:
            with self._signals.raising():
                line = sys.stdin.readline()
        except KeyboardInterrupt:
            self._console.line("")
            raise
        if not line.endswith("\n"):
            self._console.line("")
            raise EOFError
        return line.removesuffix("\n")
