"""Locks of files between processes: those of the operating system, which end with the process that holds them."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

if sys.platform == "win32":
    from quant import windows
else:
    import fcntl

_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_PAUSE = 0.05
"""Seconds between two tries where the system's own waiting could not be interrupted."""


def open_lockable(path: Path, *, create: bool = True, mode: int = 0o666) -> int:
    """A descriptor of the file `path`, to be locked; on every system the file may be renamed and removed while it is open.

    `mode`: of a file that is made, where there are such. Raises OSError, also for a link where links can be told.
    """
    if sys.platform == "win32":
        return windows.open_shared(path, create=create)
    return os.open(path, _FLAGS | (os.O_CREAT if create else 0), mode)


if sys.platform == "win32":

    def lock(handle: int) -> bool:
        """Lock an open file until it is closed; another process that has it is waited for. False: the file system has no locks."""
        while True:
            try:
                return windows.try_lock(handle)
            except BlockingIOError:
                time.sleep(_PAUSE)

    try_lock = windows.try_lock

else:

    def lock(handle: int) -> bool:
        """Lock an open file until it is closed; another process that has it is waited for. False: the file system has no locks."""
        return _flock(handle, fcntl.LOCK_EX)

    def try_lock(handle: int) -> bool:
        """The same without waiting: BlockingIOError if another process has it."""
        return _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _flock(handle: int, how: int) -> bool:
        try:
            fcntl.flock(handle, how)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BlockingIOError(error.errno, error.strerror) from None
            return False  # a file system without locks
        return True
