"""`--jsonl`: lines of JSON in, lines of JSON out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from rwkvcli.cli.console import Console, is_terminal
from rwkvcli.cli.options import Misuse
from rwkvcli.cli.pipes import can_read
from rwkvcli.cli.prompt import STDIN, opened
from rwkvcli.cli.signals import stopping_between
from rwkvcli.errors import Cancelled, LinesFailed, SourceNotFound, TimedOut

_CHUNK = 1 << 16
_PATIENCE = 0.1
"""Seconds between two looks at whether to stop, while waiting for a line."""
_BOM = b"\xef\xbb\xbf"


class LineReader:
    """The lines of files, one after the other, as they come: a writer that waits for an answer gets it.

    Use it as a context manager. Raises SourceNotFound for a file that cannot be read, at once.
    """

    def __init__(self, names: Sequence[str], check: Callable[[], None] = lambda: None) -> None:
        self.check = check
        self._buffer = bytearray()
        self._begun = False
        self._files = [_opened(name) for name in names]

    def __call__(self, wait: bool) -> bytes | None:
        """The next line with its end; b"" after the last, None if it is not here yet and `wait` is False."""
        while b"\n" not in self._buffer:
            if not self._files:
                line, self._buffer = bytes(self._buffer), bytearray()
                return line
            if not self._is_ready(wait):
                return None
            data = os.read(self._files[0], _CHUNK)
            self._buffer += data if self._begun else data.removeprefix(_BOM)
            self._begun = True
            if not data:
                self._next_file()
        end = self._buffer.index(b"\n") + 1
        line = bytes(self._buffer[:end])
        del self._buffer[:end]
        return line

    def __enter__(self) -> LineReader:
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            self._next_file()

    def _next_file(self) -> None:
        os.close(self._files.pop(0))
        self._begun = False
        if self._buffer:
            self._buffer += b"\n"  # a last line without an end

    def _is_ready(self, wait: bool) -> bool:
        """Whether reading will not block."""
        while not can_read(self._files[0], _PATIENCE if wait else 0):
            if not wait:
                return False
            self.check()
        return True


def sources(prompt: str | None, files: Sequence[str]) -> list[str]:
    """What the lines come from: the files, else stdin."""
    if prompt is not None:
        raise Misuse("--jsonl takes its prompts from lines of JSON: leave PROMPT out")
    if not files and is_terminal(sys.stdin):
        raise Misuse("no lines: give -f FILE, or pipe them in (stdin is a terminal)")
    return list(files) or [STDIN]


class Answers(Protocol):
    """The results for the lines, in their order, and how many lines there were. After an interruption `rest` has those that
    are finished."""

    given: int
    failed: int

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def rest(self) -> Sequence[dict[str, Any]]: ...


_Answers = TypeVar("_Answers", bound=Answers)


def run_lines(
    console: Console,
    reader: LineReader,
    answers: Callable[[Callable[[], None]], _Answers],
    limit: tuple[float | None, float],
    tell: Callable[[_Answers], None] = lambda made: None,
) -> None:
    """Answer every line, in order: `answers` is given what to call between calls of the engine, and `tell` is called when all
    are written. Raises LinesFailed at the end if some could not be."""
    with reader, stopping_between(*limit) as check:
        reader.check = check
        made = answers(check)

        def write(result: dict[str, object]) -> None:
            if "model" in result:
                result["model"] = console.settings.model
            console.json(result)

        try:
            for result in made:
                write(result)
        except (Cancelled, TimedOut):
            for result in made.rest():
                write(result)
            raise
    tell(made)
    if made.failed:
        lines = "line" if made.given == 1 else "lines"
        raise LinesFailed(
            f"{made.failed} of {made.given} {lines} failed", hint="each has an `error` in its place"
        )


def throughput(prompt: int, completion: int, seconds: float) -> str:
    """Tokens and speed of several texts made together."""
    speed = completion / seconds
    return (
        f"prompts {prompt} tokens, generation {completion} tokens in {seconds:.2f} s ({speed:.1f} tokens/s)"
    )


def _opened(name: str) -> int:
    """A descriptor of the file `name`."""
    if name == STDIN:
        if sys.stdin is None:
            return os.open(os.devnull, os.O_RDONLY)
        return os.dup(sys.stdin.fileno())
    try:
        with opened(name) as file:
            return os.dup(file.fileno())
    except RuntimeError:  # expanduser's
        raise SourceNotFound(f"{name}: there is no such home folder") from None
    except OSError as error:
        raise SourceNotFound(
            f"{name}: {(error.strerror or str(error)).lower()}", hint="-f takes a file of JSON lines"
        ) from None
