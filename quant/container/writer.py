"""Writing a model file: tensor by tensor, in any order, and atomically.

Everything goes to a temporary file in the target's folder. Only `finish` puts it in place; until then an
existing target is as it was, and leaving the `with` block in any other way removes the temporary file.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from quant.arrays import Array
from quant.atomic import Replacement
from quant.container.header import ALIGNMENT, PAD_PREFIX, Entry, Placed, place, render
from quant.errors import InvalidRequest, NoSpace, amount
from quant.sizes import round_up


def size_of(entries: Iterable[Entry], metadata: Mapping[str, str], reserve: int) -> int:
    """Bytes of the file that a ContainerWriter makes of the same."""
    placed = place(entries)
    return _header_size(placed, metadata, reserve) + placed[-1].begin + placed[-1].entry.nbytes


def _header_size(placed: list[Placed], metadata: Mapping[str, str], reserve: int) -> int:
    return round_up(len(render(placed, metadata)) + reserve, ALIGNMENT)


class ContainerWriter:
    """Use as a context manager: `write` every entry, then `finish`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        entries: Iterable[Entry],
        metadata: Mapping[str, str],
        reserve: int,
        *,
        told: str | os.PathLike[str] | None = None,
        keep: bool = False,
    ) -> None:
        """Lay out `entries`; nothing is made before the `with` block begins.

        `reserve`: bytes that metadata may still grow by until `finish`. `told`: what messages call the file. `keep`: what
        was written stays when the block is left without `finish`, for another writer with `keep` to `read`.
        Raises InvalidRequest (no such folder, or not writable, or someone else is writing `path`) and NoSpace,
        here or on entering the block.
        """
        self.path = Path(path)
        self._placed = place(entries)
        self._metadata = dict(metadata)
        self._header_size = _header_size(self._placed, metadata, reserve)
        self._begin = {item.entry.name: self._header_size + item.begin for item in self._placed}
        self._sizes = {item.entry.name: item.entry.nbytes for item in self._placed}
        self._left = dict(self._sizes)
        last = self._placed[-1]
        self.size = self._header_size + last.begin + last.entry.nbytes
        """Size of the finished file in bytes."""
        self._told = os.fspath(path if told is None else told)
        self._new = Replacement(self.path, told=self._told, keep=keep)
        self._check_space()

    def write(self, name: str, array: Array, offset: int = 0) -> None:
        """Put the bytes of `array` at byte `offset` of tensor `name`. Each byte is to be written once.

        Raises NoSpace (the disk is full, the file too large for the system) and other OSErrors with the path.
        """
        data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        assert self._left[name] >= data.nbytes, f"{name} is longer than announced"
        self._left[name] -= data.nbytes
        self._write_at(self._begin[name] + offset, data)

    def read(self, name: str) -> bytes:
        """The bytes that tensor `name` has now: those of an earlier writer, if nothing was written. Fewer, or zeros,
        where it has not written them either.
        """
        file = self._new.file
        file.seek(self._begin[name])
        return file.read(self._sizes[name])

    def leave(self, name: str) -> None:
        """Tensor `name` is as an earlier writer left it, and complete."""
        self._left[name] = 0

    def preview(self, metadata: Mapping[str, str]) -> Path:
        """Write the header with `metadata` and return where the file is until `finish`, for a look at it.

        Every entry has to be written. Raises as `write` does.
        """
        for item in self._placed:
            if item.entry.name.startswith(PAD_PREFIX) and self._left[item.entry.name]:
                self.write(item.entry.name, np.zeros(item.entry.nbytes, np.uint8))
        unwritten = [name for name, left in self._left.items() if left]
        assert not unwritten, f"not written: {unwritten[:3]}"
        self._write_at(0, memoryview(render(self._placed, metadata, self._header_size)))
        return self._new.temporary

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header with the final `metadata`, sync, and move the file into place. Raises as `write` does."""
        self.preview(metadata)
        try:
            self._new.commit()
        except OSError as error:
            raise self._failed(error) from None

    def __enter__(self) -> ContainerWriter:
        try:
            self._new.__enter__()
        except OSError as error:
            raise InvalidRequest(f"{self._told} cannot be written: {error.strerror}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._new.__exit__(kind, error, trace)

    def _write_at(self, at: int, data: memoryview) -> None:
        file = self._new.file
        try:
            file.seek(at)
            while data.nbytes:
                data = data[file.write(data) :]
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> Exception:
        """What to raise for an error of the system while writing: it knows no name, or the temporary one."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoSpace(f"the disk is full: {self._told} needs {amount(self.size)}")
        if error.errno == errno.EFBIG:
            return NoSpace(f"{self._told} needs {amount(self.size)}: more than a file may have here")
        return OSError(error.errno, error.strerror, self._told)

    def _check_space(self) -> None:
        folder = self.path.parent
        try:
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise InvalidRequest(f"{folder} cannot be written to: {error.strerror}") from None
        if free < self.size:
            raise NoSpace(
                f"{self._told} needs {amount(self.size)}, and {folder} has {amount(free)} free",
                hint="free some space or choose another folder with -o",
            )
