"""What is exported: the tensors of an unquantized checkpoint or model file, as the original checkpoint has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quant.arch import Arch, Shape, expected
from quant.arrays import F32
from quant.checkpoints import Checkpoint
from quant.container.reader import ModelFile
from quant.errors import FormatError, InvalidRequest
from quant.frame import implied_tokenizer
from quant.orient import logical_tensors, restored
from quant.sources import source_of


class Weights:
    """Canonical tensors one at a time, and what is known of the model."""

    path: Path
    arch: Arch
    group_norm_eps: float | None
    """None in v4, which has no group norm."""
    tokenizer: str
    """"world", "bytes", "json" (see `tokenizer_json`) or "none"."""
    tokenizer_json: bytes | None
    shapes: Mapping[str, Shape]
    """{canonical name: logical shape} of every tensor that the model uses."""

    def __init__(self, opened: Checkpoint | ModelFile) -> None:
        """Raises InvalidRequest for a quantized file: what was lost cannot be exported."""
        if isinstance(opened, Checkpoint) and opened.quantized:
            raise InvalidRequest(
                f"{opened.path} is quantized ({opened.quantized})",
                hint="export the file that it was made from",
            )
        if isinstance(opened, ModelFile) and opened.quantized:
            raise InvalidRequest(
                f"{opened.path} is quantized ({opened.recipe})",
                hint="export the checkpoint that it was made from, or a model file of f32, bf16 or f16",
            )
        source = source_of(opened)
        self._opened = opened
        self.path, self.arch, self.group_norm_eps = source.path, source.arch, source.group_norm_eps
        self.tokenizer = source.tokenizer or implied_tokenizer(self.arch.vocab_size)
        self.tokenizer_json = source.tokenizer_bytes()
        self.shapes = expected(self.arch)
        self._parts: dict[str, list[str]] = {}
        self._items = logical_tensors(self.arch)
        for name, item in self._items.items():
            self._parts.setdefault(item.source, []).append(name)

    def dtype(self, name: str) -> str:
        """How the source stores tensor `name`: "f32", "f16" or "bf16"."""
        if isinstance(self._opened, Checkpoint):
            return self._opened.dtype(name)
        return self._opened.plan[self._parts[name][0]].encoding

    def read(self, name: str) -> F32:
        """Canonical tensor `name` as float32 [logical shape]. FormatError: it has NaN or infinite values."""
        if isinstance(self._opened, Checkpoint):
            return self._opened.read(name)
        parts = [self._opened.decode(part) for part in self._parts[name]]
        if not all(bool(np.isfinite(part).all()) for part in parts):
            raise FormatError(f"{self.path}: tensor {name} has values that are NaN or infinite")
        return restored(parts, self._items[self._parts[name][0]]).reshape(self.shapes[name])
