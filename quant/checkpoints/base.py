"""What every checkpoint reader offers, whatever the file format."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from quant.arch import Arch, Shape, detect, logical_shape
from quant.errors import FormatError, UnsupportedModel, quoted
from quant.mapped_file import MappedFile

_ITEM_SIZE = {"f32": 4, "f16": 2, "bf16": 2}
_PART = re.compile(r"-([0-9]{1,6})-of-([0-9]{1,6})\b")
"""What the names of the parts of a model in several files hold."""
_FINITE_CHUNK = 1 << 18
"""Elements looked at together for NaN and infinity, so that the scratch array stays in the cache."""


class Stored(NamedTuple):
    """What the file says of one tensor."""

    file_name: str
    """The name in the file, with whatever prefix."""
    dtype: str
    """"f32", "f16", "bf16"; other dtypes are listed but cannot be read."""
    shape: Shape
    """As in the file: vectors may be [1, 1, C]."""


class Checkpoint(ABC):
    """An open checkpoint: named tensors in a mapped file, read one at a time.

    Names are canonical (BlinkDL's, without training prefixes) and shapes logical ([1, 1, C] is [C]). Use it
    as a context manager; arrays that were read stay valid after `close`.
    """

    format: ClassVar[str]
    """"pth" or "safetensors"."""

    def __init__(self, file: MappedFile, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
        self._file = file
        self._tensors = dict(tensors)
        self.metadata = dict(metadata)
        """Strings that the file carries beside its tensors."""
        if not self._tensors:
            raise FormatError(f"{file.path} holds no tensors")

    @abstractmethod
    def _view(self, name: str) -> npt.NDArray[Any]:
        """Canonical `name` as it lies in the file: stored shape, native dtype (bf16 as uint16)."""

    @property
    def path(self) -> Path:
        """The file's path as it was given."""
        return self._file.path

    @property
    def file_size(self) -> int:
        """Size of the whole file in bytes."""
        return self._file.size

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names, in the file's order."""
        return tuple(self._tensors)

    @property
    def shapes(self) -> dict[str, Shape]:
        """{canonical name: logical shape} of all tensors."""
        return {name: logical_shape(stored.shape) for name, stored in self._tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of known dtype, as stored."""
        return sum(_elements(item.shape) * _ITEM_SIZE.get(item.dtype, 0) for item in self._tensors.values())

    @cached_property
    def arch(self) -> Arch:
        """Version and sizes; raises what `quant.arch.detect` raises."""
        try:
            return detect(self.shapes, str(self.path))
        except FormatError:
            part = _PART.search(self.path.name)
            if part is None or int(part[2]) < 2:
                raise
            raise UnsupportedModel(
                f"{self.path} is part {int(part[1])} of {int(part[2])} of a model in several files: "
                "not supported yet",
                hint="Use a checkpoint in one file.",
            ) from None

    def shape(self, name: str) -> Shape:
        """Logical shape of tensor `name`. FormatError when there is none of that name."""
        return logical_shape(self._stored(name).shape)

    def dtype(self, name: str) -> str:
        """ "f32", "f16" or "bf16"; for tensors that cannot be read, the dtype's own name such as "i64"."""
        return self._stored(name).dtype

    def read(self, name: str, *, check_finite: bool = True) -> npt.NDArray[np.float32]:
        """Tensor `name` as float32 [logical shape], C-contiguous, aligned and read-only.

        A float32 tensor that already lies so in the file is given as a view of the mapping; others are
        converted.
        Raises FormatError: no such tensor, a dtype other than f32, f16, bf16, or (unless `check_finite` is
        False) NaN or infinite values.
        """
        stored = self._stored(name)
        raw = self._native(name, stored)
        if stored.dtype == "bf16":
            bits = np.empty(raw.shape, np.uint32)
            np.left_shift(raw, 16, out=bits, dtype=np.uint32, casting="unsafe")
            values = bits.view(np.float32)
        else:
            values = np.require(raw, np.float32, ["C_CONTIGUOUS", "ALIGNED"])
        if check_finite:
            bad = count_nonfinite(values)
            if bad:
                what = "value that is" if bad == 1 else "values that are"
                raise FormatError(f"{self.path}: tensor {quoted(name)} has {bad} {what} NaN or infinite")
        return _frozen(values.reshape(logical_shape(stored.shape)))

    def read_raw(self, name: str) -> npt.NDArray[Any]:
        """Tensor `name` [logical shape] in its own dtype, C-contiguous and read-only.

        That is float32, float16, or for bf16 the bits as uint16. FormatError: no such tensor, other dtypes.
        """
        stored = self._stored(name)
        raw = np.require(self._native(name, stored), requirements=["C_CONTIGUOUS", "ALIGNED"])
        return _frozen(raw.reshape(logical_shape(stored.shape)))

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """SHA-256 of the whole file as 64 hex digits; FormatError if checksums inside it do not hold.

        `progress(bytes done, bytes in all)` is called as it goes.
        """
        return self._file.sha256(progress)

    def close(self) -> None:
        """Give the mapping back once no array refers to it. May be called twice."""
        self._file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stored(self, name: str) -> Stored:
        try:
            return self._tensors[name]
        except KeyError:
            raise FormatError(f"{self.path} has no tensor {quoted(name)}") from None

    def _native(self, name: str, stored: Stored) -> npt.NDArray[Any]:
        if stored.dtype not in _ITEM_SIZE:
            raise FormatError(
                f"{self.path}: tensor {quoted(name)} is {quoted(stored.dtype)}; only f32, f16, bf16 are read"
            )
        return self._view(name)


def count_nonfinite(values: npt.NDArray[np.float32]) -> int:
    """Number of NaN and infinite elements of a C-contiguous array."""
    flat = values.reshape(-1)
    good = 0
    for begin in range(0, flat.size, _FINITE_CHUNK):
        good += int(np.count_nonzero(np.isfinite(flat[begin : begin + _FINITE_CHUNK])))
    return flat.size - good


def _elements(shape: Shape) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def _frozen(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values.flags.writeable = False
    return values
