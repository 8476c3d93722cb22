"""Tensors in one safetensors file."""

from __future__ import annotations

import os

from quant.arrays import Array
from quant.checkpoints.tensor_file import OneMappedFile, RawTensor
from quant.safetensors_file import SafetensorsFile


class SafetensorsTensors(OneMappedFile):
    """The tensors of one safetensors file."""

    format = "safetensors"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map and validate `path`. Raises SourceNotFound and FormatError."""
        self._source = SafetensorsFile(path)
        super().__init__(self._source.file)
        self.metadata = self._source.metadata
        self.tensors = {
            name: RawTensor(info.dtype.lower(), info.shape, info.dtype.lower(), info.end - info.begin)
            for name, info in self._source.header.items()
        }

    def array(self, name: str) -> Array:
        """See `TensorFile.array`."""
        return self._source.array(name)
