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


def are_codebooks(codebooks: U8) -> bool:
    """Whether `codebooks`, one after another, are each 16 strictly ascending bytes in 1..127."""
    if codebooks.size % 16:
        return False
    books = codebooks.reshape(-1, 16).astype(np.int32)
    in_range = (books[:, 0] >= 1) & (books[:, 15] <= 127)
    return bool(in_range.all() and (np.diff(books) > 0).all())


def decode(grouped: Grouped) -> F32:
    """float32 [R, L]."""
    assert grouped.codebook is not None
    return common.decode(grouped, entries(grouped.codebook))
