"""Files on Windows, where one that is open can be neither renamed nor removed unless whoever opened it allows that, as
Python's `open` does not. Imported there only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import msvcrt
import os
import sys
import time
import traceback
from ctypes import wintypes
from pathlib import Path
from types import TracebackType

assert sys.platform == "win32"

_READ, _WRITE, _DELETE = 0x80000000, 0x40000000, 0x00010000
_ALL = 7  # others may read, write, and rename or remove
_OPEN_EXISTING, _OPEN_ALWAYS = 3, 4
_NOT_THROUGH_LINKS = 0x00200000
_EXCLUSIVELY, _AT_ONCE = 2, 1
_SET_SPARSE = 0x000900C4
_ACCESS_DENIED, _SHARING, _LOCKED, _PENDING, _MAPPED = 5, 32, 33, 997, 1224
"""Errors of Windows; the first is also that of a file that is being removed."""
_TRIES, _PAUSE = 20, 0.05
"""A second: virus scanners and search services open what is new for a moment."""


class _Overlapped(ctypes.Structure):
    _fields_ = (
        ("internal", ctypes.c_void_p),
        ("internal_high", ctypes.c_void_p),
        ("offset", wintypes.DWORD),
        ("offset_high", wintypes.DWORD),
        ("event", wintypes.HANDLE),
    )


_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_create, _lock, _close = _kernel32.CreateFileW, _kernel32.LockFileEx, _kernel32.CloseHandle
_create.argtypes = [
    wintypes.LPCWSTR, wintypes.DWORD, wintypes.DWORD, wintypes.LPVOID, wintypes.DWORD, wintypes.DWORD, wintypes.HANDLE,
]  # fmt: skip
_create.restype = wintypes.HANDLE
_lock.argtypes = [
    wintypes.HANDLE, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, ctypes.POINTER(_Overlapped),
]  # fmt: skip
_lock.restype = wintypes.BOOL
_close.argtypes = [wintypes.HANDLE]
_control = _kernel32.DeviceIoControl
_control.argtypes = [
    wintypes.HANDLE, wintypes.DWORD, wintypes.LPVOID, wintypes.DWORD, wintypes.LPVOID, wintypes.DWORD,
    wintypes.LPDWORD, wintypes.LPVOID,
]  # fmt: skip
_NONE = wintypes.HANDLE(-1).value


def open_shared(path: Path, *, create: bool) -> int:
    """A descriptor for reading and writing `path`, which may be renamed and removed meanwhile. A link is not followed.

    Raises OSError.
    """
    for left in reversed(range(_TRIES)):
        found = _opened(path, _READ | _WRITE, _OPEN_ALWAYS if create else _OPEN_EXISTING)
        if found is not None:
            return msvcrt.open_osfhandle(found, os.O_RDWR | os.O_BINARY)
        error = ctypes.get_last_error()
        if left == 0 or error not in (_ACCESS_DENIED, _SHARING) or path.is_dir():
            break
        time.sleep(_PAUSE)  # it is being removed
    raise _named(error, path)


def try_lock(handle: int) -> bool:
    """Lock an open file until it is closed. False if the file system has no locks; BlockingIOError if another has it."""
    beyond = _Overlapped(offset_high=0x7FFFFFFF)  # what is locked cannot be read: a byte that no file has
    if _lock(msvcrt.get_osfhandle(handle), _EXCLUSIVELY | _AT_ONCE, 0, 1, 0, ctypes.byref(beyond)):
        return True
    if ctypes.get_last_error() in (_LOCKED, _PENDING):
        raise BlockingIOError(errno.EAGAIN, "another process has the lock")
    return False


def replace(new: Path, path: Path) -> None:
    """Rename `new`, of `open_shared`, to `path`. Raises PermissionError if another program has `path` open, or it is read-only."""
    for left in reversed(range(_TRIES)):
        try:
            os.replace(new, path)
            return
        except OSError as error:
            if error.winerror not in (_ACCESS_DENIED, _SHARING, _MAPPED):
                raise
            if left == 0:
                raise PermissionError(errno.EACCES, "Permission denied", str(path)) from None
        time.sleep(_PAUSE)


def remove(path: Path, trace: TracebackType | None) -> None:
    """Remove a file that what failed has open still, in the variables of calls that `trace` remembers. Another's stays."""
    traceback.clear_frames(trace)
    gc.collect()
    with contextlib.suppress(PermissionError):
        path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether another program has the file open so that it can be neither replaced nor removed."""
    handle = _opened(path, _DELETE, _OPEN_EXISTING)
    if handle is None:
        return ctypes.get_last_error() == _SHARING
    _close(handle)
    return False


def make_sparse(handle: int) -> None:
    """Have what is not written of a file take no room, where the file system can."""
    _control(
        msvcrt.get_osfhandle(handle), _SET_SPARSE, None, 0, None, 0, ctypes.byref(wintypes.DWORD()), None
    )


def _opened(path: Path, access: int, how: int) -> int | None:
    """A handle; None: `ctypes.get_last_error()` says why."""
    handle: int | None = _create(str(path), access, _ALL, None, how, _NOT_THROUGH_LINKS, None)
    return None if handle == _NONE else handle


def _named(error: int, path: Path) -> OSError:
    return OSError(None, ctypes.FormatError(error).strip().rstrip("."), str(path), error)
