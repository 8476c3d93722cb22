"""NF4, the 4-bit floats of bitsandbytes, in the codes of q4: the same nibbles, with the values of a table on q4's grid.

A weight is VALUES[code] times the absmax of its block; bitsandbytes cuts a tensor into blocks of 64 weights, one row after
the other. Where rows are multiples of 64, a block is two groups of 32 of q4g32: both have its scale. The values become whole
numbers in -63..63, and scales squares of 1..127 times the row's scale: the only things that are rounded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant import codebooks
from quant.arrays import F32, U8
from quant.codecs import grouped as common
from quant.codecs.grouped import Grouped
from quant.formats import ENCODINGS

BLOCK = ENCODINGS["nf4"].block
_GROUPS = BLOCK // ENCODINGS["nf4"].group
VALUES: F32 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""What the codes stand for: quantiles of the normal distribution (arXiv 2305.14314), with a zero."""
ZERO = 7
"""The code of zero."""
CODEBOOK: U8 = np.frombuffer(codebooks.NF4, np.uint8)
"""VALUES in whole numbers, plus 64."""
SPAN = np.float32(63.25)
"""What stands for 1.0 among them: a little more than 63, as most of the others were rounded up."""
_TINY = np.float32(1e-30)
"""Rows whose largest weight is below this are zero: their scales would be denormal numbers."""
_TOP = np.float32(127)


class Blocks(NamedTuple):
    """A matrix as bitsandbytes quantizes it."""

    codes: U8
    """[N, K], 0..15."""
    absmax: F32
    """[N * K / 64], rounded up: the largest magnitude in each block."""


def packed(codes: U8) -> U8:
    """Two codes to a byte, [N * K / 2, 1], the first in the high half: as bitsandbytes stores them."""
    flat = codes.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(ZERO))
    pairs = flat.reshape(-1, 2)
    joined: U8 = (pairs[:, :1] << np.uint8(4)) | pairs[:, 1:]
    return joined


def unpacked(stored: U8, shape: tuple[int, int]) -> U8:
    """The inverse of `packed`: codes of `shape`."""
    codes = np.empty((stored.size, 2), np.uint8)
    flat = stored.reshape(-1)
    codes[:, 0], codes[:, 1] = flat >> 4, flat & 15
    return codes.reshape(-1)[: shape[0] * shape[1]].reshape(shape)


def values(blocks: Blocks) -> F32:
    """What bitsandbytes dequantizes to, float32 [N, K]; K is a multiple of 64."""
    rows, length = blocks.codes.shape
    decoded = VALUES[blocks.codes].reshape(-1, BLOCK)
    decoded *= blocks.absmax[:, None]
    return decoded.reshape(rows, length)


def to_grouped(blocks: Blocks) -> Grouped:
    """The form of `blocks` in the model file; K is a multiple of 64.

    A block that is zero, or so small that no scale of its row is nearer to it than 0 (below 1/32,000 of the row's
    largest weight), has scale 0 and, as all groups of that scale, codes 0.
    """
    rows, length = blocks.codes.shape
    absmax = blocks.absmax.reshape(rows, length // BLOCK)
    live = absmax.max(axis=1) >= _TINY
    wanted: F32 = absmax / SPAN
    step: F32 = np.where(live, wanted.max(axis=1) / (_TOP * _TOP), np.float32(0)).astype(np.float32)
    unit = np.where(live, step, np.float32(1))[:, None]
    low = np.minimum(np.floor(np.sqrt(wanted / unit)), _TOP)
    high = np.minimum(low + np.float32(1), _TOP)
    up = unit * (high * high) - wanted < wanted - unit * (low * low)
    root = np.where(up, high, low).astype(np.int8)
    root[~live] = 0
    codes = blocks.codes.copy()
    codes.reshape(rows, -1, BLOCK)[root == 0] = 0
    return Grouped(codes, np.repeat(root, _GROUPS, axis=1), step, length, CODEBOOK)


def from_grouped(grouped: Grouped) -> Blocks | None:
    """The blocks that are stored so: their codes, and the scales as they are now; None where groups of a block differ."""
    scales = grouped.scales.reshape(len(grouped.codes), -1, _GROUPS)
    if (scales != scales[:, :, :1]).any():
        return None
    codes = grouped.codes.copy()
    codes.reshape(len(codes), -1, BLOCK)[scales[:, :, 0] == 0] = ZERO
    absmax: F32 = common.factors(grouped)[:, ::_GROUPS].reshape(-1) * SPAN
    return Blocks(codes, absmax)
