"""What all quantized encodings share: rows of codes with a scale per group and per row, before any layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quant.arrays import F32, I8, U8

BLOCK = 1 << 20
"""Elements that are worked on together, so that scratch arrays stay small."""


@dataclass(frozen=True)
class Grouped:
    """A quantized matrix of R rows of L weights, padded to Lp (a multiple of the group G)."""

    codes: U8
    """[R, Lp]: q8 codes, q6 codes 0..63, q5 codes 0..31, or q4 nibbles 0..15. Padding: 128 in q8, else 0."""
    scales: I8
    """[R, Lp / G], signed roots: the factor of a group is s * |s|."""
    rows: F32
    """[R], the scale of each row."""
    length: int
    """L."""
    codebook: U8 | None = None
    """[16], q4 and q5 only."""


def factors(grouped: Grouped) -> F32:
    """[R, Lp / G]: what the integer of each group is multiplied by, d * float(s * |s|), in float32."""
    root = grouped.scales.astype(np.int32)
    factor: F32 = grouped.rows[:, None] * (root * np.abs(root)).astype(np.float32)
    return factor


def decode(grouped: Grouped, table: F32) -> F32:
    """float32 [R, L]: the factor of the group times table[code]; `table` has a value for every code.

    Infinite where a file's row scale is so large that the product overflows.
    """
    count, padded = grouped.codes.shape
    group = padded // grouped.scales.shape[1]
    factor = factors(grouped)
    values = np.empty((count, grouped.length), np.float32)
    step = max(1, BLOCK // padded)
    for begin in range(0, count, step):
        rows = slice(begin, begin + step)
        block = table[grouped.codes[rows]].reshape(-1, padded // group, group)
        with np.errstate(over="ignore"):
            block *= factor[rows, :, None]
        values[rows] = block.reshape(-1, padded)[:, : grouped.length]
    return values
