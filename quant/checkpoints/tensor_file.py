"""What every file of tensors offers, whatever its format: names, shapes, and one array at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from quant.arch import Shape
from quant.arrays import F32, Array
from quant.mapped_file import MappedFile

ITEM_SIZE = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of the dtypes that are read."""


class RawTensor(NamedTuple):
    """One tensor as the file describes it."""

    dtype: str
    """What `TensorFile.array` gives: "f32", "f16" or "bf16"; a tensor of another dtype is listed but cannot be read."""
    shape: Shape
    stored: str
    """The file's own word for its form: "bf16", "q4_k", "nf4", ..."""
    nbytes: int
    """Size in the file."""
    lossy: bool = False
    """Whether it has been quantized: its values are decoded from codes."""


class TensorFile(ABC):
    """An open file (or several that belong together), mapped and checked at the door."""

    format: ClassVar[str]
    """"pth", "safetensors", "gguf" or "ggmf"."""
    path: Path
    size: int
    """Bytes of the file, of all of them if there are several."""
    tensors: Mapping[str, RawTensor]
    """{name in the file: what it says of the tensor}, in file order."""
    metadata: dict[str, str]
    """Strings that the file carries beside its tensors."""
    numbers: dict[str, Any]
    """Other values that it carries; only GGUF files and rwkv.cpp's have any."""

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Where it is on the disk: one file, or all of those that belong together."""

    @abstractmethod
    def array(self, name: str) -> Array:
        """Tensor `name` of a readable dtype: its shape, read-only, perhaps an unaligned view; bf16 as uint16."""

    def place(self, name: str) -> Hashable:
        """Equal for two tensors that are the same elements of the file."""
        return name

    @abstractmethod
    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """SHA-256 of the whole as 64 hex digits; `progress(bytes done, bytes in all)` is called as it goes.

        FormatError if checksums inside do not hold.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the mapping back once no array refers to it. May be called twice."""


class OneMappedFile(TensorFile):
    """A TensorFile that is one mapped file."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self.path, self.size = file.path, file.size
        self.metadata, self.numbers = {}, {}

    @property
    def files(self) -> tuple[Path, ...]:
        """See `TensorFile.files`."""
        return (self._file.path,)

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """See `TensorFile.sha256`."""
        return self._file.sha256(progress)

    def close(self) -> None:
        """See `TensorFile.close`."""
        self._file.close()


def widened(raw: Array, dtype: str) -> F32:
    """An array of dtype "f32", "f16" or "bf16" (bits as uint16) as float32, C-contiguous and aligned."""
    if dtype == "bf16":
        bits = np.empty(raw.shape, np.uint32)
        np.left_shift(raw, 16, out=bits, dtype=np.uint32, casting="unsafe")
        return bits.view(np.float32)
    return np.require(raw, np.float32, ["C_CONTIGUOUS", "ALIGNED"])
