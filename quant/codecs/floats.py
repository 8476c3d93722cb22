"""Plain float32, float16 and bfloat16. numpy has no bfloat16: its bits are kept as uint16."""

from __future__ import annotations

import numpy as np

from quant.arrays import F32, Array


def decode(raw: Array, encoding: str) -> F32:
    """float32 values of an array stored as `encoding`: f32, f16, or bf16 as uint16. Same shape, C-contiguous.

    An aligned f32 array is given back as it is, without a copy.
    """
    if encoding == "bf16":
        bits = np.empty(raw.shape, np.uint32)
        np.left_shift(raw, 16, out=bits, dtype=np.uint32, casting="unsafe")
        return bits.view(np.float32)
    return np.require(raw, np.float32, ["C_CONTIGUOUS", "ALIGNED"])


def encode(values: F32, encoding: str) -> Array:
    """The stored form of finite float32 `values`: float32, float16, or bf16 as uint16; nearest even.

    Values past the range of the encoding become infinite; the caller looks for that.
    """
    if encoding == "f32":
        return np.require(values, np.float32, ["C_CONTIGUOUS", "ALIGNED"])
    if encoding == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype(np.uint16)
