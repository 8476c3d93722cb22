"""What every encoding would lose of every matrix, measured on a part of its rows: what a size is divided up by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from quant.arrays import F32
from quant.budget import Option, choose
from quant.calibration import Calibration
from quant.codecs import decode
from quant.errors import InvalidRequest, amount
from quant.formats import KN, TILE
from quant.methods import Encoder
from quant.recipe import Override, Plan, Planned, bits_per_weight, class_of, estimated_bytes, planned
from quant.sources import Source

ENCODINGS = ("q4g32", "q4g16", "q5g32", "q5g16", "q6g32", "q6g16", "q8g32")
"""What a matrix can be given for a size. Low-rank factors, small and delicate, always have 8 bits."""
SAMPLE = 1 << 19
"""Weights that are looked at, about."""
_TOGETHER = 16
"""Neighbouring rows."""


def plan_within(
    source: Source,
    plan: Plan,
    excess: Callable[[Plan], int],
    *,
    encoder: Encoder,
    calibration: Calibration | None = None,
    overrides: Iterable[Override] = (),
    size_of: Callable[[Plan], int] = estimated_bytes,
    on_progress: Callable[[str, int, int], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Plan:
    """`plan` with other encodings for its matrices, such that it loses least while `excess(plan)`, how many bytes it is
    too large, is not above 0.

    What a matrix loses is its relative squared error, with a calibration that of its output as far as the inputs' sizes
    tell; that of embedding and head counts as often as there are layers, since they stand before and behind all of them
    (docs/quality.md). What `overrides` match stays as it is planned. `size_of(plan)`: how large a file is, for messages.
    `on_progress(tensor, tensors done, in all)`. Raises InvalidRequest, with the smallest size, if that is too large.
    """
    fixed = [override.pattern for override in overrides]
    chosen = [
        name
        for name in plan
        if class_of(name) not in ("vectors", "low-rank")
        and not any(pattern.search(name) for pattern in fixed)
    ]
    smallest = {**plan, **{name: _as(plan, name, ENCODINGS[0]) for name in chosen}}
    if excess(smallest) > 0:
        raise InvalidRequest(
            f"too small: this model cannot be smaller than {amount(size_of(smallest))}",
            hint=f"that is {bits_per_weight(smallest):.2f} bits per weight",
        )
    options = {}
    for number, name in enumerate(chosen):
        check()
        if on_progress is not None:
            on_progress(name, number, len(chosen))
        importance = calibration.importance(name) if calibration is not None else None
        errors = losses(rows_of(source, name), encoder, importance)
        times = source.arch.n_layer if class_of(name) in ("emb", "head") else 1
        options[name] = [Option(e, _as(plan, name, e).nbytes, times * errors[e]) for e in ENCODINGS]
    room = sum(each[-1].nbytes for each in options.values())
    while True:
        found = choose(options, room)
        made = {**plan, **{name: _as(plan, name, option.encoding) for name, option in found.items()}}
        over = excess(made)
        if over <= 0:
            return made
        # the smallest fits, so this ends: every round asks for less
        least = sum(each[0].nbytes for each in options.values())
        room = max(least, sum(option.nbytes for option in found.values()) - over)


def rows_of(source: Source, name: str) -> F32:
    """About SAMPLE weights of a matrix: evenly spaced runs of rows, or all of it."""
    rows, length = source.shapes[name]
    runs = max(1, SAMPLE // (_TOGETHER * length))
    if runs * _TOGETHER >= rows:
        return source.rows(name, 0, rows)
    begins = [i * (rows - _TOGETHER) // max(1, runs - 1) for i in range(runs)]
    return np.concatenate([source.rows(name, begin, begin + _TOGETHER) for begin in begins])


def losses(values: F32, encoder: Encoder, importance: F32 | None) -> Mapping[str, float]:
    """{encoding: relative squared error} of `values` [R, K]; `importance` [K] weighs both sums."""
    power = _weighted(values, importance)
    found = {}
    for encoding in ENCODINGS:
        parts = encoder.encode(np.ascontiguousarray(values), encoding, TILE, importance)
        lost = _weighted(
            values - decode(parts, encoding, TILE, (values.shape[0], values.shape[1])), importance
        )
        found[encoding] = lost / power if power > 0 else 0.0
    return found


def _weighted(values: F32, importance: F32 | None) -> float:
    """Sum of squares, each column counted as `importance` says. The same bits on every machine."""
    squares = np.square(values, dtype=np.float64)
    if importance is not None:
        squares *= importance
    return math.fsum(math.fsum(row) for row in squares)


def _as(plan: Plan, name: str, encoding: str) -> Planned:
    return planned(name, plan[name].shape, encoding, "kn" if plan[name].layout == KN else "tile")
