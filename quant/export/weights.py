"""What is exported: the tensors of a checkpoint or model file, as the original checkpoint has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quant.arch import Arch, Shape, expected
from quant.arrays import F32
from quant.checkpoints import Checkpoint
from quant.codecs.layouts import unpack
from quant.codecs.nf4 import Blocks, from_grouped
from quant.container.reader import ModelFile
from quant.errors import FormatError, InvalidRequest
from quant.formats import ENCODINGS
from quant.frame import implied_tokenizer
from quant.orient import logical_tensors, restored
from quant.recipe import class_of
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
    nf4: frozenset[str]
    """The matrices that a model file has as NF4, of the kinds that bitsandbytes has as NF4."""

    def __init__(self, opened: Checkpoint | ModelFile, *, nf4: bool = False) -> None:
        """Raises InvalidRequest for a quantized file: what was lost cannot be exported. `nf4`: but NF4 can."""
        if isinstance(opened, Checkpoint) and opened.quantized:
            raise InvalidRequest(
                f"{opened.path} is quantized ({opened.quantized})",
                hint="export the file that it was made from",
            )
        self.nf4 = nf4_in(opened) if nf4 and isinstance(opened, ModelFile) else frozenset()
        if isinstance(opened, ModelFile) and opened.quantized and not self.nf4:
            raise InvalidRequest(
                f"{opened.path} is quantized ({opened.recipe})",
                hint="use --to bnb, or export the checkpoint that it was made from"
                if nf4_in(opened)
                else "export the checkpoint that it was made from, or a model file of f32, bf16 or f16",
            )
        source = opened if isinstance(opened, ModelFile) else source_of(opened)
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
        """How the source stores tensor `name`: "f32", "f16" or "bf16"; "f32" for what `read` decodes."""
        if isinstance(self._opened, Checkpoint):
            return self._opened.dtype(name)
        encoding = self._opened.plan[self._parts[name][0]].encoding
        return "f32" if ENCODINGS[encoding].quantized else encoding

    def blocks(self, name: str) -> Blocks:
        """The codes and scales of the matrix `name`, one of `nf4`. FormatError: they are none."""
        assert isinstance(self._opened, ModelFile)
        plan = self._opened.plan[name]
        found = from_grouped(unpack(self._opened.parts(name), plan.encoding, plan.layout, plan.shape))
        if found is None:
            raise FormatError(f"{self.path}: tensor {name} has blocks of two scales, which is no NF4")
        return found

    def read(self, name: str) -> F32:
        """Canonical tensor `name` as float32 [logical shape]. FormatError: it has NaN or infinite values."""
        if isinstance(self._opened, Checkpoint):
            return self._opened.read(name)
        parts = [self._opened.decode(part) for part in self._parts[name]]
        if not all(bool(np.isfinite(part).all()) for part in parts):
            raise FormatError(f"{self.path}: tensor {name} has values that are NaN or infinite")
        return restored(parts, self._items[self._parts[name][0]]).reshape(self.shapes[name])


def nf4_in(model: ModelFile) -> frozenset[str]:
    """The matrices of attention and FFN that are NF4."""
    return frozenset(
        name
        for name, plan in model.plan.items()
        if plan.encoding == "nf4" and class_of(name) in ("att", "ffn")
    )
