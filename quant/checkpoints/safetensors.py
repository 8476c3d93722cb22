"""Checkpoints in safetensors files."""

from __future__ import annotations

import os
from typing import Any

import numpy.typing as npt

from quant.checkpoints.base import Checkpoint, Stored
from quant.checkpoints.naming import canonical_names
from quant.safetensors_file import SafetensorsFile


class SafetensorsCheckpoint(Checkpoint):
    """A model in one safetensors file."""

    format = "safetensors"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map and validate `path`. Raises SourceNotFound and FormatError."""
        self._source = SafetensorsFile(path)
        try:
            header = self._source.header
            tensors = {
                name: Stored(file_name, header[file_name].dtype.lower(), header[file_name].shape)
                for name, file_name in canonical_names(header).items()
            }
            super().__init__(self._source.file, tensors, self._source.metadata)
        except BaseException:
            self._source.close()
            raise

    def _view(self, name: str) -> npt.NDArray[Any]:
        return self._source.array(self._tensors[name].file_name)
