"""Plain float encodings, exhaustively where the domain is small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.codecs import decode, floats

ALL16 = np.arange(65536, dtype=np.uint16)


def test_every_bf16_number_survives() -> None:
    values = floats.decode(ALL16, "bf16")
    finite = np.isfinite(values)
    assert np.array_equal(floats.encode(values[finite], "bf16"), ALL16[finite])
    assert np.array_equal(values.view(np.uint32), ALL16.astype(np.uint32) << 16)


def test_every_f16_number_survives() -> None:
    raw = ALL16.view(np.float16)
    finite = np.isfinite(raw)
    values = floats.decode(raw[finite], "f16")
    assert np.array_equal(floats.encode(values, "f16").view(np.uint16), ALL16[finite])


@settings(derandomize=True, max_examples=500)
@given(st.floats(-(2.0**127), 2.0**127, width=32))
def test_bf16_rounds_to_the_nearest(value: float) -> None:
    code = int(floats.encode(np.array([value], np.float32), "bf16")[0])
    values = floats.decode(np.array([max(code - 1, 0), code, min(code + 1, 65535)], np.uint16), "bf16")
    distance = np.abs(values.astype(np.float64) - value)
    assert not np.isfinite(values[1]) or distance[1] <= np.nanmin(distance)


@pytest.mark.parametrize(
    ("value", "code"), [(1.00390625, 0x3F80), (1.01171875, 0x3F82), (-1.00390625, 0xBF80)]
)
def test_bf16_ties_go_to_even(value: float, code: int) -> None:
    assert floats.encode(np.array([value], np.float32), "bf16")[0] == code


@pytest.mark.parametrize(("encoding", "value"), [("f16", 65520.0), ("bf16", 3.4e38)])
def test_what_is_past_the_range_becomes_infinite(encoding: str, value: float) -> None:
    stored = floats.encode(np.array([value, -value], np.float32), encoding)
    assert floats.decode(stored, encoding).tolist() == [np.inf, -np.inf]


def test_plain_tensors_decode_in_their_shape() -> None:
    raw = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(decode({"": raw}, "f32", "row", (3, 4)), raw)
    unaligned = np.frombuffer(b"x" + raw.tobytes(), np.float32, 12, 1).reshape(3, 4)
    assert floats.decode(unaligned, "f32").flags.aligned
