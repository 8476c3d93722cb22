"""A table of 4 or 5 bits learned for each tensor: Lloyd's rounds on a sample of its rows. The default without data."""

from __future__ import annotations

import numpy as np

from quant.arrays import F32, F64, U8
from quant.codecs import q4, q5
from quant.formats import Encoding
from quant.methods import nearest
from quant.methods.nearest import TABLE, TABLE5, TINY, Lookup

SAMPLE = 1 << 16
"""Weights that are looked at, about."""
LEAST_ROWS = 16
ROUNDS = 6


def sample_rows(count: int, length: int) -> list[int]:
    """Evenly spaced rows of `count` rows of `length` weights: about SAMPLE weights, LEAST_ROWS at least."""
    wanted = min(count, max(LEAST_ROWS, -(-SAMPLE // length)))
    return [i * count // wanted for i in range(wanted)]


def fixed(bits: int) -> U8:
    """The table [16] for codes of 4 or 5 bits where nothing is learned."""
    return TABLE if bits == 4 else TABLE5


def learn(values: F32, kind: Encoding, *, columns: F32 | None = None, by_row: F32 | None = None) -> U8:
    """The table [16] for `values` [R, L] in the groups along the rows of `kind`; all zeros give the fixed table.

    Each round fits a scale to every group, assigns codes, and moves each entry to the scale-weighted mean of
    its weights (float64 sums over the sample, row by row in ascending order), on the grid of `Lookup`. Of 5 bits, an
    entry and its mirrored level are one, at a distance from -1/2, and tables do not fill their range but keep their steps. `columns` [L]
    or `by_row` [R]: how much errors there count; None: all alike.
    """
    chosen = sample_rows(*values.shape)
    sample: F32 = np.ascontiguousarray(values[chosen])
    counts = None if by_row is None else np.asarray(by_row[chosen], np.float64)[:, None]
    counts = counts if columns is None else np.asarray(columns, np.float64)[None, :]
    top = np.abs(sample).max()
    if not top >= TINY:
        return fixed(kind.bits)
    sample = sample / top
    four = kind.bits == 4
    entries: F32 = q4.entries(TABLE) if four else q5.entries(TABLE5)
    for _ in range(ROUNDS):
        entries = _round(sample, kind, entries, columns, counts)
    return _whole(entries, -63 if four else 0)


def _round(sample: F32, kind: Encoding, entries: F32, columns: F32 | None, counts: F64 | None) -> F32:
    mirrored = kind.bits == 5
    lookup: nearest.Grid = nearest.Mirrored(entries) if mirrored else Lookup(entries)
    code = np.empty(sample.shape, np.uint8)
    scale = np.empty(sample.shape, np.float32)
    for run in nearest.groups_of(sample.shape[1], kind.group):
        x = run.gather(sample)
        fitted = nearest.search(x, lookup, run.spread(columns, len(sample)))
        found = lookup.indices(x * (nearest.ONE / nearest.divisor(fitted, fitted != 0)))
        code[:, run.columns] = found.T.reshape(len(sample), -1)
        scale[:, run.columns] = np.repeat(fitted, len(x)).reshape(len(sample), -1)
    index, wide = code.ravel(), scale.ravel().astype(np.float64)
    targets: F64 = sample.ravel().astype(np.float64)
    if mirrored:
        targets = targets + 0.5 * wide
        targets = np.where(index > 15, -targets, targets)
        index = index & np.uint8(15)
    moments, weights = wide * targets, wide * wide
    if counts is not None:
        each = np.broadcast_to(counts, sample.shape).ravel()
        moments, weights = moments * each, weights * each
    moment, weight = _totals(index, moments), _totals(index, weights)
    away = 0.5 if mirrored else 0.0
    centre = np.where(weight > 0, moment / np.where(weight > 0, weight, 1.0), entries + np.float64(away))
    centre.sort()
    fill = (63.0 + away) / np.abs(centre).max()
    stretch = min(1.0, fill) if mirrored else fill
    snapped: F64 = np.floor(centre * stretch * Lookup.GRID + 0.5) / Lookup.GRID - away
    return snapped.astype(np.float32)


def _totals(index: U8, terms: F64) -> F64:
    """[16]: the sum of the terms of each index, added in ascending order."""
    return np.asarray(np.bincount(index, weights=terms, minlength=16), np.float64)


def _whole(entries: F32, least: int) -> U8:
    """The nearest strictly ascending whole numbers in `least`..63, plus the zero point."""
    table = [int(np.floor(entry + np.float32(0.5))) for entry in entries]
    for i in range(16):
        table[i] = max(table[i], table[i - 1] + 1 if i else least)
    for i in reversed(range(16)):
        table[i] = min(table[i], table[i + 1] - 1 if i < 15 else 63)
    return np.array([entry + q4.ZERO for entry in table], np.uint8)
