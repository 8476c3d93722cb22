"""Writing a GGUF file, version 3: metadata, the list of tensors, their data, each aligned."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from quant.atomic import whole_file
from quant.checkpoints.ggml_blocks import TYPES
from quant.checkpoints.write import encode
from quant.export.outgoing import OutgoingStream
from quant.sizes import round_up

ALIGNMENT = 32
_VERSION = 3
_NUMBER = {item.name: number for number, item in TYPES.items()}
_ITEM_SIZE = {"f32": 4, "f16": 2, "bf16": 2}

Value = bool | int | float | str | Sequence[bytes] | Sequence[int]
"""A metadata value: numbers become uint32 and float32, sequences arrays of strings or of int32."""


def write_gguf(path: Path, metadata: Mapping[str, Value], stream: OutgoingStream) -> None:
    """Write the file, whole or not at all. Raises OSError, and what the stream raises."""
    head = bytearray(b"GGUF" + struct.pack("<I2Q", _VERSION, len(stream.tensors), len(metadata)))
    for key, value in metadata.items():
        head += _text(key.encode()) + _value(value)
    at = 0
    for item in stream.tensors:
        dims = tuple(reversed(item.shape))
        head += _text(item.name.encode()) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", _NUMBER[item.dtype], at)
        at = round_up(at + math.prod(item.shape) * _ITEM_SIZE[item.dtype], ALIGNMENT)
    dtypes = stream.dtypes
    with whole_file(path) as file:
        file.write(head.ljust(round_up(len(head), ALIGNMENT), b"\0"))
        for name, values in stream:
            data = encode(values, dtypes[name])
            file.write(data.reshape(-1).data)
            file.write(bytes(-data.nbytes % ALIGNMENT))


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    """Type and contents."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<2I", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value.encode())
    if value and isinstance(value[0], bytes):
        items = b"".join(_text(item) for item in value if isinstance(item, bytes))
        return struct.pack("<2IQ", 9, 8, len(value)) + items
    return struct.pack(f"<2IQ{len(value)}i", 9, 5, len(value), *value)
