"""8-bit codes: byte 1..255 stands for -127..127."""

from __future__ import annotations

import numpy as np

from quant.arrays import F32

ZERO = 128
"""The code of zero."""
LEVELS: F32 = np.arange(256, dtype=np.float32) - np.float32(ZERO)
"""What the codes stand for."""
