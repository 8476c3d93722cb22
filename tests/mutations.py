"""Random damage to model files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

JUNK: list[Any] = [
    None, True, 0, 1, -1, 2**31, 2**63, 2**70, 1.5, "", "7", "q8g32", "q4g16", "kn", "row", "U8",
    [], [0], [-1], [1] * 40, {},
]  # fmt: skip


def replace_somewhere(value: Any, random: np.random.Generator) -> Any:
    """A copy of a JSON value with one member, at any depth, replaced, removed, or moved to another name."""
    if isinstance(value, str) and value[:1] == "{" and random.random() < 0.9:
        return json.dumps(replace_somewhere(json.loads(value), random))
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return JUNK[random.integers(len(JUNK))]
    if isinstance(value, list):
        at = int(random.integers(len(value)))
        return [*value[:at], replace_somewhere(value[at], random), *value[at + 1 :]]
    key = list(value)[random.integers(len(value))]
    result = dict(value)
    match int(random.integers(6)):
        case 0:
            del result[key]
        case 1:
            result[list(value)[random.integers(len(value))]] = result.pop(key)
        case _:
            result[key] = replace_somewhere(value[key], random)
    return result


def damaged_header(data: bytes, random: np.random.Generator) -> bytes:
    """A safetensors file with a member of its header, or of its metadata, replaced, removed or moved."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    changed = replace_somewhere(header, random) if random.random() < 0.5 else dict(header)
    if isinstance(changed, dict) and "__metadata__" in changed:
        changed["__metadata__"] = replace_somewhere(header["__metadata__"], random)
    text = json.dumps(changed).encode().ljust(length)
    text = text.ljust(-(-(8 + len(text)) // 64) * 64 - 8)
    return len(text).to_bytes(8, "little") + text + body


def damaged_bytes(data: bytes, random: np.random.Generator, in_header: float = 0.7) -> bytes:
    """A safetensors file with one to three bytes, or runs of them, changed or removed; so often within its header."""
    used = data.rindex(b"}", 0, 8 + int.from_bytes(data[:8], "little"))
    damaged = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        at = int(random.integers(used if random.random() < in_header else len(damaged)))
        match int(random.integers(4)):
            case 0:
                damaged[at] ^= 1 << int(random.integers(8))
            case 1:
                damaged[at] = int(random.integers(256))
            case 2:
                damaged[at : at + 8] = random.bytes(8)
            case _:
                del damaged[at : at + int(random.integers(1, 100))]
    return bytes(damaged)
