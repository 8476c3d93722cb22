"""Drawing an answer apart from making it: a slow terminal delays what is seen, never the model."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rwkvcli.cli.markdown import DIM, Painter

if TYPE_CHECKING:
    from rwkvcli.services.answering import Part

FRAME = 1 / 30
"""Seconds between two drawings."""
_THINKING = "thinking ..."


class AnswerView:
    """The look of one answer: thoughts dim above it, or a word in their place while they go on.

    `styled`: colours, and styles in place of Markdown's marks; else the text as it is. `wraps`: at words.
    """

    def __init__(self, *, styled: bool, wraps: bool, shows_thoughts: bool) -> None:
        self._shows = shows_thoughts
        self._styled = styled
        self._thoughts = Painter(_width, marks=False, style=(DIM,) if styled else (), wraps=wraps)
        self._answer = Painter(_width, marks=styled, wraps=wraps)
        self._thinks = False

    def push(self, part: Part) -> str:
        """What can be drawn now."""
        if not part.text:
            return ""
        begin = ""
        if part.thinking:
            if self._shows:
                self._thinks = True
                return self._thoughts.push(part.text)
            if not self._thinks and self._styled:
                begin = f"\x1b[{DIM}m{_THINKING}\x1b[0m"
            self._thinks = True
            return begin
        return self._end_thoughts() + self._answer.push(part.text)

    def flush(self) -> str:
        """The rest, and a line end."""
        return self._end_thoughts("") + self._answer.flush() + "\n"

    def _end_thoughts(self, between: str = "\n\n") -> str:
        if not self._thinks:
            return ""
        self._thinks = False
        if self._shows:
            return self._thoughts.flush() + between
        return "\r\x1b[K" if self._styled else ""


class Drawing:
    """Draws what is pushed at most every FRAME seconds, in a thread of its own. A context manager.

    At the end everything is drawn. A terminal that is gone is written to no more.
    """

    def __init__(self, view: AnswerView, write: Callable[[str], None]) -> None:
        self._view = view
        self._write = write
        self._parts: list[Part] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)

    def push(self, part: Part) -> None:
        """Draw it soon."""
        with self._changed:
            self._parts.append(part)
            self._changed.notify()

    def __enter__(self) -> Drawing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError, ValueError):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._parts or self._ended)
                    parts, self._parts = self._parts, []
                    ended = self._ended
                text = "".join(map(self._view.push, parts))
                if ended:
                    self._write(text + self._view.flush())
                    return
                if text:
                    self._write(text)
                    time.sleep(FRAME)


def _width() -> int:
    """Columns for text; the last one stays free, where terminals differ in what they do."""
    return max(shutil.get_terminal_size().columns - 1, 10)


@contextmanager
def terminal_restored() -> Iterator[list[Any] | None]:
    """Whatever happens inside, the terminal is afterwards as it was. Yields how it is; None: stdin is none, or a console of
    Windows, which is never changed for longer than it is read from."""
    if sys.platform == "win32":
        yield None
        return
    try:
        import termios

        handle = sys.stdin.fileno()
        before: list[Any] = termios.tcgetattr(handle)
    except (OSError, ValueError):
        yield None
        return
    try:
        yield before
    finally:
        with suppress(OSError, termios.error):
            termios.tcsetattr(handle, termios.TCSADRAIN, before)


@contextmanager
def no_echo(*, in_lines: bool) -> Iterator[None]:
    """What is typed meanwhile is not shown in the middle of the answer (a console of Windows shows it only while it is read
    from); it is there for the next message.

    `in_lines`: that is read as lines, as the terminal itself edits them; else key by key, Ctrl-D too.
    """
    with terminal_restored() as before:
        if sys.platform == "win32" or before is None:
            yield
            return
        import signal
        import termios

        handle, local = sys.stdin.fileno(), 3  # of the attributes: the flags of the line discipline
        off = termios.ECHO | (0 if in_lines else termios.ICANON)
        quiet = [*before[:local], before[local] & ~off, *before[local + 1 :]]

        def be_quiet(*_: object) -> None:
            with suppress(OSError, termios.error):  # a terminal that is closed says it with this signal too
                if os.tcgetpgrp(handle) == os.getpgrp():  # in the background it would be stopped again
                    termios.tcsetattr(handle, termios.TCSADRAIN, quiet)

        be_quiet()
        resumed = signal.signal(
            signal.SIGCONT, be_quiet
        )  # a shell sets the terminal to its own liking meanwhile
        try:
            yield
        finally:
            signal.signal(signal.SIGCONT, resumed)
