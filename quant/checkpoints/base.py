"""A checkpoint: a file of tensors, read through its layout as the canonical tensors of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.arch import Arch, Shape, detect
from quant.arrays import Array
from quant.checkpoints.hf_config import HfConfig
from quant.checkpoints.layouts import Contents, Piece, pieces_of
from quant.checkpoints.tensor_file import ITEM_SIZE, RawTensor, TensorFile, widened
from quant.errors import FormatError, UnsupportedModel, quoted

_PART = re.compile(r"-([0-9]{1,6})-of-([0-9]{1,6})\b")
"""What the names of the parts of a model in several files hold."""
_FINITE_CHUNK = 1 << 18
"""Elements looked at together for NaN and infinity, so that the scratch array stays in the cache."""


class Checkpoint:
    """An open checkpoint: named tensors in a mapped file, read one at a time.

    Names are canonical (BlinkDL's), orientations too, and shapes logical ([1, 1, C] is [C]). Use it as a context
    manager; arrays that were read stay valid after `close`.
    """

    def __init__(self, file: TensorFile, config: HfConfig | None = None) -> None:
        """`file` is this object's from now on. Raises FormatError and UnsupportedModel: nothing in it, or its layout
        cannot be told.
        """
        self._file = file
        self._config = config if config is not None else HfConfig.none()
        if not file.tensors:
            raise FormatError(f"{file.path} holds no tensors")
        contents = Contents(str(file.path), file.tensors, file.format, file.numbers)
        self.layout, self._pieces = pieces_of(contents)
        """Name of the layout, as in `quant.checkpoints.layouts`."""
        if self._config.tied and "emb.weight" in self._pieces:
            self._pieces.setdefault("head.weight", self._pieces["emb.weight"])

    @property
    def format(self) -> str:
        """ "pth", "safetensors", "gguf" or "ggmf"."""
        return self._file.format

    @property
    def path(self) -> Path:
        """The file's path as it was given."""
        return self._file.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the tensors are in, an index included."""
        return self._file.files

    @property
    def file_size(self) -> int:
        """Size of the whole file in bytes, of all files if there are several."""
        return self._file.size

    @property
    def metadata(self) -> Mapping[str, str]:
        """Strings that the file carries beside its tensors."""
        return self._file.metadata

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names, in the file's order."""
        return tuple(self._pieces)

    @property
    def shapes(self) -> dict[str, Shape]:
        """{canonical name: logical shape} of all tensors."""
        return {name: piece.shape for name, piece in self._pieces.items()}

    @cached_property
    def repeated(self) -> frozenset[str]:
        """Names of tensors that are an earlier one once more: a head that is the embedding."""
        first: dict[Any, str] = {}
        for name, piece in self._pieces.items():
            first.setdefault((self._file.place(piece.source), piece.shape, piece.take), name)
        return frozenset(self._pieces.keys() - first.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of known dtype, as stored."""
        sources = {piece.source for piece in self._pieces.values()}
        found = (raw for name, raw in self._file.tensors.items() if name in sources)
        return sum(raw.nbytes for raw in found if raw.dtype in ITEM_SIZE)

    @property
    def quantized(self) -> str:
        """The form of tensors that have lost precision to codes, such as "q4_k, q6_k"; empty if there are none."""
        return ", ".join(sorted({raw.stored for raw in self._file.tensors.values() if raw.lossy}))

    @cached_property
    def arch(self) -> Arch:
        """Version and sizes; raises what `quant.arch.detect` and `HfConfig.check` raise."""
        try:
            arch = detect(self.shapes, str(self.path), ln0_fused=self._config.ln0_fused)
        except FormatError:
            part = _PART.search(self.path.name)
            if part is None or int(part[2]) < 2:
                raise
            raise UnsupportedModel(
                f"{self.path} is part {int(part[1])} of {int(part[2])} of a model in several files",
                hint="pass the folder that they are in, or its file .index.json",
            ) from None
        self._config.check(arch)
        return arch

    @property
    def group_norm_eps(self) -> float | None:
        """The group norm's epsilon if a configuration beside the file tells it."""
        return self._config.group_norm_eps(self.arch)

    def shape(self, name: str) -> Shape:
        """Logical shape of tensor `name`. FormatError when there is none of that name."""
        return self._piece(name).shape

    def dtype(self, name: str) -> str:
        """What `read_raw` gives: "f32", "f16" or "bf16"; for tensors that cannot be read, the dtype's own name."""
        piece = self._piece(name)
        return "f32" if piece.computed else self._raw(piece).dtype

    def stored(self, name: str) -> tuple[str, float]:
        """(form, bytes) of what the file holds for tensor `name`: ("q4_k", 1024). One of several that share a stored
        tensor has its part of the bytes, one that is an earlier one none.
        """
        piece = self._piece(name)
        raw = self._raw(piece)
        if name in self.repeated:
            return raw.stored, 0
        return raw.stored, raw.nbytes * _elements(piece.shape) / max(_elements(raw.shape), 1)

    def read(self, name: str, *, check_finite: bool = True) -> npt.NDArray[np.float32]:
        """Tensor `name` as float32 [logical shape], C-contiguous, aligned and read-only.

        A float32 tensor that already lies so in the file is given as a view of the mapping; others are
        converted.
        Raises FormatError: no such tensor, a dtype other than f32, f16, bf16, or (unless `check_finite` is
        False) NaN or infinite values.
        """
        piece = self._piece(name)
        values = widened(self._native(name, piece), self.dtype(name))
        if check_finite:
            bad = count_nonfinite(values)
            if bad:
                what = "value that is" if bad == 1 else "values that are"
                raise FormatError(f"{self.path}: tensor {quoted(name)} has {bad} {what} NaN or infinite")
        return _frozen(values)

    def read_raw(self, name: str) -> npt.NDArray[Any]:
        """Tensor `name` [logical shape] in its own dtype, C-contiguous and read-only.

        That is float32, float16, or for bf16 the bits as uint16. FormatError: no such tensor, other dtypes.
        """
        piece = self._piece(name)
        return _frozen(np.require(self._native(name, piece), requirements=["C_CONTIGUOUS", "ALIGNED"]))

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """See `TensorFile.sha256`."""
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

    def _piece(self, name: str) -> Piece:
        try:
            return self._pieces[name]
        except KeyError:
            raise FormatError(f"{self.path} has no tensor {quoted(name)}") from None

    def _raw(self, piece: Piece) -> RawTensor:
        return self._file.tensors[piece.source]

    def _native(self, name: str, piece: Piece) -> Array:
        """The tensor [logical shape] in its own dtype; perhaps a view."""
        raw = self._raw(piece)
        if raw.dtype not in ITEM_SIZE:
            raise FormatError(
                f"{self.path}: tensor {quoted(name)} is {quoted(raw.dtype)}; only f32, f16, bf16 are read"
            )
        with np.errstate(all="ignore"):  # damage makes values that no arithmetic likes; `read` finds them
            values = self._file.array(piece.source)
            if piece.computed:
                values = widened(values, raw.dtype)
            if piece.take is not None:
                values = piece.take(values)
        return values.reshape(piece.shape)


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
