"""A safetensors file, validated whole at the door, then read through a memory mapping without copies.

Layout: u64 little-endian header length n; n bytes of JSON `{name: {dtype, shape, data_offsets},
"__metadata__": {}}`; then the tensors' bytes, with neither holes nor overlaps. Offsets in the JSON count from
the end of the header.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from quant.errors import FormatError, quoted
from quant.mapped_file import MappedFile

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_HEADER = 100_000_000
"""Longest header accepted, in bytes (the same limit as the reference implementation's)."""
MAX_RANK = 32
DATA_ALIGNMENT = 64
"""Where the data begins of a file that is written here."""
MAX_ELEMENTS = 1 << 62

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

_NUMPY: dict[str, str] = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "F8_E5M2": "u1", "F8_E4M3": "u1", "F8_E8M0": "u1",
    "I16": "<i2", "U16": "<u2", "F16": "<f2", "BF16": "<u2",
    "I32": "<i4", "U32": "<u4", "F32": "<f4",
    "I64": "<i8", "U64": "<u8", "F64": "<f8", "C64": "<c8",
}  # fmt: skip


_ENTRY = {"dtype", "shape", "data_offsets"}


class TensorInfo(NamedTuple):
    """Where one tensor lies."""

    dtype: str
    """The format's own name: "F32", "BF16", "U8", ..."""
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the start of the file."""
    end: int
    """One past the last byte."""


class SafetensorsFile:
    """A mapped safetensors file whose header has been checked completely.

    After construction every range in `header` lies inside the file, has exactly the size that dtype and shape
    ask for, and the ranges cover the data without holes or overlaps.
    """

    header: dict[str, TensorInfo]
    """Tensors in the order of their bytes in the file."""
    metadata: dict[str, str]
    """The `__metadata__` object; empty when the file has none."""
    data_begin: int
    """Offset of the first data byte: 8 + header length."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map and validate `path`.

        Raises SourceNotFound (missing, a folder) and FormatError (anything invalid).
        """
        self.file = MappedFile(path)
        try:
            self._parse()
        except BaseException:
            self.file.close()
            raise

    @property
    def size(self) -> int:
        """File size in bytes."""
        return self.file.size

    def info(self, name: str) -> TensorInfo:
        """The place of tensor `name`; FormatError when there is none of that name."""
        try:
            return self.header[name]
        except KeyError:
            raise FormatError(f"{self.file.path} has no tensor {quoted(name)}") from None

    def buffer(self, name: str) -> memoryview:
        """The bytes of tensor `name`: a read-only view of the mapping."""
        info = self.info(name)
        return self.file.view(info.begin, info.end)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Tensor `name` as a read-only array of its shape: a view of the mapping, perhaps unaligned.

        numpy has neither bf16 (given as uint16) nor 8-bit floats (given as uint8); 4 and 6-bit floats:
        FormatError.
        """
        import numpy as np

        info = self.info(name)
        kind = _NUMPY.get(info.dtype)
        if kind is None:
            raise FormatError(f"tensor {quoted(name)} has dtype {info.dtype}, which cannot be read")
        dtype = np.dtype(kind)
        return self.file.array(dtype, (info.end - info.begin) // dtype.itemsize, info.begin).reshape(
            info.shape
        )

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """SHA-256 of the whole file as hex; `progress(bytes done, bytes in all)`."""
        return self.file.sha256(progress)

    def close(self) -> None:
        """Give the mapping back once no array refers to it."""
        self.file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _parse(self) -> None:
        path, size = self.file.path, self.file.size
        if size < 8:
            raise FormatError(f"{path} is {size} bytes long: too short for a safetensors file")
        (length,) = struct.unpack("<Q", self.file.read(0, 8))
        if length > MAX_HEADER:
            raise FormatError(f"{path}: header length {length} is over the limit of {MAX_HEADER} bytes")
        if 8 + length > size:
            raise FormatError(
                f"{path} is truncated: the header alone needs {8 + length} bytes, the file has {size}",
                hint="download the file again",
            )
        self.data_begin = 8 + length
        entries = _parse_json(str(path), self.file.read(8, self.data_begin))
        self.metadata = _metadata(str(path), entries.pop("__metadata__", {}))
        infos = {name: self._tensor(name, entry) for name, entry in entries.items()}
        self.header = dict(sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)))
        self._check_coverage()

    def _tensor(self, name: str, entry: object) -> TensorInfo:
        def failure(what: str, hint: str | None = None) -> FormatError:
            return FormatError(f"{self.file.path}: tensor {quoted(name)}{what}", hint=hint)

        if not isinstance(entry, dict) or entry.keys() != _ENTRY:
            raise failure(": its header entry is not an object of dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise failure(f": unknown dtype {quoted(str(dtype))}")
        if not _is_sizes(shape) or len(shape) > MAX_RANK:
            raise failure(f": its shape is not a list of at most {MAX_RANK} sizes")
        if not _is_sizes(offsets) or len(offsets) != 2:
            raise failure(": data_offsets is not a pair of offsets")
        elements = 1
        for dim in shape:
            elements *= dim
            if elements > MAX_ELEMENTS:
                raise failure(": its shape has too many elements")
        bits = elements * _BITS[dtype]
        begin, end = self.data_begin + offsets[0], self.data_begin + offsets[1]
        if begin > end:
            raise failure(": it ends before it begins")
        if bits % 8 or end - begin != bits // 8:
            raise failure(f": {end - begin} bytes do not hold {elements} elements of {dtype}")
        if end > self.file.size:
            raise failure(
                f" ends at byte {end} of {self.file.size}: the file is truncated or damaged",
                hint="download the file again",
            )
        return TensorInfo(dtype, tuple(shape), begin, end)

    def _check_coverage(self) -> None:
        at = self.data_begin
        for name, info in self.header.items():
            if info.begin != at:
                what = "overlaps the tensor before it" if info.begin < at else "leaves a hole before it"
                raise FormatError(f"{self.file.path}: tensor {quoted(name)} {what}")
            at = info.end
        if at != self.file.size:
            raise FormatError(f"{self.file.path}: the last {self.file.size - at} bytes belong to no tensor")


def header_bytes(
    places: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> bytes:
    """What a file begins with whose tensors, {name: (dtype, shape, bytes)}, follow one another in this order.

    Padded with spaces so that the data begins at a multiple of DATA_ALIGNMENT bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape, size) in places.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _parse_json(path: str, text: bytes) -> dict[str, Any]:
    """The header object. Duplicate keys at any depth, NaN and bad UTF-8 are errors."""
    if text[:1] != b"{":
        raise FormatError(f"{path}: the safetensors header does not begin with '{{'")
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if b"\\u" in text:  # JSON can spell half of a surrogate pair, which is no text
            json.dumps(parsed, ensure_ascii=False).encode()
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the header is not valid JSON ({quoted(str(error))})") from None
    if not isinstance(parsed, dict):
        raise FormatError(f"{path}: the safetensors header is not a JSON object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise FormatError(f"key {quoted(twice)} appears twice in the header")
    return result


def _refuse_constant(text: str) -> None:
    raise FormatError(f"the header holds {text}")


def _metadata(path: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise FormatError(f"{path}: __metadata__ is not an object of strings")
    return value


def _is_sizes(value: object) -> bool:
    """Whether value is a list of integers in [0, MAX_ELEMENTS]; true and false are not integers here."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_ELEMENTS for item in value)
