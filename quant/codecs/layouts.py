"""Packing of codes and scales into the layouts of the file, and back. Bytes move here; no value changes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quant.arrays import I8, U8, Array
from quant.codecs import q8
from quant.codecs.grouped import Grouped
from quant.formats import ROW, TILE, Shape, encoding_of, kn_record, padded_length, rows_and_length
from quant.sizes import round_up


def pack(grouped: Grouped, encoding: str, layout: str, shape: Shape) -> dict[str, Array]:
    """The parts of a matrix [N, K] in `layout`, as `quant.formats.parts_of` describes them.

    `grouped` has N rows of length K (in `kn`: K rows of length N), padded to `quant.formats.padded_length`.
    """
    bits = encoding_of(encoding).bits
    parts: dict[str, Array]
    if layout == TILE:
        codes = _pad_rows(grouped.codes, q8.ZERO if bits == 8 else 0)
        scales = _pad_rows(grouped.scales, 0)
        tiled = np.ascontiguousarray(scales.reshape(-1, 16, scales.shape[1]).transpose(0, 2, 1))
        tile = {8: _tile8, 6: _tile6, 5: _tile5, 4: _tile4}[bits]
        parts = {"q": tile(codes), "s": tiled, "d": _pad_rows(grouped.rows, 0)}
    elif layout == ROW:
        row = {8: _row8, 6: _row6, 5: _row5, 4: _row4}[bits]
        parts = {"q": row(grouped.codes), "s": grouped.scales, "d": grouped.rows}
    else:
        record = kn_record(encoding, shape)
        records = np.zeros((shape[1], record.stride), np.uint8)
        lines = {8: _lines8, 6: _lines6, 5: _lines5, 4: _lines4}[bits]
        records[:, : record.codes] = lines(grouped.codes)
        records[:, record.codes : record.codes + record.scales] = grouped.scales.view(np.uint8)
        parts = {"q": records, "d": grouped.rows}
    if encoding_of(encoding).has_codebook:
        assert grouped.codebook is not None
        parts["cb"] = grouped.codebook
    return parts


def unpack(parts: Mapping[str, Array], encoding: str, layout: str, shape: Shape) -> Grouped:
    """The inverse of `pack`."""
    kind = encoding_of(encoding)
    bits = kind.bits
    count, length = rows_and_length(layout, shape)
    padded = padded_length(encoding, layout, shape)
    stored: U8 = parts["q"]
    scales: I8
    if layout == TILE:
        codes = {8: _untile8, 6: _untile6, 5: _untile5, 4: _untile4}[bits](stored)[:count]
        tiled = parts["s"]
        scales = tiled.transpose(0, 2, 1).reshape(-1, tiled.shape[1])[:count]
    elif layout == ROW:
        codes, scales = {8: _row8, 6: _unrow6, 5: _unrow5, 4: _unrow4}[bits](stored), parts["s"]
    else:
        record = kn_record(encoding, shape)
        lines = stored[:, : record.codes]
        codes = {8: _unlines8, 6: _unlines6, 5: _unlines5, 4: _unlines4}[bits](lines)
        scales = stored[:, record.codes : record.codes + record.scales].view(np.int8)
    rows = np.require(parts["d"], np.float32, ["ALIGNED"])[:count]
    assert codes.shape == (count, padded)
    return Grouped(codes, scales, rows, length, parts["cb"] if kind.has_codebook else None)


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


def _tile6(codes: U8) -> U8:
    """[Np, Kp] -> [Np/16, 3Kp/16, 16, 4]: of 32 inputs four lines as `_tile4` has them, then two of the bits above, of
    which byte i of dword r has those of k = 16h + 4v + i at bit 2v.
    """
    return _tile_planes(codes, 2)


def _tile5(codes: U8) -> U8:
    """[Np, Kp] -> [Np/16, 5Kp/32, 16, 4]: likewise, but one line of the bits above: those of k = 4v + i at bit v."""
    return _tile_planes(codes, 1)


def _tile_planes(codes: U8, bits: int) -> U8:
    rows, padded = codes.shape
    nibbles = _tile4(codes & np.uint8(15)).reshape(rows // 16, padded // 32, 4, 16, 4)
    upper = (codes >> np.uint8(4)).reshape(rows // 16, 16, padded // 32, bits, 8 // bits, 4)
    above = _join(upper.transpose(4, 0, 2, 3, 1, 5), bits)
    return np.concatenate([nibbles, above], axis=2).reshape(rows // 16, padded // 32 * (4 + bits), 16, 4)


def _untile6(tiles: U8) -> U8:
    return _untile_planes(tiles, 2)


def _untile5(tiles: U8) -> U8:
    return _untile_planes(tiles, 1)


def _untile_planes(tiles: U8, bits: int) -> U8:
    count = len(tiles)
    groups = tiles.reshape(count, -1, 4 + bits, 16, 4)
    nibbles = _untile4(groups[:, :, :4].reshape(count, -1, 16, 4))
    above = _split(groups[:, :, 4:], bits).transpose(1, 4, 2, 3, 0, 5)
    return nibbles | (above.reshape(nibbles.shape) << np.uint8(4))


def _join(upper: U8, bits: int) -> U8:
    """Arrays of so many bits, [8 / bits, ...], into the bytes of one, from bit 0 up."""
    joined: U8 = np.zeros(upper.shape[1:], np.uint8)
    for v, each in enumerate(upper):
        joined |= each << np.uint8(bits * v)
    return joined


def _split(joined: U8, bits: int) -> U8:
    """The inverse of `_join`."""
    mask = np.uint8((1 << bits) - 1)
    return np.stack([(joined >> np.uint8(bits * v)) & mask for v in range(8 // bits)])


def _row8(codes: U8) -> U8:
    """As it is, there and back."""
    return codes


def _row6(codes: U8) -> U8:
    """[N, Kp] -> [N, 3Kp/4]; each block of 32 is 16 bytes as `_row4` has them and 8 with the bits above: byte j has those
    of k = 8v + j at bit 2v.
    """
    return _row_planes(codes, 2)


def _row5(codes: U8) -> U8:
    """[N, Kp] -> [N, 5Kp/8]; likewise with 4 bytes for the bits above: byte j has those of k = 4v + j at bit v."""
    return _row_planes(codes, 1)


def _row_planes(codes: U8, bits: int) -> U8:
    rows, padded = codes.shape
    nibbles = _row4(codes & np.uint8(15)).reshape(rows, padded // 32, 16)
    upper = (codes >> np.uint8(4)).reshape(rows, padded // 32, 8 // bits, 4 * bits)
    above = _join(upper.transpose(2, 0, 1, 3), bits)
    return np.concatenate([nibbles, above], axis=2).reshape(rows, padded // 32 * (16 + 4 * bits))


def _unrow6(packed: U8) -> U8:
    return _unrow_planes(packed, 2)


def _unrow5(packed: U8) -> U8:
    return _unrow_planes(packed, 1)


def _unrow_planes(packed: U8, bits: int) -> U8:
    rows = len(packed)
    blocks = packed.reshape(rows, -1, 16 + 4 * bits)
    nibbles = _unrow4(blocks[:, :, :16].reshape(rows, -1))
    above = _split(blocks[:, :, 16:], bits).transpose(1, 2, 0, 3)
    return nibbles | (above.reshape(nibbles.shape) << np.uint8(4))


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


def _lines6(codes: U8) -> U8:
    """[K, Np] -> [K, 3Np/4]: all lines of `_lines4`, then 32 bytes for each: byte 2d + m has the bits above of outputs
    128b + 16i + d at bit 2v, where i = 4(v // 2) + 2m + v % 2.
    """
    rows, padded = codes.shape
    upper = (codes >> np.uint8(4)).reshape(rows, padded // 128, 2, 2, 2, 16)  # i: v // 2, m, v % 2
    above = _join(upper.transpose(2, 4, 0, 1, 5, 3).reshape(4, rows, padded // 128, 16, 2), 2)
    return np.concatenate([_lines4(codes & np.uint8(15)), above.reshape(rows, padded // 4)], axis=1)


def _lines5(codes: U8) -> U8:
    """[K, Np] -> [K, 5Np/8]: likewise with 16 bytes for each line: byte d has the bit above at bit 4m + v."""
    rows, padded = codes.shape
    upper = (codes >> np.uint8(4)).reshape(rows, padded // 128, 2, 2, 2, 16)
    above = _join(upper.transpose(3, 2, 4, 0, 1, 5).reshape(8, rows, padded // 128, 16), 1)
    return np.concatenate([_lines4(codes & np.uint8(15)), above.reshape(rows, padded // 8)], axis=1)


def _unlines6(lines: U8) -> U8:
    rows, nbytes = lines.shape
    nibbles = _unlines4(lines[:, : nbytes * 2 // 3])
    above = _split(lines[:, nbytes * 2 // 3 :].reshape(rows, -1, 16, 2), 2).reshape(2, 2, rows, -1, 16, 2)
    return nibbles | (above.transpose(2, 3, 0, 5, 1, 4).reshape(nibbles.shape) << np.uint8(4))


def _unlines5(lines: U8) -> U8:
    rows, nbytes = lines.shape
    nibbles = _unlines4(lines[:, : nbytes * 4 // 5])
    above = _split(lines[:, nbytes * 4 // 5 :].reshape(rows, -1, 16), 1).reshape(2, 2, 2, rows, -1, 16)
    return nibbles | (above.transpose(3, 4, 1, 0, 2, 5).reshape(nibbles.shape) << np.uint8(4))
