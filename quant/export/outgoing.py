"""Tensors on their way into a file of another tool: announced first, made one at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from quant.arch import Shape
from quant.arrays import F32, U8
from quant.checkpoints.write import holds
from quant.errors import Cancelled, FormatError
from quant.pipeline import Progress


class Outgoing(NamedTuple):
    """One tensor as it is to be stored."""

    name: str
    shape: Shape
    dtype: str
    """"f32", "f16", "bf16" or "u8"."""
    make: Callable[[], F32 | U8]
    """Its values, with as many elements as `shape`, in order: float32, or for "u8" bytes."""
    form: str | None = None
    """What it is counted as, if not as its dtype; "" for a part of another one."""


class OutgoingStream:
    """A `TensorStream` of outgoing tensors that tells how far it is and can be stopped."""

    def __init__(
        self,
        tensors: Iterable[Outgoing],
        on_progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.tensors = list(tensors)
        self._on_progress, self._should_stop = on_progress, should_stop

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """{name: shape}, in the order of iteration."""
        return {item.name: item.shape for item in self.tensors}

    @property
    def dtypes(self) -> Mapping[str, str]:
        """{name: dtype}."""
        return {item.name: item.dtype for item in self.tensors}

    @property
    def forms(self) -> Counter[str]:
        """How many tensors there are of each form."""
        told = (item.dtype if item.form is None else item.form for item in self.tensors)
        return Counter(form for form in told if form)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """(name, values) pairs. Raises Cancelled, and FormatError for values that float16 does not hold."""
        total = sum(math.prod(item.shape) for item in self.tensors)
        done = 0
        for item in self.tensors:
            if self._should_stop is not None and self._should_stop():
                raise Cancelled("stopped")
            if self._on_progress is not None:
                self._on_progress(Progress(item.name, done, total))
            kind = np.uint8 if item.dtype == "u8" else np.float32
            values = np.ascontiguousarray(item.make(), kind).reshape(item.shape)
            if not holds(item.dtype, values):
                raise FormatError(
                    f"tensor {item.name} has values past the range of {item.dtype}",
                    hint=f"use {'--dtype bf16 or ' if item.dtype == 'f16' else ''}--dtype f32",
                )
            yield item.name, values
            done += values.size
        if self._on_progress is not None:
            self._on_progress(Progress("", total, total))
