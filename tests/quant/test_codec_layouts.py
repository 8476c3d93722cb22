"""The layouts against loops that follow FORMAT.md element by element."""

from __future__ import annotations

import numpy as np
import pytest

from quant.codecs import decode, layouts
from quant.codecs.grouped import Grouped
from quant.errors import InvalidRequest
from quant.formats import ENCODINGS, padded_length, parts_of, rows_and_length, stored_bytes

SHAPES = [(1, 8), (17, 24), (16, 32), (5, 96), (33, 224), (130, 480), (64, 40), (3, 1)]
QUANTIZED = ("q8g32", "q6g32", "q6g16", "q5g32", "q5g16", "q4g32", "q4g16")
COMBINATIONS = [(e, lay) for e in QUANTIZED for lay in ("t16x4", "row", "kn")]


def random_grouped(encoding: str, layout: str, shape: tuple[int, int], seed: int) -> Grouped:
    random = np.random.default_rng(seed)
    rows, length = rows_and_length(layout, shape)
    padded, group = padded_length(encoding, layout, shape), ENCODINGS[encoding].group
    bits = ENCODINGS[encoding].bits
    eight = bits == 8
    codes = np.full((rows, padded), 128 if eight else 0, np.uint8)
    codes[:, :length] = random.integers(1 if eight else 0, 1 << bits, (rows, length))
    scales = np.zeros((rows, padded // group), np.int8)
    used = -(-length // group)
    scales[:, :used] = random.integers(0 if eight else -127, 128, (rows, used))
    bytes_of_tables = {4: np.arange(1, 128), 5: np.arange(64, 128)}.get(bits)
    book = None
    if bytes_of_tables is not None:
        book = np.sort(random.choice(bytes_of_tables, 16, replace=False)).astype(np.uint8)
    return Grouped(codes, scales, random.random(rows, np.float32), length, book)


def up(value: int, multiple: int) -> int:
    return (value + multiple - 1) // multiple * multiple


def code_at(parts: dict[str, np.ndarray], encoding: str, layout: str, rows: int, at: tuple[int, int]) -> int:
    """The code of weight [n, k] = `at` in a matrix of `rows` rows, by the text of FORMAT.md."""
    n, k = at
    q = parts["q"]
    bits = int(encoding[1])
    if layout == "t16x4" and bits == 8:
        return int(q[n // 16, k // 4, n % 16, k % 4])
    if layout == "t16x4":
        lines = bits
        byte = int(q[n // 16, k // 32 * lines + k % 32 // 8, n % 16, k % 4])
        nibble = byte >> 4 if k % 8 >= 4 else byte & 15
        if bits == 4:
            return nibble
        if bits == 5:
            above = int(q[n // 16, k // 32 * 5 + 4, n % 16, k % 4])
            return nibble + 16 * (above >> k % 32 // 4 & 1)
        above = int(q[n // 16, k // 32 * 6 + 4 + k % 32 // 16, n % 16, k % 4])
        return nibble + 16 * (above >> 2 * (k % 16 // 4) & 3)
    if layout == "row" and bits == 8:
        return int(q[n, k])
    if layout == "row":
        byte = int(q[n, 4 * bits * (k // 32) + k % 16])
        nibble = byte >> 4 if k % 32 >= 16 else byte & 15
        if bits == 4:
            return nibble
        if bits == 5:
            return nibble + 16 * (int(q[n, 20 * (k // 32) + 16 + k % 4]) >> k % 32 // 4 & 1)
        return nibble + 16 * (int(q[n, 24 * (k // 32) + 16 + k % 8]) >> 2 * (k % 32 // 8) & 3)
    record = q[k].tobytes()
    per_line = 64 if bits == 8 else 128
    line, i, d = n // per_line, n % per_line // 16, n % 16
    dword = int.from_bytes(record[64 * line + 4 * d : 64 * line + 4 * d + 4], "little")
    if bits == 8:
        return dword >> 8 * i & 255
    nibble = dword >> 4 * i & 15
    if bits == 4:
        return nibble
    if bits == 5:
        byte = record[up(rows, 128) // 2 + 16 * line + d]
        return nibble + 16 * (byte >> [0, 1, 4, 5, 2, 3, 6, 7][i] & 1)
    begin = up(rows, 128) // 2 + 32 * line + 2 * d
    word = int.from_bytes(record[begin : begin + 2], "little")
    return nibble + 16 * (word >> [0, 2, 8, 10, 4, 6, 12, 14][i] & 3)


def scale_at(parts: dict[str, np.ndarray], encoding: str, layout: str, rows: int, at: tuple[int, int]) -> int:
    """The scale of weight [n, k] = `at` in a matrix of `rows` rows, by the text of FORMAT.md."""
    n, k = at
    group = int(encoding[3:])
    if layout == "t16x4":
        return int(parts["s"][n // 16, k // group, n % 16])
    if layout == "row":
        return int(parts["s"][n, k // group])
    bits = int(encoding[1])
    codes = up(rows, 64 if bits == 8 else 128) // 8 * bits
    return int(parts["q"][k].view(np.int8)[codes + n // group])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("encoding", "layout"), COMBINATIONS)
def test_every_element_lies_where_the_format_says(encoding: str, layout: str, shape: tuple[int, int]) -> None:
    grouped = random_grouped(encoding, layout, shape, seed=shape[0])
    parts = layouts.pack(grouped, encoding, layout, shape)
    values = decode(parts, encoding, layout, shape)
    assert values.shape == shape and values.dtype == np.float32 and values.flags.c_contiguous
    kn, group = layout == "kn", int(encoding[3:])
    for n in range(shape[0]):
        for k in range(shape[1]):
            row, at = (k, n) if kn else (n, k)
            code = code_at(parts, encoding, layout, shape[0], (n, k))
            scale = scale_at(parts, encoding, layout, shape[0], (n, k))
            assert code == grouped.codes[row, at]
            assert scale == grouped.scales[row, at // group]
            zero = 128 if encoding == "q8g32" else 32
            number = code - zero if grouped.codebook is None else int(grouped.codebook[code % 16]) - 64
            number = -1 - number if encoding[1] == "5" and code >= 16 else number
            factor = np.float32(parts["d"][row]) * np.float32(scale * abs(scale))
            assert values[n, k] == factor * np.float32(number)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("encoding", "layout"), COMBINATIONS)
def test_parts_are_as_announced_and_unpack_gives_back_what_was_packed(
    encoding: str, layout: str, shape: tuple[int, int]
) -> None:
    grouped = random_grouped(encoding, layout, shape, seed=shape[1])
    parts = layouts.pack(grouped, encoding, layout, shape)
    specs = parts_of(encoding, layout, shape)
    assert list(parts) == [spec.part for spec in specs]
    kinds = {"U8": np.uint8, "I8": np.int8, "F32": np.float32}
    for spec in specs:
        assert parts[spec.part].shape == spec.shape
        assert parts[spec.part].dtype == kinds[spec.dtype]
        assert parts[spec.part].nbytes == spec.nbytes
    assert stored_bytes(encoding, layout, shape) == sum(part.nbytes for part in parts.values())
    back = layouts.unpack(parts, encoding, layout, shape)
    assert np.array_equal(back.codes, grouped.codes)
    assert np.array_equal(back.scales, grouped.scales)
    assert np.array_equal(back.rows, grouped.rows)


@pytest.mark.parametrize("encoding", QUANTIZED)
def test_padding_is_neutral(encoding: str) -> None:
    grouped = random_grouped(encoding, "t16x4", (17, 24), seed=1)
    parts = layouts.pack(grouped, encoding, "t16x4", (17, 24))
    neutral = 128 if encoding == "q8g32" else 0
    for n in range(32):
        for k in range(32):
            if n >= 17 or k >= 24:
                assert code_at(parts, encoding, "t16x4", 17, (n, k)) == neutral
    assert not parts["s"][1, :, 1:].any()
    assert not parts["d"][17:].any()


@pytest.mark.parametrize(
    ("encoding", "shape", "stride"),
    [
        ("q4g32", (2048, 64), 1088),
        ("q4g16", (2048, 64), 1152),
        ("q8g32", (2048, 64), 2112),
        ("q6g32", (2048, 64), 1600),
        ("q6g16", (2048, 64), 1664),
        ("q6g32", (40, 3), 128),
        ("q5g32", (2048, 64), 1344),
        ("q5g16", (2048, 64), 1408),
        ("q5g32", (40, 3), 128),
        ("q4g32", (40, 3), 128),
    ],
)
def test_kn_records_have_the_documented_strides(encoding: str, shape: tuple[int, int], stride: int) -> None:
    assert parts_of(encoding, "kn", shape)[0].shape == (shape[1], stride)


@pytest.mark.parametrize(
    ("encoding", "layout", "shape"),
    [
        ("q8g32", "row", (8,)), ("q8g32", "t16x4", (0, 4)), ("q4g32", "tile", (4, 4)),
        ("f32", "t16x4", (4, 4)), ("q7g32", "row", (4, 4)), ("bf16", "kn", (4, 4)),
    ],
)  # fmt: skip
def test_impossible_combinations_are_refused(encoding: str, layout: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest):
        parts_of(encoding, layout, shape)
