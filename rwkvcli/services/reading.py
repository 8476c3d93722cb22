"""Feeding a whole file to a state, piece by piece, so that memory does not grow with it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from rwkvcli.errors import Cancelled, SourceNotFound, UsageError
from rwkvcli.runtime.long_text import read_text
from rwkvcli.runtime.model import Model
from rwkvcli.runtime.prefill import feed
from rwkvcli.runtime.state import State
from rwkvcli.runtime.tokenizer import text_to_bytes

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes that were read and their number in all."""

_END = b"\n\n"
"""What stands between a text and the next turn."""


class Reading:
    """A file in the reading. `state`, which is advanced, sees what `opening` says, the text without line ends at its
    end, and a blank line; the token that begins a text comes first if `begin` and nothing was seen before.
    """

    def __init__(
        self, model: Model, state: State, path: Path, opening: str = "", begin: bool = False
    ) -> None:
        self._model = model
        self._path = path
        self._opening = text_to_bytes(opening)
        self._before = [model.tokenizer.eos_id] if begin and not state.tokens_seen else []
        self._given = 0  # bytes handed over to be fed
        self._ended = False
        self.state = state

    def run(self, on_progress: Progress | None = None, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Read to the end, or till `stopped`, which is asked between calls of the engine, says yes: False then.

        Raises SourceNotFound, UsageError (not a text); the state is of no use after that.
        """

        def fed(_tokens: int, done: int) -> None:
            if on_progress is not None:
                on_progress(min(max(done - len(self._opening), 0), total), total)
            if stopped() and not (self._ended and done == self._given):
                raise Cancelled("stopped")

        try:
            mode = self._path.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # one may wait for it without end
                raise UsageError(f"{self._path} is not a regular file")
            with self._path.open("rb") as file:
                total = os.fstat(file.fileno()).st_size
                feed(self._model, self._model.tokenizer, self.state, self._counted(file), self._before, fed)
        except OSError as error:
            raise SourceNotFound(f"{self._path}: {(error.strerror or str(error)).lower()}") from None
        except Cancelled:
            self._model.evaluate(self._model.tokenizer.encode_bytes(_END), self.state)
            return False
        return True

    def _counted(self, file: BinaryIO) -> Iterator[bytes]:
        for piece in self._text(file):
            self._given += len(piece)
            yield piece
        self._ended = True

    def _text(self, file: BinaryIO) -> Iterator[bytes]:
        yield self._opening
        held = b""  # line ends, which are dropped if nothing follows
        empty = True
        for piece in read_text(file):
            if b"\0" in piece:
                raise UsageError(f"{self._path} is no text", hint="it has bytes that are zero")
            text = piece.rstrip(b"\n")
            if text:
                yield held + text
                held, empty = b"", False
            held += piece[len(text) :]
        if empty:
            raise UsageError(f"{self._path} is empty")
        yield _END
