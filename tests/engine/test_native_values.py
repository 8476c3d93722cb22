"""What is done to values without numpy, beside numpy: the checks of a model file's values, and the sampler's small steps."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from quant.container.values import WithNumpy
from rwkvcli import _kernels

TOLD_APART = [np.nan, -np.nan, np.inf, -np.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 3.4028235e38, -3.4028235e38]


@pytest.mark.parametrize("value", TOLD_APART, ids=str)
@pytest.mark.parametrize("place", [0, 7, 1000])
def test_values_are_judged_as_by_numpy(value: float, place: int) -> None:
    values = np.linspace(0, 5, 1001, dtype=np.float32)
    values[place] = value
    for shift in (0, 1):  # files need not align them
        held = memoryview(bytes(shift) + values.tobytes())[shift:]
        assert _kernels.are_finite(held) == WithNumpy().are_finite(held) == bool(np.isfinite(value))
        assert _kernels.are_scales(held) == WithNumpy().are_scales(held) == bool(0 <= value < np.inf)


def test_no_values_are_good_and_half_a_value_is_refused() -> None:
    assert _kernels.are_finite(memoryview(b"")) and _kernels.are_scales(memoryview(b""))
    with pytest.raises(ValueError, match="the bytes of float32"):
        _kernels.are_finite(memoryview(bytes(6)))


@pytest.mark.parametrize("size", [1, 5, 127, 128, 129, 1000])
def test_the_greedy_choice_is_the_first_of_the_largest(size: int) -> None:
    rng = np.random.default_rng(size)
    sampler = _kernels.Sampler()
    for _ in range(50):
        logits = rng.integers(-3, 3, size).astype(np.float32)  # many are equal
        assert sampler.greedy(logits) == sampler.greedy(memoryview(logits)) == np.argmax(logits)
        logits[rng.integers(0, size, 2)] = [np.inf, np.nan]
        assert sampler.greedy(logits) == np.argmax(logits)
    assert sampler.greedy(np.full(size, -np.inf, np.float32)) == 0


def test_biases_are_added_where_they_belong() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=100).astype(np.float32)
    tokens, added = np.array([3, 99, 0], np.int32), np.array([1e-3, -np.inf, 7], np.float32)
    expected = logits.copy()
    expected[tokens] += added
    work = memoryview(bytearray(logits.tobytes())).cast("f")
    _kernels.Sampler.bias(work, array("i", tokens), array("f", added))
    assert np.asarray(work).tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="a token without logits"):
        _kernels.Sampler.bias(work, array("i", [1, 100]), array("f", [1, 1]))
    assert np.asarray(work).tobytes() == expected.tobytes()


def test_arrays_of_other_kinds_are_refused() -> None:
    sampler = _kernels.Sampler()
    with pytest.raises(TypeError, match="logits must be an array of float32"):
        sampler.greedy(np.zeros(4))
    with pytest.raises(ValueError, match="one-dimensional"):
        sampler.greedy(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="one after the other"):
        sampler.greedy(np.zeros(8, np.float32)[::2])
    with pytest.raises(BufferError):
        _kernels.Sampler.bias(memoryview(bytes(8)).cast("f"), array("i", [1]), array("f", [1]))
