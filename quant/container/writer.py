"""Writing a model file: tensor by tensor, in any order, and atomically.

Everything goes to a temporary file in the target's folder. Only `finish` puts it in place; until then an
existing target is as it was, and leaving the `with` block in any other way removes the temporary file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from quant.arrays import Array, round_up
from quant.container.header import ALIGNMENT, PAD_PREFIX, Entry, place, render
from quant.errors import InvalidRequest, NoSpace


class ContainerWriter:
    """Use as a context manager: `write` every entry, then `finish`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        entries: Iterable[Entry],
        metadata: Mapping[str, str],
        reserve: int,
    ) -> None:
        """Lay out `entries` and make the temporary file.

        `reserve`: bytes that metadata may still grow by until `finish`.
        Raises InvalidRequest (no such folder, or not writable) and NoSpace.
        """
        self.path = Path(path)
        self._placed = place(entries)
        self._metadata = dict(metadata)
        self._header_size = round_up(len(render(self._placed, metadata)) + reserve, ALIGNMENT)
        self._begin = {item.entry.name: self._header_size + item.begin for item in self._placed}
        self._left = {item.entry.name: item.entry.nbytes for item in self._placed}
        last = self._placed[-1]
        self.size = self._header_size + last.begin + last.entry.nbytes
        """Size of the finished file in bytes."""
        self._temporary: Path | None = None
        self._check_space()
        try:
            handle, name = tempfile.mkstemp(
                dir=self.path.parent, prefix=f".{self.path.name[:100]}.", suffix=".part"
            )
        except OSError as error:
            raise InvalidRequest(f"{self.path} cannot be written: {error.strerror}") from None
        self._temporary = Path(name)
        self._file = os.fdopen(handle, "w+b", buffering=0)

    def write(self, name: str, array: Array, offset: int = 0) -> None:
        """Put the bytes of `array` at byte `offset` of tensor `name`. Each byte is to be written once.

        Raises NoSpace when the disk fills up.
        """
        data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        assert self._left[name] >= data.nbytes, f"{name} is longer than announced"
        self._left[name] -= data.nbytes
        self._write_at(self._begin[name] + offset, data)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header with the final `metadata`, sync, and move the file into place."""
        for item in self._placed:
            if item.entry.name.startswith(PAD_PREFIX):
                self.write(item.entry.name, np.zeros(item.entry.nbytes, np.uint8))
        unwritten = [name for name, left in self._left.items() if left]
        assert not unwritten, f"not written: {unwritten[:3]}"
        assert self._temporary is not None
        self._write_at(0, memoryview(render(self._placed, metadata, self._header_size)))
        mask = os.umask(0)
        os.umask(mask)
        self._temporary.chmod(0o666 & ~mask)
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)
        self._temporary = None
        _sync_folder(self.path.parent)

    def __enter__(self) -> ContainerWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._temporary is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def _write_at(self, at: int, data: memoryview) -> None:
        try:
            self._file.seek(at)
            while data.nbytes:
                data = data[self._file.write(data) :]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(f"the disk is full: {self.path} needs {self.size} bytes") from None
            raise

    def _check_space(self) -> None:
        folder = self.path.parent
        try:
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise InvalidRequest(f"{folder} cannot be written to: {error.strerror}") from None
        if free < self.size:
            raise NoSpace(
                f"{self.path} needs {self.size / 1e6:.0f} MB, and {folder} has {free / 1e6:.0f} MB free",
                hint="Free some space or choose another folder with -o.",
            )


def _sync_folder(folder: Path) -> None:
    """Make a rename last; systems that cannot open folders are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
