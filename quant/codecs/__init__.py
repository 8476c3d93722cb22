"""Decoding (and packing) of every encoding and layout, in plain numpy: the meaning of the model file.

`decode` is the truth that native kernels are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping

from quant.arrays import F32, Array
from quant.codecs import floats, layouts, q4, q8
from quant.formats import KN, Shape, encoding_of


def decode(parts: Mapping[str, Array], encoding: str, layout: str, shape: Shape) -> F32:
    """The values of a tensor as float32 of its logical shape, C-contiguous ([N, K] for a matrix).

    `parts` maps "", or "q", "s", "d" and "cb", to arrays of the dtypes and shapes that
    `quant.formats.parts_of` says (bf16 as uint16).
    """
    kind = encoding_of(encoding)
    if not kind.quantized:
        return floats.decode(parts[""], encoding).reshape(shape)
    grouped = layouts.unpack(parts, encoding, layout, shape)
    values = q8.decode(grouped) if kind.bits == 8 else q4.decode(grouped)
    return values.T.copy() if layout == KN else values
