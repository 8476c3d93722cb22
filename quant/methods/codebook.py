"""A 4-bit table learned for each tensor: Lloyd's rounds on a sample of its rows. The default without data."""

from __future__ import annotations

import numpy as np

from quant.arrays import F32, F64, U8
from quant.codecs import q4
from quant.methods import nearest
from quant.methods.nearest import TABLE, TINY, Lookup

SAMPLE = 1 << 16
"""Weights that are looked at, about."""
LEAST_ROWS = 16
ROUNDS = 6


def sample_rows(count: int, length: int) -> list[int]:
    """Evenly spaced rows of `count` rows of `length` weights: about SAMPLE weights, LEAST_ROWS at least."""
    wanted = min(count, max(LEAST_ROWS, -(-SAMPLE // length)))
    return [i * count // wanted for i in range(wanted)]


def learn(values: F32, group: int, *, columns: F32 | None = None, by_row: F32 | None = None) -> U8:
    """The table [16] for `values` [R, L] in groups of `group` along the rows; all zeros give the fixed table.

    Each round fits a scale to every group, assigns codes, and moves each entry to the scale-weighted mean of
    its weights (float64 sums over the sample, row by row in ascending order), on the grid of `Lookup`. `columns` [L]
    or `by_row` [R]: how much errors there count; None: all alike.
    """
    chosen = sample_rows(*values.shape)
    sample: F32 = np.ascontiguousarray(values[chosen])
    counts = None if by_row is None else np.asarray(by_row[chosen], np.float64)[:, None]
    counts = counts if columns is None else np.asarray(columns, np.float64)[None, :]
    top = np.abs(sample).max()
    if not top >= TINY:
        return TABLE
    sample = sample / top
    entries: F32 = q4.entries(TABLE)
    for _ in range(ROUNDS):
        entries = _round(sample, group, entries, columns, counts)
    return _whole(entries)


def _round(sample: F32, group: int, entries: F32, columns: F32 | None, counts: F64 | None) -> F32:
    lookup = Lookup(entries)
    code = np.empty(sample.shape, np.uint8)
    scale = np.empty(sample.shape, np.float32)
    for run in nearest.groups_of(sample.shape[1], group):
        x = run.gather(sample)
        fitted = nearest.search(x, lookup, run.spread(columns, len(sample)))
        found = lookup.indices(x * (nearest.ONE / nearest.divisor(fitted, fitted != 0)))
        code[:, run.columns] = found.T.reshape(len(sample), -1)
        scale[:, run.columns] = np.repeat(fitted, len(x)).reshape(len(sample), -1)
    index, wide = code.ravel(), scale.ravel().astype(np.float64)
    moments, weights = wide * sample.ravel(), wide * wide
    if counts is not None:
        each = np.broadcast_to(counts, sample.shape).ravel()
        moments, weights = moments * each, weights * each
    moment, weight = _totals(index, moments), _totals(index, weights)
    centre = np.where(weight > 0, moment / np.where(weight > 0, weight, 1.0), entries.astype(np.float64))
    centre.sort()
    largest = np.abs(centre).max()
    snapped: F64 = np.floor(centre * (63.0 / largest) * Lookup.GRID + 0.5) / Lookup.GRID
    return snapped.astype(np.float32)


def _totals(index: U8, terms: F64) -> F64:
    """[16]: the sum of the terms of each index, added in ascending order."""
    return np.asarray(np.bincount(index, weights=terms, minlength=16), np.float64)


def _whole(entries: F32) -> U8:
    """The nearest strictly ascending whole numbers in -63..63, plus the zero point."""
    table = [int(np.floor(entry + np.float32(0.5))) for entry in entries]
    for i in range(16):
        table[i] = max(table[i], table[i - 1] + 1 if i else -63)
    for i in reversed(range(16)):
        table[i] = min(table[i], table[i + 1] - 1 if i < 15 else 63)
    return np.array([entry + q4.ZERO for entry in table], np.uint8)
