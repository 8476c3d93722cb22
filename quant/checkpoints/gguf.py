"""GGUF files, versions 2 and 3: metadata, a list of tensors, then their data.

Only single values of the metadata are kept; arrays (the vocabulary) are stepped over. All numbers are little-endian.
Tensors follow one another, each at the next multiple of the alignment, as ggml's own reader asks for.
"""

from __future__ import annotations

import os
import struct
from typing import Any

from quant.checkpoints.ggml_blocks import TYPES
from quant.checkpoints.ggml_tensors import GgmlTensors, Place
from quant.errors import FormatError, UnsupportedModel, quoted
from quant.mapped_file import MappedFile
from quant.sizes import round_up

MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""{type: struct code} of the metadata's numbers."""
_STRING, _ARRAY = 8, 9
_MOST = {
    "entries": 1 << 16,
    "tensors": 1 << 20,
    "elements": 1 << 24,
    "dimensions": 8,
    "bytes of text": 1 << 24,
}
"""More than any file has."""
_MAX_ALIGNMENT = 1 << 16


class GgufTensors(GgmlTensors):
    """The tensors of one GGUF file; `numbers` has its metadata's single values."""

    format = "gguf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map and validate `path`. Raises SourceNotFound, UnsupportedModel (version 1, big-endian) and FormatError."""
        file = MappedFile(path)
        try:
            super().__init__(file)
            header = _Cursor(file)
            self._read(header)
        except BaseException:
            file.close()
            raise

    def _read(self, at: _Cursor) -> None:
        if at.take(4) != MAGIC:
            raise FormatError(f"{self.path} is not a GGUF file")
        version = at.number("I")
        if version not in (2, 3):
            if version & 0xFFFF == 0:
                raise UnsupportedModel(f"{self.path} is a big-endian GGUF file: not supported")
            raise UnsupportedModel(f"{self.path} is a GGUF file of version {version}: not supported")
        tensors, entries = at.count("tensors"), at.count("entries")
        for _ in range(entries):
            key = at.text()
            value = self._value(at, at.number("I"))
            if key in self.numbers:
                raise FormatError(f"{self.path}: metadata {quoted(key)} are there twice")
            self.numbers[key] = value
            if isinstance(value, str):
                self.metadata[key] = value
        alignment = self.numbers.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT:
            raise FormatError(f"{self.path}: an alignment of {quoted(str(alignment))} makes no sense")
        listed = [self._entry(at) for _ in range(tensors)]
        data = round_up(at.position, alignment)
        end = 0
        for name, place in sorted(listed, key=lambda item: item[1].begin):
            if place.begin != round_up(end, alignment):
                what = "overlaps the tensor before it" if place.begin < end else "leaves a hole before it"
                raise FormatError(f"{self.path}: tensor {quoted(name)} {what}")
            end = self.add(name, place._replace(begin=data + place.begin)) - data
        rest = self.size - data - end
        if rest >= alignment:
            raise FormatError(f"{self.path}: the last {rest} bytes belong to no tensor")

    def _value(self, at: _Cursor, kind: int) -> Any:
        """A single value; None for an array."""
        if kind == _STRING:
            return at.text()
        if kind in _SCALARS:
            return at.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise FormatError(f"{self.path}: unknown type {kind} in the metadata")
        inner = at.number("I")
        count = at.count("elements")
        if inner == _STRING:
            for _ in range(count):
                at.skip(at.number("Q"))
        elif inner in _SCALARS:
            at.skip(count * struct.calcsize(_SCALARS[inner]))
        else:
            raise FormatError(f"{self.path}: an array of type {inner} in the metadata")
        return None

    def _entry(self, at: _Cursor) -> tuple[str, Place]:
        """A tensor's name and its place, counted from the data's beginning."""
        name = at.text()
        dims = [at.number("Q") for _ in range(at.count("dimensions", "I"))]
        kind = at.number("I")
        begin = at.number("Q")
        if kind not in TYPES:
            raise UnsupportedModel(
                f"{self.path}: tensor {quoted(name)} is of type {kind}, which is not known"
            )
        return name, Place(TYPES[kind], tuple(reversed(dims)), begin)


class _Cursor:
    """Reads a header from its beginning on."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self.skip(count)
        return self._file.read(self.position - count, self.position)

    def skip(self, count: int) -> None:
        """Go on by `count` bytes."""
        if count > self._file.size - self.position:
            raise FormatError(
                f"{self._file.path} is truncated: its header goes beyond its end",
                hint="download the file again",
            )
        self.position += count

    def number(self, code: str) -> Any:
        """One number of `struct`'s type `code`."""
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def count(self, what: str, code: str = "Q") -> int:
        """A number of things."""
        value = int(self.number(code))
        if value > _MOST[what]:
            raise FormatError(f"{self._file.path}: {value} {what} are more than any model has")
        return value

    def text(self) -> str:
        """A name, or another short string."""
        data = self.take(self.count("bytes of text"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return data.decode("utf-8", "backslashreplace")
