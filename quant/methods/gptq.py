"""Codes of 4, 5 or 6 bits chosen one input after the other, each making good for the errors of those before it.

GPTQ (arXiv 2210.17323) with a learned table (of 4 and 5 bits) and searched group scales. With H the mean of x xᵀ over calibration tokens
and Hinv = Uᵀ U (U upper triangular), rounding input k with an error e moves the weights of the inputs after it by
-e U[k, j] / U[k, k]: what then lessens the error of the output most. Inputs are taken in their order, since groups are.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from quant.arrays import F32, F64, I8, U8, Array
from quant.codecs import grouped as common
from quant.codecs import layouts
from quant.codecs.grouped import Grouped
from quant.formats import ENCODINGS, KN, Encoding, padded_length
from quant.methods import codebook, nearest

DAMPING = 0.01
"""Added to the diagonal of H, of its mean, so that it can be inverted and rare inputs count a little."""
PANEL = 128
"""Inputs whose corrections reach the rest of the matrix together; a multiple of every group."""
HEADROOM = np.float32(1.25)
"""How much larger a group's scale may become than the largest one of its row at the beginning."""


class Hessians(Protocol):
    """A model read layer by layer: each layer's inputs are those that the layers quantized so far give."""

    def of(self, name: str) -> F32 | None:
        """The mean of x xᵀ over all tokens, float32 [K, K], for the inputs of the matrix `name`; None for what GPTQ does
        not apply to. Matrices are asked for in file order.
        """
        ...

    def replace(self, name: str, values: F32) -> None:
        """From now on the matrix `name` is `values`, float32 [N, K]."""
        ...


def encode(w: F32, hessian: F32, encoding: str, layout: str) -> dict[str, Array]:
    """The parts of an `encoding` of 4, 5 or 6 bits for float32 w [N, K] and the hessian [K, K] of its inputs.

    The same bytes wherever the linear algebra under numpy gives the same bits, so on one machine.
    """
    upper = inverse_root(hessian)
    kind = ENCODINGS[encoding]
    group = kind.group
    weight: F32 = (1 / np.square(np.diag(upper))).astype(
        np.float32
    )  # what an error costs, all else made good
    weight /= weight.mean()
    solve = _by_inputs if layout == KN else _by_outputs
    found = solve(w, upper.astype(np.float32), weight, kind)
    padded = padded_length(encoding, layout, (w.shape[0], w.shape[1]))
    codes: U8 = np.zeros((len(found.codes), padded), np.uint8)
    codes[:, : found.codes.shape[1]] = found.codes
    scales: I8 = np.zeros((len(found.codes), padded // group), np.int8)
    scales[:, : found.scales.shape[1]] = found.scales
    whole = Grouped(codes, scales, found.rows, found.length, found.codebook)
    return layouts.pack(whole, encoding, layout, (w.shape[0], w.shape[1]))


def inverse_root(hessian: F32) -> F64:
    """U [K, K], upper triangular: Uᵀ U is the inverse of the damped hessian."""
    damped = hessian.astype(np.float64)
    diagonal = np.diag(damped).copy()
    mean = float(diagonal.mean())
    unused = diagonal <= 0
    damped[unused, :] = damped[:, unused] = 0
    damped[np.diag_indices_from(damped)] += DAMPING * mean if mean > 0 else 1.0
    root: F64 = np.linalg.cholesky(np.linalg.inv(damped)).T
    return root


def _by_outputs(w: F32, upper: F32, weight: F32, kind: Encoding) -> Grouped:
    """Groups along the inputs: a group's scale is searched when its turn comes."""
    n, k = w.shape
    group = kind.group
    left: F32 = w.copy()
    codes: U8 = np.zeros((n, k), np.uint8)
    scales: I8 = np.zeros((n, -(-k // group)), np.int8)
    table = codebook.learn(w, kind, columns=weight) if kind.has_codebook else None
    lookup = nearest.grid_of(kind.bits, table)
    top = np.abs(w).max(axis=1)
    live = top >= nearest.TINY
    size = nearest.divisor(top, live)
    step = _largest_scale(w / size[:, None], lookup, weight, group) * HEADROOM / nearest.TOP
    rows: F32 = np.where(live, step * top, np.float32(0)).astype(np.float32)
    left[~live] = 0
    errors: F32 = np.zeros((n, PANEL), np.float32)
    for panel in range(0, k, PANEL):
        end = min(panel + PANEL, k)
        for begin in range(panel, end, group):
            stop = min(begin + group, end)
            part: F32 = np.ascontiguousarray((left[:, begin:stop] / size[:, None]).T)
            spread = np.repeat(weight[begin:stop, None], n, axis=1)
            wanted = nearest.search(part, lookup, spread)
            limited = np.clip(wanted, -step * nearest.TOP, step * nearest.TOP)
            root, _ = nearest.round_scales(part, limited, step, lookup, spread)
            scales[:, begin // group] = root
            factor = rows * (root.astype(np.int32) * np.abs(root.astype(np.int32))).astype(np.float32)
            for column in range(begin, stop):
                codes[:, column], lost = _nearest(left[:, column], factor, lookup)
                lost /= upper[column, column]
                left[:, column + 1 : end] -= lost[:, None] * upper[column, column + 1 : end]
                errors[:, column - panel] = lost
        left[:, end:] -= errors[:, : end - panel] @ upper[panel:end, end:]
    return Grouped(codes, scales, rows, k, table)


def _by_inputs(w: F32, upper: F32, weight: F32, kind: Encoding) -> Grouped:
    """Groups along the outputs (layout kn): a panel's scales are searched when its turn comes."""
    n, k = w.shape
    group = kind.group
    left: F32 = np.ascontiguousarray(w.T)
    table = codebook.learn(left, kind, by_row=weight) if kind.has_codebook else None
    lookup = nearest.grid_of(kind.bits, table)
    codes: U8 = np.zeros((k, n), np.uint8)
    scales: I8 = np.zeros((k, -(-n // group)), np.int8)
    rows: F32 = np.zeros(k, np.float32)
    errors: F32 = np.zeros((PANEL, n), np.float32)
    for panel in range(0, k, PANEL):
        end = min(panel + PANEL, k)
        fit = nearest.fit(left[panel:end], group, lookup)
        scales[panel:end], rows[panel:end] = fit.scales, fit.rows
        padded = np.repeat(common.factors(Grouped(fit.codes, fit.scales, fit.rows, n)), group, axis=1)[:, :n]
        for row in range(panel, end):
            codes[row], lost = _nearest(left[row], padded[row - panel], lookup)
            lost /= upper[row, row]
            left[row + 1 : end] -= upper[row, row + 1 : end, None] * lost
            errors[row - panel] = lost
        left[end:] -= upper[panel:end, end:].T @ errors[: end - panel]
    return Grouped(codes, scales, rows, n, table)


def _largest_scale(unit: F32, lookup: nearest.Grid, weight: F32, group: int) -> F32:
    """[N]: the largest scale that any group of each row of `unit` [N, K] wants."""
    largest: F32 = np.zeros(len(unit), np.float32)
    for run in nearest.groups_of(unit.shape[1], group):
        wanted = np.abs(nearest.search(run.gather(unit), lookup, run.spread(weight, len(unit))))
        np.maximum(largest, wanted.reshape(len(unit), -1).max(axis=1), out=largest)
    return largest


def _nearest(values: F32, factor: F32, lookup: nearest.Grid) -> tuple[U8, F32]:
    """Codes of `values` [n] for the factors of their groups [n], and what is lost; code 0 where the factor is 0."""
    usable = factor != 0
    code = lookup.indices(values * (nearest.ONE / nearest.divisor(factor, usable)))
    code[~usable] = 0
    lost: F32 = values - factor * lookup.levels[code]
    return code, lost
