"""4-bit codes: a nibble is an index into a table of 16 ascending bytes 1..127, which stand for -63..63."""

from __future__ import annotations

import numpy as np

from quant.arrays import F32, U8
from quant.codecs import grouped as common
from quant.codecs.grouped import Grouped

ZERO = 64
"""The codebook entry that stands for zero."""


def entries(codebook: U8) -> F32:
    """float32 [16]: what the nibbles stand for, -63..63."""
    values: F32 = codebook.astype(np.float32) - np.float32(ZERO)
    return values


def decode(grouped: Grouped) -> F32:
    """float32 [R, L]."""
    assert grouped.codebook is not None
    return common.decode(grouped, entries(grouped.codebook))
