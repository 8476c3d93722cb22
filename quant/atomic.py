"""Files that are either written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from quant.errors import InvalidRequest

if sys.platform != "win32":
    import fcntl

_NAME_BYTES = 255
"""What file systems allow a name to have."""
_TRIES = 100
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a disk, or a file, that takes no more."""
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_FLAGS |= getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place, synced to disk, when the block ends, and vanishes when it fails.

    An interruption at any moment leaves what was at `path` before. A link stays: its target is replaced.
    Somebody else who is writing the same file is waited for. Raises OSError, and InvalidRequest for what
    `replaceable` refuses.
    """
    with Replacement(replaceable(path), wait=True) as new, named(path):
        # a second descriptor: closing it keeps the lock until the file is in its place or gone
        with open(os.dup(new.file.fileno()), "wb") as file:
            yield file
        new.commit()


@contextlib.contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have a full disk's OSError say which file there was no room for: errors of a write know no name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:
            error.filename = os.fspath(path)
        raise


class Replacement:
    """What `path` is to become: a file `.NAME.part` beside it until `commit`. Use it as a context manager.

    Leaving the block without a commit removes it. It is locked meanwhile: one that a killed process left
    behind is taken over, one that is being written is not (systems without such locks take any).
    """

    file: io.FileIO
    """Open for reading and writing, unbuffered; empty unless what it holds was to be kept."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        wait: bool = False,
        keep: bool = False,
        told: str | os.PathLike[str] | None = None,
    ) -> None:
        """Touches nothing yet. `wait`: for another process that is writing the same file. `keep`: what was begun stays
        when the block ends without a commit, and is there when it is begun again. `told`: what messages call it, `path`
        by default.
        """
        self.path = Path(path)
        self._told = path if told is None else told
        self.temporary = self.path.with_name(part_name(self.path.name))
        self._wait, self._keep = wait, keep
        self._committed = False

    def __enter__(self) -> Replacement:
        """Raises InvalidRequest (somebody is writing the same file; `.NAME.part` is no file) and OSError."""
        for _ in range(_TRIES):
            handle = os.open(self.temporary, _FLAGS, 0o600)
            try:
                if self._take(handle):
                    self.file = io.FileIO(handle, "r+b")
                    return self
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
        raise self._busy()

    def commit(self) -> None:
        """Sync the file, and the folder once it is at `path`. Raises OSError; what was there then stays."""
        mask = os.umask(0)
        os.umask(mask)
        self.temporary.chmod(0o666 & ~mask)  # it was private until now
        os.fsync(self.file.fileno())
        if sys.platform == "win32":
            self.file.close()  # nothing open is renamed there; elsewhere the lock lasts beyond the renaming
        os.replace(self.temporary, self.path)
        self._committed = True
        _sync_folder(self.path.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed and not self._keep:
            with contextlib.suppress(FileNotFoundError):
                if sys.platform == "win32":
                    self.file.close()
                self.temporary.unlink()
        self.file.close()

    def _take(self, handle: int) -> bool:
        """Whether the open file is now ours, and empty or to be kept; if not, it is to be opened again."""
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise InvalidRequest(f"{self.temporary} is in the way: not a regular file", hint="remove it")
        if sys.platform == "win32":
            if not self._keep:
                os.ftruncate(handle, 0)
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if self._wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise self._busy() from None
            # a file system without locks: as before there were any
        info = os.fstat(handle)
        try:
            same = os.path.samestat(info, os.lstat(self.temporary))
        except FileNotFoundError:
            same = False
        if same and info.st_size and not (self._keep and info.st_nlink == 1):
            os.unlink(self.temporary)  # not emptied: a link to something that matters would be emptied too
            return False
        return same

    def _busy(self) -> InvalidRequest:
        return InvalidRequest(
            f"{os.fspath(self._told)} is being written by another process", hint="wait for it to end"
        )


def part_name(name: str) -> str:
    """The temporary file's name for a file called `name`: `.NAME.part`, cut and hashed where that is too long."""
    raw = os.fsencode(name)
    if len(raw) + len("..part") <= _NAME_BYTES:
        return f".{name}.part"
    begin = raw[:200].decode("utf-8", errors="ignore")
    return f".{begin}.{hashlib.sha256(raw).hexdigest()[:16]}.part"


def replaceable(path: str | os.PathLike[str]) -> Path:
    """Where the new file for `path` goes: to the end of its links, so that they stay.

    Raises InvalidRequest if anything but a regular file is there: renaming over a device would destroy it.
    """
    final = Path(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return final
    except OSError as error:  # links in a circle, a name longer than the system takes
        raise InvalidRequest(f"{os.fspath(path)} cannot be written: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise InvalidRequest(f"{os.fspath(path)} is a folder", hint="name a file inside it")
    if not stat.S_ISREG(mode):
        raise InvalidRequest(f"{os.fspath(path)} is not a regular file", hint="name another file")
    return final


def new_file(
    path: str | os.PathLike[str], *, force: bool, kept: Mapping[str, str | os.PathLike[str]]
) -> Path:
    """`replaceable(path)`, if a file may be written there.

    `kept`: {what it is called: a file that is not to be replaced}. Raises InvalidRequest also for one of
    those, for a file that exists (unless `force`), and for a folder that does not exist or takes no files.
    """
    final = replaceable(path)
    folder = Path(path).parent
    if not final.parent.is_dir():
        raise InvalidRequest(
            f"the folder {folder if not folder.is_dir() else final.parent} does not exist",
            hint="make it first, or name another",
        )
    if not os.access(final.parent, os.W_OK | os.X_OK):
        raise InvalidRequest(
            f"{os.fspath(path)} cannot be written: no files may be made in its folder", hint="name another"
        )
    for name, other in kept.items():
        if final == Path(os.path.realpath(other)) or _is_same(final, other):
            raise InvalidRequest(f"{os.fspath(path)} is {name}", hint="choose another file")
    if final.exists() and not force:
        raise InvalidRequest(f"{os.fspath(path)} exists already", hint="use --force to replace it")
    return final


def _is_same(path: Path, other: str | os.PathLike[str]) -> bool:
    """Whether both are names of one file that exists."""
    try:
        return path.samefile(other)
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    """Make a rename last; systems that cannot open folders are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
