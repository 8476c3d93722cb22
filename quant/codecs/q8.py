"""8-bit codes: byte 1..255 stands for -127..127."""

from __future__ import annotations

import numpy as np

from quant.arrays import F32
from quant.codecs import grouped as common
from quant.codecs.grouped import Grouped

ZERO = 128
"""The code of zero."""
_TABLE = np.arange(256, dtype=np.float32) - np.float32(ZERO)


def decode(grouped: Grouped) -> F32:
    """float32 [R, L]."""
    return common.decode(grouped, _TABLE)
