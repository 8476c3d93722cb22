"""What an interrupted quantization had done, so that the next one can go on from there.

Beside the unfinished `.NAME.part` lies `.NAME.journal`: a line that says what was being made, and one for each finished
tensor, with the hash of its bytes. A tensor whose bytes are not (or no longer) those is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import IO

from quant.atomic import part_name
from quant.metrics import Loss, Losses


class Journal:
    """Use it as a context manager. `finished` and `add` tensors; `remove` it with the file's completion."""

    def __init__(self, target: Path, made: Mapping[str, object]) -> None:
        """`target`: the file to be written. `made`: all that its bytes depend on, ready for JSON."""
        self.path = target.with_name(part_name(target.name).removesuffix(".part") + ".journal")
        self._identity = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
        self._done: dict[str, tuple[str, Losses]] = {}

    def __enter__(self) -> Journal:
        """Read what there is, if it is of the same work; raises OSError."""
        with contextlib.suppress(OSError, ValueError):
            first, *lines = self.path.read_text("utf-8").split("\n")
            if first == self._identity:
                for line in lines[:-1]:  # what follows the last line end was being written
                    name, digest, *numbers = json.loads(line)
                    recoding = Loss(*numbers[3:]) if numbers[3:] else None
                    self._done[name] = digest, Losses(Loss(*numbers[:3]), recoding)
        self._file: IO[str] = self.path.open("a" if self._done else "w", encoding="utf-8")
        if not self._done:
            self._file.write(self._identity + "\n")
            self._file.flush()
        return self

    def finished(self, name: str) -> tuple[str, Losses] | None:
        """The digest and the losses of a tensor that was done; None if it was not."""
        return self._done.get(name)

    def add(self, name: str, digest: str, losses: Losses) -> None:
        """Tensor `name` is in the file."""
        numbers = [number for loss in losses if loss is not None for number in astuple(loss)]
        self._file.write(json.dumps([name, digest, *numbers]) + "\n")
        self._file.flush()

    def remove(self) -> None:
        """The file is complete."""
        self.path.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def digest_of(parts: Iterable[bytes]) -> str:
    """A hash of the stored bytes of a tensor's parts."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.hexdigest()
