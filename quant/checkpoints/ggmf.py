"""The .bin files of rwkv.cpp ("ggmf", versions 100 and 101).

Six int32 (magic, version, vocabulary, width, layers, dtype), then per tensor: number of dimensions, length of the name,
dtype, the dimensions (fastest first), the name and the data, without any alignment. Quantized blocks of version 100 are
in a form that no program reads any more.
"""

from __future__ import annotations

import os
import struct

from quant.checkpoints.ggml_blocks import BY_NAME, BlockType
from quant.checkpoints.ggml_tensors import GgmlTensors, Place
from quant.errors import FormatError, UnsupportedModel, quoted
from quant.mapped_file import MappedFile

MAGIC = 0x67676D66
VERSIONS = (100, 101)
_KINDS: dict[int, BlockType] = {
    number: BY_NAME[name]
    for number, name in {
        0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q5_0", 8: "q5_1", 9: "q8_0",
        11: "q2_k", 12: "q3_k", 13: "q4_k", 14: "q5_k", 15: "q6_k",
    }.items()
}  # fmt: skip
"""rwkv.cpp's own numbers, which are not ggml's."""
_REMOVED = {4: "Q4_1_O", 5: "Q4_2", 6: "Q4_3"}
_HEADER = struct.Struct("<6i")
_TENSOR = struct.Struct("<3i")
_MOST_DIMS = 4
_LONGEST_NAME = 1 << 12


class GgmfTensors(GgmlTensors):
    """The tensors of one file of rwkv.cpp."""

    format = "ggmf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map and validate `path`. Raises SourceNotFound, UnsupportedModel (formats that were removed) and FormatError."""
        file = MappedFile(path)
        try:
            super().__init__(file)
            self._read(file)
        except BaseException:
            file.close()
            raise

    def _read(self, file: MappedFile) -> None:
        if self.size < _HEADER.size:
            raise FormatError(
                f"{self.path} is {self.size} bytes long: truncated", hint="download the file again"
            )
        magic, version, *_ = _HEADER.unpack(file.read(0, _HEADER.size))
        if magic != MAGIC:
            raise FormatError(f"{self.path} is not a file of rwkv.cpp")
        if version not in VERSIONS:
            raise UnsupportedModel(f"{self.path} is an rwkv.cpp file of version {version}: not supported")
        at = _HEADER.size
        while at < self.size:
            at = self._tensor(file, at, version)

    def _tensor(self, file: MappedFile, at: int, version: int) -> int:
        """Read the tensor at byte `at`; where the next one begins."""
        begin = at + _TENSOR.size
        if begin > self.size:
            raise self._truncated()
        rank, length, kind = _TENSOR.unpack(file.read(at, begin))
        if not 1 <= rank <= _MOST_DIMS or not 1 <= length <= _LONGEST_NAME:
            raise FormatError(
                f"{self.path}: the tensor at byte {at} has {rank} dimensions and a name of {length} bytes"
            )
        name_at = begin + 4 * rank
        data_at = name_at + length
        if data_at > self.size:
            raise self._truncated()
        dims = struct.unpack(f"<{rank}i", file.read(begin, name_at))
        name = file.read(name_at, data_at).decode("utf-8", "backslashreplace")
        if kind not in _KINDS:
            what = _REMOVED.get(kind, f"type {kind}")
            raise UnsupportedModel(f"{self.path}: tensor {quoted(name)} is of {what}, which rwkv.cpp gave up")
        if version == VERSIONS[0] and _KINDS[kind].weights > 1:
            raise UnsupportedModel(
                f"{self.path}: quantized rwkv.cpp files of version 100 are not supported",
                hint="use an FP16 or FP32 file, or one of version 101",
            )
        return self.add(name, Place(_KINDS[kind], tuple(reversed(dims)), data_at))

    def _truncated(self) -> FormatError:
        return FormatError(
            f"{self.path} is truncated: its last tensor is cut", hint="download the file again"
        )
