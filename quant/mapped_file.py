"""A read-only memory mapping of a whole file, and views into it: numpy is imported for arrays alone."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from quant.errors import FormatError, SourceNotFound

if TYPE_CHECKING:
    import numpy.typing as npt

HASH_CHUNK = 1 << 22
"""Bytes given to SHA-256 between two progress calls."""


class MappedFile:
    """One regular file, mapped read-only. Pages are shared with every process that maps it.

    Arrays and memoryviews handed out keep the mapping alive after `close`.
    """

    path: Path
    size: int
    """File size in bytes, at least 1."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map `path`.

        Raises SourceNotFound (missing, a folder, unreadable) and FormatError (empty, or not a regular file).
        """
        self.path = Path(path)
        try:
            info = os.stat(self.path)
            if stat.S_ISDIR(info.st_mode):
                raise SourceNotFound(f"{self.path} is a folder, not a file")
            if not stat.S_ISREG(info.st_mode):
                raise FormatError(f"{self.path} is not a regular file")
            with open(self.path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise FormatError(f"{self.path} is empty", hint="download the file again")
                self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise SourceNotFound(f"{self.path} does not exist") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise SourceNotFound(f"{self.path} cannot be read: {reason}") from None
        self._view = memoryview(self._map)

    def read(self, begin: int, end: int) -> bytes:
        """A copy of the bytes [begin, end), cut at the end of the file. For headers only."""
        return self._map[begin:end]

    def view(self, begin: int, end: int) -> memoryview:
        """A read-only view of the bytes [begin, end); no copy."""
        self._check(begin, end)
        return self._view[begin:end]

    def rfind(self, pattern: bytes, begin: int, end: int) -> int:
        """Offset of the last `pattern` that lies wholly in [begin, end), or -1."""
        return self._map.rfind(pattern, begin, end)

    def array(self, dtype: npt.DTypeLike, count: int, offset: int) -> npt.NDArray[Any]:
        """A read-only 1-D view of `count` elements of `dtype` at byte `offset`.

        No copy, perhaps unaligned.
        """
        import numpy as np

        wanted = np.dtype(dtype)
        self._check(offset, offset + count * wanted.itemsize)
        if count == 0:
            empty = np.empty(0, wanted)
            empty.flags.writeable = False
            return empty
        return np.frombuffer(self._view, wanted, count, offset)

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """SHA-256 of the file as 64 hex digits. `progress(bytes done, bytes in all)` is called as it goes."""
        digest = hashlib.sha256()
        for begin in range(0, self.size, HASH_CHUNK):
            end = min(begin + HASH_CHUNK, self.size)
            digest.update(self._view[begin:end])
            if progress is not None:
                progress(end, self.size)
        return digest.hexdigest()

    def close(self) -> None:
        """Give the mapping back, now or when the last array that refers to it dies. May be called twice."""
        try:
            self._view.release()
            self._map.close()
        except BufferError:  # arrays into the mapping are still alive; the last one takes it along
            pass

    def __enter__(self) -> MappedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, begin: int, end: int) -> None:
        if not 0 <= begin <= end <= self.size:
            raise FormatError(
                f"{self.path}: bytes {begin} to {end} lie outside the file of {self.size} bytes"
            )
