"""The tables that 4 and 5-bit codes point into: 16 strictly ascending bytes up to 127, each 64 more than what it stands for."""

from __future__ import annotations

import itertools

SIZE = 16
LEAST = {4: 1, 5: 64}
"""{bits of a code: the lowest byte of a table}. The negative numbers of 5 bits need none: they mirror the others."""
NF4 = bytes((1, 20, 31, 39, 46, 52, 58, 64, 69, 74, 80, 85, 92, 100, 110, 127))
"""NF4's values in whole numbers: of all scalings the one that costs normally distributed weights least."""


def is_codebook(table: bytes, bits: int = 4) -> bool:
    """Whether `table` is one for codes of `bits`."""
    in_range = len(table) == SIZE and table[0] >= LEAST[bits] and table[-1] <= 127
    return in_range and all(a < b for a, b in itertools.pairwise(table))
