"""Where weights come from: checkpoints and unquantized model files, both as logical tensors by rows."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quant.arch import Arch, Shape
from quant.arrays import F32, Array
from quant.checkpoints import Checkpoint, open_checkpoint
from quant.codecs import floats
from quant.container.reader import ModelFile, is_model_file
from quant.errors import FormatError, InvalidRequest, QuantError
from quant.orient import Logical, Turn, logical_tensors, turned
from quant.safetensors_file import SafetensorsFile

GROUP_NORM_EPS = 64e-5
"""What the released models were trained with; checkpoints do not say it."""


class Source(Protocol):
    """Logical tensors of a model."""

    path: Path
    files: tuple[Path, ...]
    """What is read: `path`, or the files of a folder or an index."""
    file_size: int
    arch: Arch
    group_norm_eps: float | None
    tokenizer: str | None
    """As in the metadata of a model file; None when the file does not know."""
    template: str | None
    """As in the metadata of a model file; None when the file does not know."""
    shapes: dict[str, Shape]
    """{logical name: shape}, in the order of use."""

    def rows(self, name: str, begin: int, end: int) -> F32:
        """Rows [begin, end) of a tensor (elements of a vector): finite float32, perhaps a view."""
        ...

    def tokenizer_bytes(self) -> bytes | None:
        """The tokenizer.json that the file holds, if any."""
        ...

    def provenance(self, stop: Callable[[], bool]) -> dict[str, Any]:
        """The metadata's `source`. May read the whole file; gives up early when `stop()` says so.

        Raises FormatError if the file's own checksums show damage.
        """
        ...


def open_model(path: str | os.PathLike[str], *, check_values: bool = True) -> Checkpoint | ModelFile:
    """Open `path` as whichever of the two it is; close it when done. Raises what both raise.

    `check_values`: look at a few values of a model file too, not at the header alone.
    """
    if _is_model(path):
        return ModelFile.open(path, check_values=check_values)
    return open_checkpoint(path)


def source_of(opened: Checkpoint | ModelFile) -> Source:
    """A source of weights. InvalidRequest: a model file that is quantized already."""
    return ModelSource(opened) if isinstance(opened, ModelFile) else CheckpointSource(opened)


class CheckpointSource:
    """The tensors of a checkpoint, turned."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.path, self.files = checkpoint.path, checkpoint.files
        self.file_size = checkpoint.file_size
        self.arch = checkpoint.arch
        self.group_norm_eps = _epsilon(checkpoint)
        self.tokenizer: str | None = None
        self.template: str | None = None
        self._items = logical_tensors(self.arch)
        self.shapes = {name: item.shape for name, item in self._items.items()}
        self._held: tuple[str, Array] | None = None

    def rows(self, name: str, begin: int, end: int) -> F32:
        """See `Source.rows`."""
        item = self._items[name]
        raw, encoding = self._raw(item.source), self._checkpoint.dtype(item.source)
        if item.turn is not Turn.KEEP:
            values = turned(floats.decode(raw, encoding), item)[begin:end]
        else:
            values = floats.decode(raw.reshape(item.shape)[begin:end], encoding)
        return _finite(values, self.path, name)

    def tokenizer_bytes(self) -> bytes | None:
        """Checkpoints hold none."""
        return None

    def provenance(self, stop: Callable[[], bool]) -> dict[str, Any]:
        """Name, size, hash and dtype of the checkpoint's file."""

        def watch(done: int, total: int) -> None:
            if stop():
                raise _Stopped

        try:
            digest = self._checkpoint.sha256(watch)
        except _Stopped:
            digest = ""
        dtype, _ = self._checkpoint.stored(self._largest().source)
        return {"file": told_name(self.path), "bytes": self.file_size, "sha256": digest, "dtype": dtype}

    def _raw(self, source: str) -> Array:
        """The stored tensor; kept until another is asked for, since reading may copy."""
        if self._held is None or self._held[0] != source:
            self._held = None
            self._held = source, self._checkpoint.read_raw(source)
        return self._held[1]

    def _largest(self) -> Logical:
        return max(self._items.values(), key=lambda item: math.prod(item.shape))


class ModelSource:
    """The tensors of an unquantized model file."""

    def __init__(self, model: ModelFile) -> None:
        if model.quantized:
            raise InvalidRequest(
                f"{model.path} is quantized already ({model.recipe})",
                hint="quantize the checkpoint that it was made from",
            )
        self._model = model
        self.path = model.path
        self.files: tuple[Path, ...] = (model.path,)
        self.file_size = model.size
        self.arch = model.arch
        self.group_norm_eps = model.group_norm_eps
        self.tokenizer: str | None = model.tokenizer
        self.template: str | None = model.template
        self.shapes = {name: plan.shape for name, plan in model.plan.items()}

    def rows(self, name: str, begin: int, end: int) -> F32:
        """See `Source.rows`."""
        return _finite(self._model.rows(name, begin, end), self.path, name)

    def tokenizer_bytes(self) -> bytes | None:
        """The tokenizer.json in the file, if there is one."""
        return self._model.tokenizer_bytes()

    def provenance(self, stop: Callable[[], bool]) -> dict[str, Any]:
        """That of the file: where its weights came from in the first place."""
        return self._model.source


def _epsilon(checkpoint: Checkpoint) -> float | None:
    if checkpoint.arch.version == "4":
        return None
    return checkpoint.group_norm_eps or GROUP_NORM_EPS


class _Stopped(Exception):
    """Hashing was told to stop."""


def told_name(path: Path) -> str:
    """The file's name for metadata: what is not UTF-8 in it is replaced, whatever the locale."""
    return os.fsencode(path.name or path.resolve().name).decode("utf-8", "replace")


def _is_model(path: str | os.PathLike[str]) -> bool:
    try:
        with SafetensorsFile(path) as file:
            return is_model_file(file.metadata)
    except QuantError:
        return False


def _finite(values: F32, path: Path, name: str) -> F32:
    if not bool(np.isfinite(values).all()):
        raise FormatError(
            f"{path}: tensor {name} has values that are NaN or infinite",
            hint="download the file again; if it says so once more, its training went wrong",
        )
    return values
