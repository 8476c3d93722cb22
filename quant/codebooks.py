"""The tables that 4-bit codes point into: 16 strictly ascending bytes in 1..127, each 64 more than what it stands for."""

from __future__ import annotations

import itertools

SIZE = 16
NF4 = bytes((1, 20, 31, 39, 46, 52, 58, 64, 69, 74, 80, 85, 92, 100, 110, 127))
"""NF4's values in whole numbers: of all scalings the one that costs normally distributed weights least."""


def is_codebook(table: bytes) -> bool:
    """Whether `table` is one."""
    in_range = len(table) == SIZE and table[0] >= 1 and table[-1] <= 127
    return in_range and all(a < b for a, b in itertools.pairwise(table))
