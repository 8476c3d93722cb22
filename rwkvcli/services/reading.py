"""Feeding a whole file to a state, piece by piece, so that memory does not grow with it."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from rwkvcli.errors import SourceNotFound, UsageError
from rwkvcli.runtime.model import Model
from rwkvcli.runtime.state import State

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes that were read and their number in all."""

_BLOCK = 16 << 10
"""Bytes encoded at once; a block ends with a line, where it has one."""


class Reading:
    """A file in the reading: `state` has seen `done` bytes of it whenever it is looked at.

    `opening` goes before the text, `begin` the token that begins one.
    """

    def __init__(
        self, model: Model, state: State, path: Path, opening: str = "", begin: bool = False
    ) -> None:
        self._model = model
        self._path = path
        self._opening = opening
        self._begin = begin and not state.tokens_seen
        self.state = state
        self.done = 0
        self.finish = "interrupted"

    def run(self, on_progress: Progress | None = None) -> None:
        """Read to the end. Raises SourceNotFound, UsageError, and KeyboardInterrupt as it comes."""
        try:
            with self._path.open("rb") as file:
                total = os.fstat(file.fileno()).st_size
                for text, size in _blocks(file, self._path):
                    if on_progress is not None:
                        on_progress(self.done, total)
                    self._feed(text, size)
        except OSError as error:
            raise SourceNotFound(f"{self._path}: {(error.strerror or str(error)).lower()}") from None
        if not self.done:
            raise UsageError(f"{self._path} is empty")
        after = self.state.copy()
        self._model.forward(self._model.tokenizer.encode("\n\n"), after)
        self.state, self.finish = after, "stop"

    def _feed(self, text: str, size: int) -> None:
        ids = self._model.tokenizer.encode(self._opening + text if not self.done else text)
        if self._begin and not self.done:
            ids = [self._model.tokenizer.eos_id, *ids]
        after = self.state.copy()  # so that an interruption at any moment leaves one or the other
        if ids:
            self._model.forward(ids, after)
        self.state, self.done = after, self.done + size


def _blocks(file: BinaryIO, path: Path) -> Iterator[tuple[str, int]]:
    """The text in pieces, normalized as prompts are, each with its number of bytes in the file."""
    last: tuple[str, int] | None = None  # the line ends at the end of the file are dropped
    for text, size in _lines(file, path):
        if last is not None:
            yield last
        last = text.replace("\r\n", "\n"), size
    if last is not None:
        yield last[0].rstrip("\n"), last[1]


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[str, int]]:
    """Whole lines, many at once; one that is very long comes in parts."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    rest, size = "", 0
    while data := file.read(_BLOCK):
        if b"\0" in data:
            raise UsageError(f"{path} is no text", hint="it has bytes that are zero")
        rest += decoder.decode(data)
        size += len(data)
        end = rest.rfind("\n") + 1 or (len(rest) if len(rest) > 4 * _BLOCK else 0)
        if end:
            yield rest[:end], size
            rest, size = rest[end:], 0
    rest += decoder.decode(b"", final=True)
    if size or rest:
        yield rest, size
