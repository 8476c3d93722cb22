"""Packing of codes and scales into the layouts of the file, and back. Bytes move here; no value changes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quant.arrays import I8, U8, Array, round_up
from quant.codecs import q8
from quant.codecs.grouped import Grouped
from quant.formats import ROW, TILE, Shape, encoding_of, kn_record, padded_length, rows_and_length


def pack(grouped: Grouped, encoding: str, layout: str, shape: Shape) -> dict[str, Array]:
    """The parts of a matrix [N, K] in `layout`, as `quant.formats.parts_of` describes them.

    `grouped` has N rows of length K (in `kn`: K rows of length N), padded to `quant.formats.padded_length`.
    """
    four = encoding_of(encoding).bits == 4
    parts: dict[str, Array]
    if layout == TILE:
        codes = _pad_rows(grouped.codes, 0 if four else q8.ZERO)
        scales = _pad_rows(grouped.scales, 0)
        tiled = np.ascontiguousarray(scales.reshape(-1, 16, scales.shape[1]).transpose(0, 2, 1))
        parts = {"q": _tile4(codes) if four else _tile8(codes), "s": tiled, "d": _pad_rows(grouped.rows, 0)}
    elif layout == ROW:
        parts = {"q": _row4(grouped.codes) if four else grouped.codes, "s": grouped.scales, "d": grouped.rows}
    else:
        record = kn_record(encoding, shape)
        records = np.zeros((shape[1], record.stride), np.uint8)
        records[:, : record.codes] = _lines4(grouped.codes) if four else _lines8(grouped.codes)
        records[:, record.codes : record.codes + record.scales] = grouped.scales.view(np.uint8)
        parts = {"q": records, "d": grouped.rows}
    if four:
        assert grouped.codebook is not None
        parts["cb"] = grouped.codebook
    return parts


def unpack(parts: Mapping[str, Array], encoding: str, layout: str, shape: Shape) -> Grouped:
    """The inverse of `pack`."""
    four = encoding_of(encoding).bits == 4
    count, length = rows_and_length(layout, shape)
    padded = padded_length(encoding, layout, shape)
    stored: U8 = parts["q"]
    scales: I8
    if layout == TILE:
        codes = (_untile4(stored) if four else _untile8(stored))[:count]
        tiled = parts["s"]
        scales = tiled.transpose(0, 2, 1).reshape(-1, tiled.shape[1])[:count]
    elif layout == ROW:
        codes, scales = _unrow4(stored) if four else stored, parts["s"]
    else:
        record = kn_record(encoding, shape)
        lines = stored[:, : record.codes]
        codes = _unlines4(lines) if four else _unlines8(lines)
        scales = stored[:, record.codes : record.codes + record.scales].view(np.int8)
    rows = np.require(parts["d"], np.float32, ["ALIGNED"])[:count]
    assert codes.shape == (count, padded)
    return Grouped(codes, scales, rows, length, parts["cb"] if four else None)


def _pad_rows(array: Array, fill: int) -> Array:
    missing = round_up(len(array), 16) - len(array)
    if not missing:
        return array
    return np.concatenate([array, np.full((missing, *array.shape[1:]), fill, array.dtype)])


def _tile8(codes: U8) -> U8:
    """[Np, Kp] -> [Np/16, Kp/4, 16, 4]."""
    rows, padded = codes.shape
    return np.ascontiguousarray(codes.reshape(rows // 16, 16, padded // 4, 4).transpose(0, 2, 1, 3))


def _untile8(tiles: U8) -> U8:
    return tiles.transpose(0, 2, 1, 3).reshape(tiles.shape[0] * 16, -1)


def _tile4(nibbles: U8) -> U8:
    """[Np, Kp] -> [Np/16, Kp/8, 16, 4]; low nibbles are k = 8j + i, high ones k = 8j + 4 + i."""
    rows, padded = nibbles.shape
    halves = nibbles.reshape(rows // 16, 16, padded // 8, 2, 4)
    packed: U8 = halves[:, :, :, 0] | (halves[:, :, :, 1] << np.uint8(4))
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3))


def _untile4(tiles: U8) -> U8:
    by_row = tiles.transpose(0, 2, 1, 3)
    return np.stack([by_row & 15, by_row >> 4], axis=3).reshape(tiles.shape[0] * 16, -1)


def _row4(nibbles: U8) -> U8:
    """[N, Kp] -> [N, Kp/2]; in each block of 32 the first 16 are low nibbles, the last 16 high ones."""
    rows, padded = nibbles.shape
    halves = nibbles.reshape(rows, padded // 32, 2, 16)
    packed: U8 = halves[:, :, 0] | (halves[:, :, 1] << np.uint8(4))
    return packed.reshape(rows, padded // 2)


def _unrow4(packed: U8) -> U8:
    blocks = packed.reshape(len(packed), -1, 16)
    return np.stack([blocks & 15, blocks >> 4], axis=2).reshape(len(packed), -1)


def _lines8(codes: U8) -> U8:
    """[K, Np] -> [K, Np]; byte i of dword d in line b is output 64b + 16i + d."""
    rows, padded = codes.shape
    return codes.reshape(rows, padded // 64, 4, 16).swapaxes(2, 3).reshape(rows, padded)


def _unlines8(lines: U8) -> U8:
    rows, padded = lines.shape
    return lines.reshape(rows, padded // 64, 16, 4).swapaxes(2, 3).reshape(rows, padded)


def _lines4(nibbles: U8) -> U8:
    """[K, Np] -> [K, Np/2]; nibble i of dword d in line b is output 128b + 16i + d."""
    rows, padded = nibbles.shape
    pairs = nibbles.reshape(rows, padded // 128, 4, 2, 16)
    packed: U8 = pairs[:, :, :, 0] | (pairs[:, :, :, 1] << np.uint8(4))
    return packed.swapaxes(2, 3).reshape(rows, padded // 2)


def _unlines4(lines: U8) -> U8:
    rows, nbytes = lines.shape
    by_pair = lines.reshape(rows, nbytes // 64, 16, 4).swapaxes(2, 3)
    return np.stack([by_pair & 15, by_pair >> 4], axis=3).reshape(rows, nbytes * 2)
