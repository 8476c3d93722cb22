"""5-bit codes: a nibble is an index into a table of 16 ascending bytes 64..127, which stand for m = 0..63; with the bit above it
the code stands for -1 - m. So levels mirror each other about -1/2, and a kernel turns a byte b of the table into 127 - b.
"""

from __future__ import annotations

import numpy as np

from quant.arrays import F32, U8

ZERO = 64
"""The codebook entry that stands for zero."""


def entries(codebook: U8) -> F32:
    """float32 [16]: what the nibbles stand for without the bit above them, 0..63."""
    values: F32 = codebook.astype(np.float32) - np.float32(ZERO)
    return values


def levels(half: F32) -> F32:
    """float32 [32]: what the codes stand for, from `entries` [16]."""
    return np.concatenate([half, np.float32(-1) - half])
