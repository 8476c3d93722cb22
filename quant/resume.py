"""What an interrupted quantization had done, so that the next one can go on from there.

Beside the unfinished `.NAME.part` lies `.NAME.journal`: a line that says what was being made, and one for each finished
tensor, with the hash of its bytes. A tensor whose bytes are not (or no longer) those is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import IO

from quant.atomic import named, part_name
from quant.metrics import Loss, Losses

_DIGITS = 64
_IDENTITY = re.compile(rb"[0-9a-f]{%d}\n" % _DIGITS)
"""What a journal begins with."""
_LARGEST = 1e300
"""Losses are below it; JSON has whole numbers that no float holds."""


class Journal:
    """Use it as a context manager. `finished` and `add` tensors; `remove` it with the file's completion."""

    def __init__(self, target: Path, made: Mapping[str, object]) -> None:
        """`target`: the file to be written. `made`: all that its bytes depend on, ready for JSON."""
        self.path = _path(target)
        self._identity = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
        self._done: dict[str, tuple[str, Losses]] = {}

    def __enter__(self) -> Journal:
        """Read what there is, if it is of the same work, up to where it is damaged; raises OSError."""
        sound = self._read()
        self._file: IO[str] = self.path.open("r+" if sound else "w", encoding="utf-8", newline="\n")
        if sound:
            self._file.truncate(sound)  # what comes next must not be joined to half a line
            self._file.seek(0, os.SEEK_END)
        else:
            self._write(self._identity)
        return self

    def _read(self) -> int:
        """Fill `_done`; how many bytes of the file are sound, 0 if it is of other work."""
        data = b""
        with contextlib.suppress(OSError):
            data = self.path.read_bytes()
        first, *lines = data.split(b"\n")
        if first != self._identity.encode():
            return 0
        sound = len(first) + 1
        for line in lines[:-1]:  # what follows the last line end was being written
            done = _parsed(line)
            if done is None:
                break
            self._done[done[0]] = done[1], done[2]
            sound += len(line) + 1
        return sound if lines else 0

    def finished(self, name: str) -> tuple[str, Losses] | None:
        """The digest and the losses of a tensor that was done; None if it was not."""
        return self._done.get(name)

    def add(self, name: str, digest: str, losses: Losses) -> None:
        """Tensor `name` is in the file."""
        numbers = [number for loss in losses if loss is not None for number in astuple(loss)]
        self._write(json.dumps([name, digest, *numbers]))

    def _write(self, line: str) -> None:
        with named(self.path):
            self._file.write(line + "\n")
            self._file.flush()

    @staticmethod
    def remove(target: Path) -> None:
        """The file is complete, in one run or several: what an interrupted one noted is of no use any more."""
        path = _path(target)
        begin = b""
        with contextlib.suppress(OSError), path.open("rb") as file:
            begin = file.read(_DIGITS + 1)
        if _IDENTITY.fullmatch(begin):  # not a stranger's
            with contextlib.suppress(PermissionError):  # on Windows while something looks at it
                path.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _path(target: Path) -> Path:
    return target.with_name(part_name(target.name).removesuffix(".part") + ".journal")


def _parsed(line: bytes) -> tuple[str, str, Losses] | None:
    """The name, the digest and the losses of a finished tensor; None for what is no such line."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or len(found) not in (5, 8):
        return None
    name, digest, *numbers = found
    if not isinstance(name, str) or not isinstance(digest, str):
        return None
    if not all(type(number) in (int, float) and abs(number) < _LARGEST for number in numbers):
        return None
    recoding = Loss(*numbers[3:]) if numbers[3:] else None
    return name, digest, Losses(Loss(*numbers[:3]), recoding)


def digest_of(parts: Iterable[bytes]) -> str:
    """A hash of the stored bytes of a tensor's parts."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.hexdigest()
