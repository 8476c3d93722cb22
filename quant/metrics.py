"""What an encoding cost: bytes, bits per weight and error, by tensor and by class of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from quant.arrays import F32, F64
from quant.recipe import CLASSES, class_of

_CHUNK = 1 << 16
"""Weights that `measure` looks at together, so that its scratch arrays stay in the cache."""


@dataclass(frozen=True)
class Loss:
    """How far stored values are from the original ones."""

    error: float = 0.0
    """Sum of squared errors."""
    power: float = 0.0
    """Sum of squared weights."""
    largest: float = 0.0
    """Largest absolute error."""

    @property
    def relative(self) -> float:
        """Relative squared error: error / power; 0 when nothing was lost."""
        return self.error / self.power if self.error and self.power else 0.0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.error + other.error, self.power + other.power, max(self.largest, other.largest))


class Losses(NamedTuple):
    """Of one tensor."""

    loss: Loss
    """Against the source."""
    recoding: Loss | None = None
    """Of NF4: against what bitsandbytes itself makes of the same codes."""


@dataclass(frozen=True)
class TensorReport:
    """One logical tensor."""

    name: str
    encoding: str
    layout: str
    weights: int
    nbytes: int
    loss: Loss
    recoding: Loss | None = None
    """See `Losses`."""


@dataclass(frozen=True)
class ClassReport:
    """All tensors of one class (`quant.recipe.CLASSES`), or of the whole model ("total")."""

    name: str
    encodings: tuple[str, ...]
    weights: int
    nbytes: int
    loss: Loss

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.nbytes / self.weights


def measure(values: F32, stored: F32) -> Loss:
    """Loss between two arrays of one shape. Sums in float64, in an order that depends on the size only."""
    loss = Loss()
    whole, kept = values.reshape(-1), stored.reshape(-1)
    for begin in range(0, whole.size, _CHUNK):
        part = whole[begin : begin + _CHUNK]
        lost = part - kept[begin : begin + _CHUNK]
        largest = float(np.abs(lost).max())
        wide, plain = lost.astype(np.float64), part.astype(np.float64)
        loss += Loss(_sum(wide * wide) if largest else 0.0, _sum(plain * plain), largest)
    return loss


def by_class(tensors: Iterable[TensorReport]) -> list[ClassReport]:
    """One row for each class that has tensors, and "total" at the end."""
    listed = list(tensors)
    rows = [_row(name, [item for item in listed if class_of(item.name) == name]) for name in CLASSES]
    return [row for row in (*rows, _row("total", listed)) if row.weights]


def to_json(tensors: Iterable[TensorReport]) -> dict[str, Any]:
    """The report as it stands in the file: {"classes": {...}, "tensors": {name: relative squared error}}, and "nf4" if
    there is any: what putting scales and table into the file's form cost, against bitsandbytes' own values.

    Numbers have four significant digits. Tensors without loss are left out.
    """
    listed = list(tensors)
    classes = {
        row.name: {
            "bits": _short(row.bits),
            "bytes": row.nbytes,
            "encodings": list(row.encodings),
            "error": _short(row.loss.relative),
            "max_error": _short(row.loss.largest),
            "weights": row.weights,
        }
        for row in by_class(listed)
    }
    lossy = {item.name: _short(item.loss.relative) for item in listed if item.loss.error}
    return {"classes": classes, "tensors": lossy, **_recoding(listed)}


def json_bound(names: Iterable[str]) -> int:
    """Bytes that `to_json` may need at most for tensors of these names, written as a JSON string."""
    return 4096 + sum(len(name) + 24 for name in names)


def _row(name: str, items: list[TensorReport]) -> ClassReport:
    loss = _sum_of(item.loss for item in items)
    encodings = tuple(sorted({item.encoding for item in items}))
    return ClassReport(name, encodings, sum(i.weights for i in items), sum(i.nbytes for i in items), loss)


def _recoding(tensors: Iterable[TensorReport]) -> dict[str, Any]:
    """{"nf4": {...}}, or nothing."""
    found = [(class_of(item.name), item.recoding) for item in tensors if item.recoding is not None]
    if not found:
        return {}
    classes = {
        name: _short(_sum_of(loss for other, loss in found if other == name).relative)
        for name in dict.fromkeys(name for name, _ in found)
    }
    whole = _sum_of(loss for _, loss in found)
    told = {"matrices": len(found), "error": _short(whole.relative), "max_error": _short(whole.largest)}
    return {"nf4": {**told, "classes": classes}}


def _sum_of(losses: Iterable[Loss]) -> Loss:
    listed = list(losses)
    return Loss(
        math.fsum(loss.error for loss in listed),
        math.fsum(loss.power for loss in listed),
        max((loss.largest for loss in listed), default=0.0),
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _sum(terms: F64) -> float:
    """Sum by halving: the same additions on every machine, unlike a library's sum."""
    while terms.size > 1:
        half = terms.size // 2
        folded = terms[:half] + terms[half : 2 * half]
        if terms.size % 2:
            folded[0] += terms[-1]
        terms = folded
    return float(terms[0]) if terms.size else 0.0
