"""What GGUF and rwkv.cpp's files share: tensors whose rows are floats or blocks of codes, at known places of a file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant.arch import Shape
from quant.arrays import Array
from quant.checkpoints.ggml_blocks import FLOATS, INTEGERS, BlockType, dequantized
from quant.checkpoints.tensor_file import OneMappedFile, RawTensor
from quant.errors import FormatError, quoted
from quant.mapped_file import MappedFile

_MAX_ELEMENTS = 1 << 40


class Place(NamedTuple):
    """Where a tensor lies, and what it is made of."""

    kind: BlockType
    shape: Shape
    begin: int
    """First byte, from the start of the file."""


class GgmlTensors(OneMappedFile):
    """A file of such tensors; `places` is filled by the format's own reader."""

    def __init__(self, file: MappedFile) -> None:
        super().__init__(file)
        self._places: dict[str, Place] = {}
        self.tensors: dict[str, RawTensor] = {}

    def array(self, name: str) -> Array:
        """See `TensorFile.array`. Raises what `ggml_blocks.dequantized` raises."""
        kind, shape, begin = self._places[name]
        nbytes = self.tensors[name].nbytes
        if kind.name in FLOATS:
            dtype = np.dtype(FLOATS[kind.name])
            return self._file.array(dtype, nbytes // dtype.itemsize, begin).reshape(shape)
        rows = self._file.array(np.uint8, nbytes, begin).reshape(*shape[:-1], -1)
        values = dequantized(rows, kind.name)
        values.flags.writeable = False
        return values

    def add(self, name: str, place: Place) -> int:
        """Take a tensor in after checking it, and return where it ends. FormatError."""
        where = f"{self.path}: tensor {quoted(name)}"
        if name in self._places:
            raise FormatError(f"{where} is there twice")
        kind, shape, begin = place
        elements = 1
        for dim in shape:
            elements *= dim
        if not shape or min(shape) < 1 or elements > _MAX_ELEMENTS:
            raise FormatError(f"{where} has a shape that is none: {quoted(str(list(shape)))}")
        if shape[-1] % kind.weights:
            raise FormatError(f"{where}: rows of {shape[-1]} are not whole blocks of {kind.name}")
        nbytes = elements // kind.weights * kind.nbytes
        if begin + nbytes > self.size:
            raise FormatError(
                f"{where} ends at byte {begin + nbytes} of {self.size}: the file is truncated or damaged",
                hint="download the file again",
            )
        floats = kind.name in FLOATS
        readable = floats or kind.name not in INTEGERS
        dtype = kind.name if floats or not readable else "f32"
        self._places[name] = place
        self.tensors[name] = RawTensor(dtype, shape, kind.name, nbytes, lossy=readable and not floats)
        return begin + nbytes
