"""The directory of a zip archive whose entries are stored, not compressed: where each entry's bytes lie.

This is the outside of a .pth file. The central directory (with its zip64 form) is believed, but every number
in it is checked against the file, and each entry's local header must agree with it.
"""

from __future__ import annotations

import itertools
import struct
from typing import NamedTuple

from quant.errors import FormatError, quoted
from quant.mapped_file import MappedFile

_END = b"PK\5\6"
_END_SIZE = 22
_END64_LOCATOR = b"PK\6\7"
_END64 = b"PK\6\6"
_CENTRAL = b"PK\1\2"
_LOCAL = b"PK\3\4"
_MAX_COMMENT = 65535
_FLAG_ENCRYPTED = 0x2041
"""Bits 0, 6 and 13: encryption, strong encryption, masked headers."""

DOWNLOAD_AGAIN = "the file is incomplete or damaged: download it again"


class Entry(NamedTuple):
    """The bytes [begin, end) of one archive member, and their CRC-32 (0 when the writer left it out)."""

    begin: int
    end: int
    crc: int


class _Central(NamedTuple):
    name: str
    raw_name: bytes
    crc: int
    size: int
    offset: int


def read_directory(file: MappedFile) -> dict[str, Entry]:
    """{member name: place} of a zip archive. Raises FormatError for everything that is not exactly right."""
    where = str(file.path)
    count, at, end = _find_directory(file)
    entries: dict[str, Entry] = {}
    spans: list[tuple[int, int, str]] = []
    limit = at
    for _ in range(count):
        central, at = _central(file, at, end)
        if central.name in entries:
            raise FormatError(f"{where}: the archive has two members {quoted(central.name)}")
        begin = _data_begin(file, central)
        stop = begin + central.size
        if stop > limit:
            raise FormatError(
                f"{where}: member {quoted(central.name)} reaches past the data", hint=DOWNLOAD_AGAIN
            )
        entries[central.name] = Entry(begin, stop, central.crc)
        spans.append((central.offset, stop, central.name))
    spans.sort()
    for (_, stop, _), (offset, _, name) in itertools.pairwise(spans):
        if offset < stop:
            raise FormatError(f"{where}: member {quoted(name)} overlaps the one before it")
    return entries


def _find_directory(file: MappedFile) -> tuple[int, int, int]:
    """(number of entries, begin, end) of the central directory."""
    where = str(file.path)
    stop = file.size
    while True:
        at = file.rfind(_END, max(0, file.size - _END_SIZE - _MAX_COMMENT), stop)
        if at < 0:
            raise FormatError(
                f"{where} is truncated: the archive's directory is missing", hint=DOWNLOAD_AGAIN
            )
        end = file.read(at, at + _END_SIZE)
        if len(end) == _END_SIZE and at + _END_SIZE + int.from_bytes(end[20:22], "little") == file.size:
            break
        stop = at + len(_END) - 1
    disk, first_disk, here, count, size, offset = struct.unpack("<4H2I", end[4:20])
    directory_end = at
    locator = file.read(at - 20, at) if at >= 20 else b""
    if locator[:4] == _END64_LOCATOR:
        at64 = int.from_bytes(locator[8:16], "little")
        record = file.read(at64, at64 + 56) if at64 < file.size else b""
        if len(record) != 56 or record[:4] != _END64 or at64 > at - 20 - 56:
            raise FormatError(f"{where}: the archive's zip64 record is damaged", hint=DOWNLOAD_AGAIN)
        disk, first_disk, here, count, size, offset = struct.unpack("<2I4Q", record[16:56])
        directory_end = at64
    if disk or first_disk or here != count:
        raise FormatError(f"{where} is one part of an archive in several files")
    if offset + size > directory_end or count * 46 > size:
        raise FormatError(f"{where}: the archive's directory is damaged", hint=DOWNLOAD_AGAIN)
    return count, offset, offset + size


def _central(file: MappedFile, at: int, end: int) -> tuple[_Central, int]:
    """The central directory entry at `at`, and where the next one begins."""
    where = str(file.path)
    fixed = file.read(at, min(at + 46, end))
    if len(fixed) != 46 or fixed[:4] != _CENTRAL:
        raise FormatError(f"{where}: the archive's directory is damaged", hint=DOWNLOAD_AGAIN)
    flags, method = struct.unpack("<2H", fixed[8:12])
    crc, packed, size, name_length, extra_length, comment_length, disk = struct.unpack("<3I4H", fixed[16:36])
    (offset,) = struct.unpack("<I", fixed[42:46])
    tail = at + 46 + name_length
    after = tail + extra_length + comment_length
    if after > end:
        raise FormatError(f"{where}: the archive's directory is damaged", hint=DOWNLOAD_AGAIN)
    raw_name = file.read(at + 46, tail)
    name = raw_name.decode("utf-8", errors="backslashreplace")
    size, packed, offset, disk = _zip64(
        file.read(tail, tail + extra_length), size, packed, offset, disk, where
    )
    if flags & _FLAG_ENCRYPTED:
        raise FormatError(f"{where}: member {quoted(name)} is encrypted")
    if method or packed != size:
        raise FormatError(f"{where}: member {quoted(name)} is compressed; torch stores members uncompressed")
    if disk:
        raise FormatError(f"{where} is one part of an archive in several files")
    return _Central(name, raw_name, crc, size, offset), after


def _zip64(
    extra: bytes, size: int, packed: int, offset: int, disk: int, where: str
) -> tuple[int, int, int, int]:
    """Replace fields that say "see the zip64 extra field" by the values there, in fixed order."""
    wide = size == 0xFFFFFFFF, packed == 0xFFFFFFFF, offset == 0xFFFFFFFF, disk == 0xFFFF
    if not any(wide):
        return size, packed, offset, disk
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if kind == 1 and len(body) == length >= 8 * sum(wide[:3]) + 4 * wide[3]:
            values = [size, packed, offset, disk]
            cursor = 0
            for i, width in enumerate((8, 8, 8, 4)):
                if wide[i]:
                    values[i] = int.from_bytes(body[cursor : cursor + width], "little")
                    cursor += width
            return values[0], values[1], values[2], values[3]
        at += 4 + length
    raise FormatError(f"{where}: the archive's directory is damaged (no zip64 field)", hint=DOWNLOAD_AGAIN)


def _data_begin(file: MappedFile, central: _Central) -> int:
    """Where the member's bytes begin, from its local header."""
    header = file.read(central.offset, central.offset + 30) if central.offset < file.size else b""
    if len(header) == 30 and header[:4] == _LOCAL:
        name_length = int.from_bytes(header[26:28], "little")
        extra_length = int.from_bytes(header[28:30], "little")
        name_begin = central.offset + 30
        if file.read(name_begin, name_begin + name_length) == central.raw_name:
            return name_begin + name_length + extra_length
    raise FormatError(f"{file.path}: member {quoted(central.name)} is damaged", hint=DOWNLOAD_AGAIN)
