"""6-bit codes: 0..63 stands for -32..31. Four bits and the two above them are stored apart."""

from __future__ import annotations

import numpy as np

from quant.arrays import F32

ZERO = 32
"""The code of zero."""
LEVELS: F32 = np.arange(64, dtype=np.float32) - np.float32(ZERO)
"""What the codes stand for."""
