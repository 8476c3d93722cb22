"""Decoding (and packing) of every encoding and layout, in plain numpy: the meaning of the model file.

`decode` is the truth that native kernels are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping

from quant.arrays import F32, Array
from quant.codecs import floats, layouts, q4, q5, q6, q8
from quant.codecs.grouped import Grouped
from quant.codecs.grouped import decode as decode_grouped
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
    values = decode_grouped(grouped, levels(grouped, encoding))
    return values.T.copy() if layout == KN else values


def levels(grouped: Grouped, encoding: str) -> F32:
    """float32: what each code of a quantized `encoding` stands for, before any scale."""
    bits = encoding_of(encoding).bits
    if grouped.codebook is not None:
        return q4.entries(grouped.codebook) if bits == 4 else q5.levels(q5.entries(grouped.codebook))
    return {8: q8.LEVELS, 6: q6.LEVELS}[bits]
