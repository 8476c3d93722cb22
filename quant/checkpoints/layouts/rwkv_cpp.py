"""What rwkv.cpp's converter does to a checkpoint, undone.

Vectors are in the form that its graph computes with: v4's time_decay is -exp(time_decay), v5's exp(-exp(time_decay)) and
time_first exp(time_first). The logarithms taken here give values that come back to the stored ones within rounding.
v6 and v7 have low-rank matrices transposed; v7's mixes are one tensor, in the order of the file that was converted,
which is r, w, k, v, a, g in the original .pth (one converted from a sorted file cannot be told apart).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from quant.arrays import Array
from quant.checkpoints.layouts.piece import (
    Contents,
    Piece,
    Pieces,
    Take,
    collected,
    plain,
    rows_of,
    suffix_of,
    swapped,
)
from quant.checkpoints.tensor_file import RawTensor
from quant.orient import LOW_RANK

_FUSED = re.compile(r"blocks\.(\d+)\.att\.x_rwkvag")
_MIXES = "rwkvag"
_OPEN = 2.0**-151, 1 - 2.0**-26
"""Values of 0 and 1, which the logarithms do not take, become near ones that float32 rounds to 0 and 1."""


def matches(contents: Contents) -> bool:
    """Whether this is a file of rwkv.cpp."""
    return contents.format == "ggmf"


def pieces(contents: Contents) -> Pieces:
    """See `quant.checkpoints.layouts`."""
    return collected(contents, _pairs(contents))


def _pairs(contents: Contents) -> Iterator[tuple[str, Piece]]:
    names = contents.tensors
    width = names["emb.weight"].shape[-1] if "emb.weight" in names and names["emb.weight"].shape else 0
    v6 = any(name.endswith(".time_maa_x") for name in names)
    v5 = "blocks.0.att.ln_x.weight" in names and not v6 and "blocks.0.att.r_k" not in names
    inverse: dict[str, Take] = {}
    if v5:
        inverse = {"att.time_decay": _log_log, "att.time_first": _log}
    elif not v6:
        inverse = {"att.time_decay": _log_minus}
    for name, raw in names.items():
        fused = _FUSED.fullmatch(name)
        if fused is not None:
            for mix, piece in rows_of(contents, name, _MIXES):
                yield f"blocks.{fused[1]}.att.x_{mix}", piece
            continue
        suffix = suffix_of(name)
        piece = plain(name, raw)
        if suffix in LOW_RANK:
            yield name, swapped(piece)
        elif suffix in ("att.time_decay", "att.time_first", "att.time_faaaa"):
            flat = v6 and suffix == "att.time_decay" and math.prod(raw.shape) == width
            shape = (width,) if flat else _heads(raw, width)
            yield name, Piece(name, shape, inverse.get(suffix), computed=suffix in inverse)
        else:
            yield name, piece


def _heads(raw: RawTensor, width: int) -> tuple[int, ...]:
    """[C] as it is; [H, N, 1] as [H, N]; [H, 1, 1] and [H, 1] as [H]. A model of one head has lost its head axis,
    which makes heads of one channel of it: those do not exist.
    """
    dims = list(raw.shape)
    if len(dims) < 2:
        return raw.shape
    while len(dims) > 1 and dims[-1] == 1:
        dims.pop()
    return (1, width) if dims == [width] else tuple(dims)


def _log(values: Array) -> Array:
    return np.log(np.maximum(values.astype(np.float64), _OPEN[0])).astype(np.float32)


def _log_minus(values: Array) -> Array:
    """The time_decay of which `values` is -exp(time_decay)."""
    return _log(-values)


def _log_log(values: Array) -> Array:
    """The time_decay of which `values` is exp(-exp(time_decay))."""
    inner = -np.log(np.clip(values.astype(np.float64), *_OPEN))
    return np.log(inner).astype(np.float32)
