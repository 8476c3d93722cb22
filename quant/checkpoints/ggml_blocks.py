"""The block formats of ggml: their sizes, and what their codes stand for.

The old formats are decoded here (32 weights to a block; low halves of the bytes are the first 16 weights, high halves the
last 16). Those with blocks of 256 and of unequal steps are decoded by the package `gguf`, an optional extra.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from quant.arrays import F32, U8
from quant.errors import FormatError, InvalidRequest


class BlockType(NamedTuple):
    """One of ggml's types."""

    name: str
    weights: int
    """Weights of a block."""
    nbytes: int
    """Bytes of a block."""


TYPES: dict[int, BlockType] = {
    0: BlockType("f32", 1, 4), 1: BlockType("f16", 1, 2), 30: BlockType("bf16", 1, 2),
    2: BlockType("q4_0", 32, 18), 3: BlockType("q4_1", 32, 20), 6: BlockType("q5_0", 32, 22),
    7: BlockType("q5_1", 32, 24), 8: BlockType("q8_0", 32, 34),
    10: BlockType("q2_k", 256, 84), 11: BlockType("q3_k", 256, 110), 12: BlockType("q4_k", 256, 144),
    13: BlockType("q5_k", 256, 176), 14: BlockType("q6_k", 256, 210),
    16: BlockType("iq2_xxs", 256, 66), 17: BlockType("iq2_xs", 256, 74), 18: BlockType("iq3_xxs", 256, 98),
    19: BlockType("iq1_s", 256, 50), 20: BlockType("iq4_nl", 32, 18), 21: BlockType("iq3_s", 256, 110),
    22: BlockType("iq2_s", 256, 82), 23: BlockType("iq4_xs", 256, 136), 29: BlockType("iq1_m", 256, 56),
    34: BlockType("tq1_0", 256, 54), 35: BlockType("tq2_0", 256, 66), 39: BlockType("mxfp4", 32, 17),
    24: BlockType("i8", 1, 1), 25: BlockType("i16", 1, 2), 26: BlockType("i32", 1, 4), 27: BlockType("i64", 1, 8),
    28: BlockType("f64", 1, 8),
}  # fmt: skip
"""{ggml's number: type}, of all whose size is known here."""
FLOATS = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}
"""Types that are no blocks, as numpy reads them."""
BY_NAME = {item.name: item for item in TYPES.values()}
_TOGETHER = 1 << 13
"""Blocks decoded together, so that the scratch arrays stay small."""
INTEGERS = ("i8", "i16", "i32", "i64", "f64")
"""Types of other things than weights."""


def dequantized(data: U8, kind: str) -> F32:
    """Blocks of `kind` [..., bytes of a row] as float32 [..., weights of a row]. Beside the result a few MB are needed.

    InvalidRequest: the package that decodes them is not installed. FormatError: it cannot either.
    """
    block = BY_NAME[kind]
    decode = _DECODERS.get(kind) or _decoder_of_the_package(kind)
    blocks = data.reshape(-1, block.nbytes)
    values = np.empty((len(blocks), block.weights), np.float32)
    for begin in range(0, len(blocks), _TOGETHER):
        values[begin : begin + _TOGETHER] = decode(blocks[begin : begin + _TOGETHER])
    return values.reshape(*data.shape[:-1], data.shape[-1] // block.nbytes * block.weights)


def _decoder_of_the_package(kind: str) -> Callable[[U8], F32]:
    """What decodes blocks [n, bytes] that are not decoded here."""
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        raise InvalidRequest(
            f'decoding {kind} needs packages that are not installed: pip install "rwkvcli[gguf]"'
        ) from None

    def decode(blocks: U8) -> F32:
        try:
            return np.asarray(
                dequantize(np.ascontiguousarray(blocks), GGMLQuantizationType[kind.upper()]), np.float32
            )
        except (NotImplementedError, KeyError):
            raise FormatError(
                f"the package gguf does not decode {kind}", hint="use a file of another type"
            ) from None

    return decode


def _half(blocks: U8, at: int) -> F32:
    """The float16 at byte `at` of every block [n, bytes], as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(blocks: U8, at: int) -> U8:
    """The 32 four-bit codes that begin at byte `at`: [n, 32]."""
    packed = blocks[:, at : at + 16]
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(blocks: U8, at: int) -> U8:
    """The bits that make five-bit codes of four-bit ones, at their place: [n, 32] of 0 or 16."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") * np.uint8(16)


def _q4_0(blocks: U8) -> F32:
    return _half(blocks, 0) * (_nibbles(blocks, 2).astype(np.float32) - 8)


def _q4_1(blocks: U8) -> F32:
    return _half(blocks, 0) * _nibbles(blocks, 4).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: U8) -> F32:
    codes = _nibbles(blocks, 6) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (codes.astype(np.float32) - 16)


def _q5_1(blocks: U8) -> F32:
    codes = _nibbles(blocks, 8) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * codes.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: U8) -> F32:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


_DECODERS: dict[str, Callable[[U8], F32]] = {
    "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0,
}  # fmt: skip
