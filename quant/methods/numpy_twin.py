"""The encoder in numpy: slow, short, and the twin that the native one is compared with, byte by byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quant.arrays import F32, F64, I8, U8, Array
from quant.codecs import layouts, q8
from quant.codecs.grouped import BLOCK, Grouped
from quant.errors import InvalidRequest
from quant.formats import KN, encoding_of, padded_length
from quant.methods import codebook, nearest


@dataclass
class NumpyEncoder:
    """`quant.methods.Encoder` in plain numpy."""

    method: str = "codebook"

    def encode(self, w: F32, encoding: str, layout: str, importance: F32 | None = None) -> dict[str, Array]:
        """See `quant.methods.Encoder.encode`."""
        kind = encoding_of(encoding)
        if kind.form:
            raise InvalidRequest(f"codes of {encoding} are not chosen here")
        shape = (w.shape[0], w.shape[1])
        values: F32 = w.T if layout == KN else w
        count, length = values.shape
        padded = padded_length(encoding, layout, shape)
        table: U8 | None = None
        columns, by_row = (None, importance) if layout == KN else (importance, None)
        if kind.has_codebook:
            table = (
                codebook.learn(values, kind, columns=columns, by_row=by_row)
                if self.method == "codebook"
                else codebook.fixed(kind.bits)
            )
        grid = nearest.grid_of(kind.bits, table)
        codes: U8 = np.full((count, padded), q8.ZERO if kind.bits == 8 else 0, np.uint8)
        scales: I8 = np.zeros((count, padded // kind.group), np.int8)
        rows: F32 = np.zeros(count, np.float32)
        error: F64 = np.zeros(count)
        power: F64 = np.zeros(count)
        largest: F32 = np.zeros(count, np.float32)
        step = max(1, BLOCK // length)
        for begin in range(0, count, step):
            part = slice(begin, begin + step)
            block = np.ascontiguousarray(values[part])
            with np.errstate(over="ignore"):  # squares of absurdly large weights
                fit = (
                    nearest.fit8(block, kind.group)
                    if kind.bits == 8
                    else nearest.fit(block, kind.group, grid, columns)
                )
            codes[part, :length] = fit.codes
            scales[part, : fit.scales.shape[1]] = fit.scales
            rows[part] = fit.rows
            error[part], power[part], largest[part] = fit.error, fit.power, fit.largest
        parts = layouts.pack(Grouped(codes, scales, rows, length, table), encoding, layout, shape)
        return parts | {"row_error": error, "row_power": power, "row_max": largest}
