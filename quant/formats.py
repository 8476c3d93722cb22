"""The encodings and layouts of the model file: what they are called and which tensors they consist of.

Normative text: `quant/container/FORMAT.md`. A new encoding is added here and in `quant/codecs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from quant.errors import InvalidRequest
from quant.sizes import round_up

Shape = tuple[int, ...]

ROW, TILE, KN = "row", "t16x4", "kn"
LAYOUTS = (ROW, TILE, KN)


@dataclass(frozen=True)
class Encoding:
    """How numbers are written."""

    name: str
    bits: int
    """Bits of one code (32, 16, 8, 6, 5 or 4)."""
    group: int = 0
    """Weights that share a scale; 0 for the float encodings."""
    dtype: str = ""
    """Safetensors dtype of the float encodings."""
    block: int = 0
    """Weights of a row that belong together beyond a group: rows are multiples of it; 0: of any length."""
    form: str = ""
    """The encoding whose parts and arithmetic it has; "" for one that has its own."""

    @property
    def quantized(self) -> bool:
        """Whether it consists of codes and scales."""
        return self.group > 0

    @property
    def weighted(self) -> bool:
        """Whether its codes are searched for by how much errors count; those of 8 bits have nothing to choose."""
        return self.quantized and self.bits < 8

    @property
    def has_codebook(self) -> bool:
        """Whether a table of 16 bytes says what its codes stand for."""
        return self.bits in (4, 5)

    @property
    def computed_as(self) -> str:
        """The encoding that a kernel sees."""
        return self.form or self.name


ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        Encoding("f32", 32, dtype="F32"),
        Encoding("f16", 16, dtype="F16"),
        Encoding("bf16", 16, dtype="BF16"),
        Encoding("q8g32", 8, 32),
        Encoding("q6g32", 6, 32),
        Encoding("q6g16", 6, 16),
        Encoding("q5g32", 5, 32),
        Encoding("q5g16", 5, 16),
        Encoding("q4g32", 4, 32),
        Encoding("q4g16", 4, 16),
        Encoding("nf4", 4, 32, block=64, form="q4g32"),
    )
}

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1}


class PartSpec(NamedTuple):
    """One stored tensor of a logical one."""

    part: str
    """"" (the tensor itself), "q" codes, "s" group scales, "d" row scales, "cb" codebook."""
    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class KnRecord(NamedTuple):
    """Sizes of one record of layout `kn`, in bytes."""

    codes: int
    scales: int
    stride: int


def encoding_of(name: str) -> Encoding:
    """The encoding called `name`; InvalidRequest when there is none."""
    try:
        return ENCODINGS[name]
    except KeyError:
        raise InvalidRequest(f"unknown encoding {name!r}; known: {', '.join(ENCODINGS)}") from None


def rows_and_length(layout: str, shape: Shape) -> tuple[int, int]:
    """(rows, row length) of a matrix [N, K]: (N, K), but (K, N) in layout `kn`."""
    n, k = shape
    return (k, n) if layout == KN else (n, k)


def padded_length(encoding: str, layout: str, shape: Shape) -> int:
    """The length of a row after padding."""
    _, length = rows_and_length(layout, shape)
    if layout == KN:
        return round_up(length, 64 if ENCODINGS[encoding].bits == 8 else 128)
    return round_up(length, 32)


def kn_record(encoding: str, shape: Shape) -> KnRecord:
    """What a record of a matrix [N, K] in layout `kn` consists of."""
    kind = ENCODINGS[encoding]
    padded = padded_length(encoding, KN, shape)
    codes, scales = padded * kind.bits // 8, padded // kind.group
    return KnRecord(codes, scales, round_up(codes + scales, 64))


def parts_of(encoding: str, layout: str, shape: Shape) -> tuple[PartSpec, ...]:
    """The stored tensors of a logical tensor, in file order.

    Raises InvalidRequest for an unknown encoding, and for combinations that do not exist: quantized tensors
    are matrices with at least one element, float encodings have layout `row` only, and blocks, which run along the
    inputs, neither layout `kn` nor rows that are no multiple of them.
    """
    kind = encoding_of(encoding)
    if not kind.quantized:
        if layout != ROW:
            raise InvalidRequest(f"encoding {encoding} has no layout {layout!r}")
        return (PartSpec("", kind.dtype, shape),)
    if layout not in LAYOUTS or len(shape) != 2 or min(shape) < 1:
        raise InvalidRequest(f"encoding {encoding} cannot hold shape {list(shape)} in layout {layout!r}")
    n, k = shape
    if kind.block and (layout == KN or k % kind.block):
        raise InvalidRequest(
            f"encoding {encoding} has blocks of {kind.block} inputs, not {list(shape)} in layout {layout}"
        )
    padded = padded_length(encoding, layout, shape)
    groups = padded // kind.group
    if layout == TILE:
        tiles = round_up(n, 16) // 16
        parts = [
            PartSpec("q", "U8", (tiles, padded * kind.bits // 32, 16, 4)),
            PartSpec("s", "I8", (tiles, groups, 16)),
            PartSpec("d", "F32", (tiles * 16,)),
        ]
    elif layout == ROW:
        parts = [
            PartSpec("q", "U8", (n, padded * kind.bits // 8)),
            PartSpec("s", "I8", (n, groups)),
            PartSpec("d", "F32", (n,)),
        ]
    else:
        parts = [PartSpec("q", "U8", (k, kn_record(encoding, shape).stride)), PartSpec("d", "F32", (k,))]
    if kind.has_codebook:
        parts.append(PartSpec("cb", "U8", (16,)))
    return tuple(parts)


def stored_name(name: str, part: str) -> str:
    """What part `part` of the logical tensor `name` is called in the file."""
    return f"{name}.{part}" if part else name


def stored_bytes(encoding: str, layout: str, shape: Shape) -> int:
    """Bytes of all parts together, without alignment."""
    return sum(spec.nbytes for spec in parts_of(encoding, layout, shape))
