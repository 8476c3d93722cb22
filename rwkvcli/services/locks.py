"""Locks between processes: those of the operating system, which end with the process that holds them."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from quant.locking import open_lockable, try_lock

_PAUSE = 0.1
"""Seconds between two tries."""


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path` inside the block; its folder is made.

    While another process holds it, `on_wait` is called every 0.1 s with that process's number ("" if it is not
    known); what it raises ends the wait. Without `on_wait` nothing is waited for: BlockingIOError. File systems without
    such locks (some network file systems) have none. Inside the block the lock file may be removed; on Windows the folder that
    it is in can be removed after the block only.
    """
    with contextlib.ExitStack() as stack:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)  # its last holder may have removed it
            file = stack.enter_context(_opened(path))
            try:
                try_lock(file.fileno())
            except BlockingIOError:
                file.seek(0)
                who = file.read(20).decode("ascii", "replace").strip()
                file.close()
                if on_wait is None:
                    raise
                on_wait(who if who.isdigit() else "")
                time.sleep(_PAUSE)
                continue
            if _is_at(file.fileno(), path):
                break
            file.close()  # its holder removed it: a new one is there, or will be
        try:
            file.truncate(0)
            file.write(b"%d\n" % os.getpid())
        except OSError as error:
            error.filename = str(path)  # those of a write know no name
            raise
        yield


@contextlib.contextmanager
def left_behind(path: Path) -> Iterator[bool]:
    """Whether the lock file `path` is there and the process that held it is gone; it is held inside the block then.

    False also on file systems without such locks, where nobody can tell.
    """
    with contextlib.ExitStack() as stack:
        is_free = False
        with contextlib.suppress(OSError):
            is_free = try_lock(stack.enter_context(_opened(path, create=False)).fileno())
        yield is_free


def clear(folder: Path) -> None:
    """Remove all that is in a folder whose lock file is held; the folder itself can go when it is released. Raises OSError."""
    import shutil

    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _opened(path: Path, *, create: bool = True) -> io.FileIO:
    return io.FileIO(open_lockable(path, create=create), "r+b")


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
