"""Turn the World vocabulary's text file into the compact blob that the package carries.

    python tools/make_world_vocab.py rwkv_vocab_v20230424.txt rwkvcli/data/world_vocab.bin

The text file comes with the PyPI package `rwkv` (BlinkDL/ChatRWKV, Apache-2.0): 65529 lines of `id literal
length`, where the literal is that of a Python string (taken as UTF-8) or of a bytes object, and may hold
spaces itself. The blob's layout is described in csrc/text/world_tokenizer.h. The same input gives the same
bytes.
"""

from __future__ import annotations

import argparse
import ast
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

MAGIC = b"RWKVVOC\x01"


def parse_line(line: str) -> tuple[int, bytes]:
    """Id and bytes of one line; ValueError if the line is not of the form `id literal length`."""
    head, _, rest = line.partition(" ")
    literal, _, length = rest.rpartition(" ")
    value = ast.literal_eval(literal)
    if not isinstance(value, str | bytes):
        raise ValueError(f"entry {head}: {literal} is neither a string nor bytes")
    entry = value.encode("utf-8") if isinstance(value, str) else value
    if len(entry) != int(length):
        raise ValueError(f"entry {head}: {len(entry)} bytes, but the file says {length}")
    return int(head), entry


def parse(lines: Iterable[str]) -> list[bytes]:
    """Entries in the order of their ids, which must run 1, 2, 3, ...; line ends may be LF or CRLF."""
    entries: list[bytes] = []
    for line in lines:
        number, entry = parse_line(line.rstrip("\r\n"))
        if number != len(entries) + 1:
            raise ValueError(f"entry {number} follows entry {len(entries)}")
        entries.append(entry)
    return entries


def fnv1a(data: bytes) -> int:
    """64-bit FNV-1a of `data`."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def pack(entries: Sequence[bytes]) -> bytes:
    """The blob of `entries`, entry i having the id i + 1. ValueError for one above 255 bytes."""
    body = bytes(len(entry) for entry in entries) + b"".join(entries)
    return struct.pack("<8sIIQ", MAGIC, len(entries), sum(map(len, entries)), fnv1a(body)) + body


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the World vocabulary's blob from its text file.")
    parser.add_argument("source", type=Path, help="rwkv_vocab_v20230424.txt")
    parser.add_argument("target", type=Path, help="the blob to write")
    args = parser.parse_args()
    with args.source.open(encoding="utf-8", newline="\n") as lines:
        entries = parse(lines)
    blob = pack(entries)
    args.target.write_bytes(blob)
    print(f"{args.target}: {len(entries)} entries, {len(blob)} bytes")


if __name__ == "__main__":
    main()
