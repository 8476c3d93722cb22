"""Locks between processes: those of the operating system, which end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PAUSE = 0.1
"""Seconds between two tries."""


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path` inside the block; its folder is made.

    While another process holds it, `on_wait` is called every 0.1 s with that process's number ("" if it is not
    known); what it raises ends the wait. Without `on_wait` nothing is waited for: BlockingIOError. Systems without such locks (Windows,
    some network file systems) have none.
    """
    with contextlib.ExitStack() as stack:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)  # its last holder may have removed it
            file = stack.enter_context(open(path, "a+b", buffering=0))
            try:
                _take(file.fileno())
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

    False also on systems without such locks, where nobody can tell.
    """
    with contextlib.ExitStack() as stack:
        is_free = False
        with contextlib.suppress(OSError):
            is_free = _take(stack.enter_context(open(path, "r+b", buffering=0)).fileno())
        yield is_free


def _take(handle: int) -> bool:
    """Whether it is ours now; False on systems without such locks. Raises BlockingIOError if another process has it."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(error.errno, error.strerror) from None
        return False  # a file system without locks
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
