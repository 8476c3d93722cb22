"""Files that are either written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from quant.errors import InvalidRequest
from quant.locking import lock, open_lockable, try_lock
from quant.paths import is_there

if sys.platform == "win32":
    from quant import windows

_NAME_BYTES = 255
"""What file systems allow a name to have."""
_TRIES = 100
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a disk, or a file, that takes no more."""
_NOT_ON_WINDOWS = re.compile(
    r'[<>:"/\\|?*\x00-\x1f]|[. ]\Z|\A(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])[ ]*(\.|\Z)',
    re.IGNORECASE,
)
"""What is in no name of a file there; some names stand for devices, whatever comes after a dot."""


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place, synced to disk, when the block ends, and vanishes when it fails.

    An interruption at any moment leaves what was at `path` before. A link stays: its target is replaced.
    Somebody else who is writing the same file is waited for. Raises OSError, and InvalidRequest for what
    `replaceable` refuses.
    """
    with Replacement(replaceable(path), wait=True, told=path) as new, named(path):
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
    behind is taken over, one that is being written is not (file systems without locks take any).
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
            handle = self._opened()
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
        """Sync the file, and the folder once it is at `path`.

        Raises OSError, and on Windows InvalidRequest for a file that another program has open; what was there then stays.
        """
        mask = os.umask(0)
        os.umask(mask)
        self.temporary.chmod(0o666 & ~mask)  # it was private until now
        os.fsync(self.file.fileno())
        self._rename()  # the file is open still: the lock lasts beyond the renaming
        self._committed = True
        _sync_folder(self.path.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed and not self._keep:
            try:
                self.temporary.unlink(missing_ok=True)
            except PermissionError:
                if sys.platform == "win32":
                    windows.remove(self.temporary, trace)
                else:
                    raise
        self.file.close()

    def _rename(self) -> None:
        if sys.platform == "win32":
            try:
                windows.replace(self.temporary, self.path)
            except PermissionError:
                if not self.path.exists():
                    raise
                raise _irreplaceable(self.path, self._told) or _in_use(self._told) from None
        else:
            os.replace(self.temporary, self.path)

    def _opened(self) -> int:
        """A descriptor of the file beside `path`; an error does not name that, unless it is there."""
        try:
            return open_lockable(self.temporary, mode=0o600)
        except (FileNotFoundError, NotADirectoryError) as error:
            folder = Path(self._told).parent
            error.filename = str(self.path.parent if folder.is_dir() else folder)
            raise
        except OSError as error:
            if not os.path.lexists(self.temporary):
                error.filename = os.fspath(self._told)
            raise

    def _take(self, handle: int) -> bool:
        """Whether the open file is now ours, and empty or to be kept; if not, it is to be opened again."""
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise self._in_the_way()
        try:
            (lock if self._wait else try_lock)(handle)
        except BlockingIOError:
            raise self._busy() from None
        info = os.fstat(handle)
        try:
            there = os.lstat(self.temporary)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(there.st_mode):  # a link, where opening does not tell
            raise self._in_the_way()
        same = os.path.samestat(info, there)
        if same and info.st_size and not (self._keep and info.st_nlink == 1):
            os.unlink(self.temporary)  # not emptied: a link to something that matters would be emptied too
            return False
        return same

    def _in_the_way(self) -> InvalidRequest:
        return InvalidRequest(f"{self.temporary} is in the way: not a regular file", hint="remove it")

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


def _irreplaceable(path: Path, told: str | os.PathLike[str]) -> InvalidRequest | None:
    """The error for a file that cannot be replaced, on Windows; None if nothing is known against it."""
    if sys.platform == "win32" and path.exists():
        if not os.access(path, os.W_OK):
            return InvalidRequest(f"{os.fspath(told)} is read-only", hint="name another file")
        if windows.is_held(path):
            return _in_use(told)
    return None


def _in_use(path: str | os.PathLike[str]) -> InvalidRequest:
    return InvalidRequest(
        f"{os.fspath(path)} cannot be replaced: another program has it open",
        hint="end that one (a running `rwkv` has its model open), then give the same command again",
    )


def make_sparse(handle: int) -> None:
    """Have what is not written of an open file take no room on the disk, as it does by itself on other systems."""
    if sys.platform == "win32":
        windows.make_sparse(handle)


def is_name_on_windows(name: str) -> bool:
    """Whether a file may be called `name` there."""
    return _NOT_ON_WINDOWS.search(name) is None


def replaceable(path: str | os.PathLike[str]) -> Path:
    """Where the new file for `path` goes: to the end of its links, so that they stay.

    Raises InvalidRequest if anything but a regular file is there: renaming over a device would destroy it. Also for an empty
    path, for one from a working folder that was deleted, and on Windows for a name that no file can have.
    """
    if not os.fspath(path):  # whose place is the working folder's
        raise InvalidRequest("the name of the file is empty")
    if sys.platform == "win32" and not is_name_on_windows(Path(path).name):
        raise InvalidRequest(
            f"{os.fspath(path)} cannot be written: Windows allows no such name", hint="name another file"
        )
    try:
        final = Path(os.path.realpath(path))
    except FileNotFoundError:  # of the working folder; nothing else need be there
        raise InvalidRequest(
            f"{os.fspath(path)} cannot be written: the working folder was deleted",
            hint="change to another folder",
        ) from None
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
    those, for a file that exists (unless `force`), and for a folder that does not exist or takes no files; on Windows
    for a file that another program has open, or that is read-only.
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
    if is_there(final) and not force:
        raise InvalidRequest(f"{os.fspath(path)} exists already", hint="use --force to replace it")
    if error := _irreplaceable(final, path):
        raise error
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
