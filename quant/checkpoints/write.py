"""Plain checkpoint files, written one tensor at a time: safetensors, and torch's zip format without torch."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from quant.atomic import whole_file
from quant.errors import InvalidRequest
from quant.safetensors_file import header_bytes

FloatArray = npt.NDArray[np.float32]
ALIGNMENT = 64
"""Every storage of a .pth begins at a multiple of this many bytes."""

_CHUNK = 1 << 16
"""Elements rounded together, so that the scratch arrays stay in the cache."""

_ITEM_SIZE = {"f32": 4, "f16": 2, "bf16": 2, "u8": 1}
_STORAGE = {"f32": "FloatStorage", "f16": "HalfStorage", "bf16": "BFloat16Storage", "u8": "ByteStorage"}
_LARGEST = {"f16": 65504.0, "bf16": (2 - 2.0**-7) * 2.0**127}
_ROOT = "archive"
_WIDE = 0xFFFFFFFF
"""From this value on a zip field moves into the zip64 extra field (a test lowers it)."""


@runtime_checkable
class TensorStream(Protocol):
    """Tensors made one at a time, their shapes known beforehand; can be iterated more than once."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """{name: shape}, in the order of iteration."""

    def __iter__(self) -> Iterator[tuple[str, FloatArray]]:
        """(name, float32 array) pairs."""


Tensors = TensorStream | Mapping[str, FloatArray] | Iterable[tuple[str, FloatArray]]
"""What the writers take. A plain iterable that is no TensorStream is collected in memory first."""


def encode(values: FloatArray, dtype: str) -> npt.NDArray[Any]:
    """float32 values as little-endian "f32", "f16" or "bf16" (bits as uint16), rounded to nearest even; bytes as "u8"."""
    if dtype == "u8":
        return np.ascontiguousarray(values, np.uint8)
    if dtype == "f32":
        return np.ascontiguousarray(values, "<f4")
    if dtype == "f16":
        return np.ascontiguousarray(values, "<f2")
    bits = np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint32)
    out = np.empty(bits.size, "<u2")
    for begin in range(0, bits.size, _CHUNK):
        part = bits[begin : begin + _CHUNK]
        rounded = part >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += part
        rounded >>= 16
        nan = (part & 0x7FFFFFFF) > 0x7F800000
        if nan.any():  # must not be rounded up into an infinity
            rounded[nan] = (part[nan] >> 16) | 0x40
        out[begin : begin + _CHUNK] = rounded
    return out.reshape(values.shape)


def holds(dtype: str, values: npt.NDArray[Any]) -> bool:
    """Whether none of the finite `values` becomes infinite on the way into `dtype`."""
    largest = _LARGEST.get(dtype)
    return largest is None or not values.size or bool(max(values.max(), -values.min()) <= largest)


Dtype = str | Mapping[str, str]
"""What tensors are stored as: "f32", "f16", "bf16" or (bytes, not float32) "u8", the same for all or {name: dtype}."""


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Tensors,
    dtype: Dtype = "f32",
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `tensors` (float32) as a safetensors file of `dtype`.

    The header is padded with spaces so that the data begins at a multiple of 64 bytes. InvalidRequest:
    unknown dtype. An interrupted write leaves no file behind.
    """
    shapes, dtypes, pairs = _prepare(tensors, dtype)
    places = {
        name: (dtypes[name].upper(), shape, _size(shape, dtypes[name])) for name, shape in shapes.items()
    }
    with whole_file(path) as file:
        file.write(header_bytes(places, metadata or {}))
        for name, values in pairs:
            file.write(_checked(name, values, shapes, dtypes).data)


def write_pth(path: str | os.PathLike[str], tensors: Tensors, dtype: Dtype = "f32") -> None:
    """Write `tensors` (float32) as a torch zip file of `dtype`, as torch.save would.

    `torch.load(path, weights_only=True)` gives a flat dict of the tensors; the storages are aligned to 64
    bytes. InvalidRequest: unknown dtype. An interrupted write leaves no file behind.
    """
    shapes, dtypes, pairs = _prepare(tensors, dtype)
    with whole_file(path) as file:
        archive = _ZipWriter(file)
        archive.add("data.pkl", _pickle(shapes, dtypes))
        archive.add("byteorder", b"little")
        for index, (name, values) in enumerate(pairs):
            archive.add(f"data/{index}", _checked(name, values, shapes, dtypes).data)
        archive.add("version", b"3\n")
        archive.finish()


def _prepare(
    tensors: Tensors, dtype: Dtype
) -> tuple[dict[str, tuple[int, ...]], Mapping[str, str], Iterable[tuple[str, FloatArray]]]:
    """(shapes, dtypes, the tensors themselves)."""
    pairs: Iterable[tuple[str, FloatArray]]
    if isinstance(tensors, TensorStream):
        shapes, pairs = dict(tensors.shapes), tensors
    else:
        pairs = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
        shapes = {name: values.shape for name, values in pairs}
    dtypes = dict.fromkeys(shapes, dtype) if isinstance(dtype, str) else dtype
    for name in {dtype} if isinstance(dtype, str) else set(dtypes.values()):
        if name not in _ITEM_SIZE:
            raise InvalidRequest(f"unknown dtype {name}", hint="use f32, f16 or bf16")
    return shapes, dtypes, pairs


def _size(shape: tuple[int, ...], dtype: str) -> int:
    size = _ITEM_SIZE[dtype]
    for dim in shape:
        size *= dim
    return size


def _checked(
    name: str, values: FloatArray, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]
) -> npt.NDArray[np.uint8]:
    """The encoded bytes of one tensor, which must have the shape that was announced."""
    if shapes.get(name) != values.shape:
        raise ValueError(f"tensor {name} has shape {values.shape}, announced was {shapes.get(name)}")
    return encode(values, dtypes[name]).reshape(-1).view(np.uint8)


def _pickle(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> bytes:
    """The pickle (protocol 2) of {name: tensor}; tensor number i is the whole of storage `i`, row-major."""
    out = bytearray(b"\x80\x02}(")
    for index, (name, shape) in enumerate(shapes.items()):
        strides: list[int] = []
        step = 1
        for dim in reversed(shape):
            strides.insert(0, step)
            step *= max(dim, 1)
        dtype = dtypes[name]
        elements = _size(shape, dtype) // _ITEM_SIZE[dtype]
        out += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n("
        out += b"(" + _text("storage") + b"ctorch\n" + _STORAGE[dtype].encode() + b"\n"
        out += _text(str(index)) + _text("cpu") + _integer(elements) + b"tQ"
        out += _integer(0) + _sizes(shape) + _sizes(strides)
        out += b"\x89ccollections\nOrderedDict\n)RtR"
    return bytes(out + b"u.")


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _sizes(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(_integer(value) for value in values) + b"t"


class _ZipWriter:
    """A zip archive of stored members, with zip64 fields where numbers need them; deterministic bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.central = bytearray()
        self.count = 0

    def add(self, member: str, data: bytes | memoryview) -> None:
        """Append one member; its data is aligned by an extra field of zeros, as torch does it."""
        name = f"{_ROOT}/{member}".encode()
        size, offset = memoryview(data).nbytes, self.file.tell()
        crc = zlib.crc32(data)
        wide = _zip64_field([size, size]) if size >= _WIDE else b""
        begin = offset + 30 + len(name) + len(wide) + 4
        extra = wide + b"FB" + struct.pack("<H", -begin % ALIGNMENT) + bytes(-begin % ALIGNMENT)
        field = 0xFFFFFFFF if wide else size
        fixed = struct.pack("<5H3I", 45 if wide else 0, 0x800, 0, 0, 0x21, crc, field, field)
        self.file.write(b"PK\3\4" + fixed + struct.pack("<2H", len(name), len(extra)) + name + extra)
        self.file.write(data)
        far = offset >= _WIDE
        values = ([size, size] if wide else []) + ([offset] if far else [])
        extra = _zip64_field(values) if values else b""
        version = struct.pack("<H", 45 if extra else 0)
        self.central += b"PK\1\2" + version + (version + fixed[2:])
        self.central += struct.pack("<5H", len(name), len(extra), 0, 0, 0)
        self.central += struct.pack("<2I", 0, 0xFFFFFFFF if far else offset) + name + extra
        self.count += 1

    def finish(self) -> None:
        """Append the central directory."""
        offset, size = self.file.tell(), len(self.central)
        self.file.write(self.central)
        if offset + size >= _WIDE or self.count >= 0xFFFF:
            end = struct.pack("<QHH2I4Q", 44, 45, 45, 0, 0, self.count, self.count, size, offset)
            self.file.write(b"PK\6\6" + end)
            self.file.write(b"PK\6\7" + struct.pack("<IQI", 0, offset + size, 1))
            fields = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        else:
            fields = (self.count, self.count, size, offset)
        self.file.write(b"PK\5\6" + struct.pack("<2H2H2IH", 0, 0, *fields, 0))


def _zip64_field(values: list[int]) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)
