"""What Windows says of its machine; `machine` alone asks. The records of GetLogicalProcessorInformationEx are read on any
system.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping

_CORE, _CACHE, _EVERYTHING = 0, 2, 0xFFFF


def cores_of(records: bytes, allowed: Mapping[int, int] | None) -> tuple[int, int]:
    """(logical processors, physical cores) that a process may run on. `allowed`: {group of processors: mask}; None: all."""
    logical = cores = 0
    for kind, data in _records(records):
        if kind != _CORE:
            continue
        (groups,) = struct.unpack_from("<H", data, 22)
        mine = 0
        for index in range(groups):
            mask, group = struct.unpack_from("<QH", data, 24 + 16 * index)
            mine += (mask if allowed is None else mask & allowed.get(group, 0)).bit_count()
        logical += mine
        cores += mine > 0
    return logical, cores


def largest_cache(records: bytes) -> int | None:
    """Bytes; None: there is none in the records."""
    sizes = (struct.unpack_from("<I", data, 4)[0] for kind, data in _records(records) if kind == _CACHE)
    return max(sizes, default=None)


def _records(records: bytes) -> Iterator[tuple[int, bytes]]:
    """(what it is about, what follows its size)."""
    at = 0
    while at + 8 <= len(records):
        kind, size = struct.unpack_from("<II", records, at)
        yield kind, records[at + 8 : at + size]
        at += max(size, 8)


if sys.platform == "win32":
    import ctypes
    import os
    import winreg

    _kernel32 = ctypes.WinDLL("kernel32")
    _kernel32.GetCurrentProcess.restype = ctypes.c_void_p

    class _Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("available", ctypes.c_ulonglong),
            ("others", ctypes.c_ulonglong * 5),
        )

    def processors() -> tuple[int, int]:
        """(logical processors, physical cores) that this process may run on."""
        logical, cores = cores_of(_everything(), _allowed())
        count = os.cpu_count() or 1
        return (logical, cores) if cores else (count, max(1, count // 2))  # most have two threads a core

    def cache() -> int | None:
        """Bytes of the largest; None: it is not known."""
        return largest_cache(_everything())

    def memory() -> tuple[int | None, int | None]:
        """Bytes: (of the machine, that can be had)."""
        status = _Status(length=ctypes.sizeof(_Status))
        if not _kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            return None, None
        return status.total, status.available

    def processor_name() -> str:
        """What the processor calls itself; empty: it is not known."""
        try:
            path = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        except OSError:
            return ""

    def _everything() -> bytes:
        """The records; empty where there are none."""
        size = ctypes.c_ulong()
        _kernel32.GetLogicalProcessorInformationEx(_EVERYTHING, None, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(max(1, size.value))
        if not _kernel32.GetLogicalProcessorInformationEx(_EVERYTHING, buffer, ctypes.byref(size)):
            return b""
        return buffer.raw[: size.value]

    def _allowed() -> dict[int, int] | None:
        """{group: mask} for a process in one group of processors; None for one in several: it has all of them."""
        process = ctypes.c_void_p(_kernel32.GetCurrentProcess())
        count, groups = ctypes.c_ushort(1), (ctypes.c_ushort * 1)()
        if not _kernel32.GetProcessGroupAffinity(process, ctypes.byref(count), groups):
            return None
        mine, all_of_them = ctypes.c_size_t(), ctypes.c_size_t()
        if not _kernel32.GetProcessAffinityMask(process, ctypes.byref(mine), ctypes.byref(all_of_them)):
            return None
        return {groups[0]: mine.value} if mine.value else None
