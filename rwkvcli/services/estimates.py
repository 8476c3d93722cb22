"""Means with standard errors, and quantiles, of a stream of any length: in fixed memory, and to the same bits
however the stream is cut.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_UNIT = 64
"""Values whose exact sum is formed at a time."""
_MOST_BLOCKS = 128


class Mean:
    """The mean of values that came one after the other, and its standard error by batch means.

    The losses of neighbouring tokens are alike (a hard passage is hard for many tokens), so the usual standard
    error, which takes them for independent, is too small. The stream is cut into 64 to 128 blocks of equal
    length instead, and the means of whole blocks, which are nearly independent when a block is longer than such
    passages, give it: their standard deviation over the root of their number. Blocks double in length as the
    stream grows. Below 128 values a block is one value, which is the usual standard error.
    """

    def __init__(self) -> None:
        self.count = 0
        self._length = 1
        self._blocks: list[float] = []  # sums of `_length` values each
        self._open = 0.0  # of the block in the making: of whole units
        self._open_count = 0
        self._pending: list[float] = []  # and what makes no unit yet

    def add(self, values: NDArray[np.float64]) -> None:
        """Take the next values."""
        self.count += len(values)
        rest = values.tolist()
        at = 0
        while at < len(rest):
            unit = min(self._length, _UNIT)
            take = min(unit - len(self._pending), len(rest) - at)
            self._pending += rest[at : at + take]
            at += take
            if len(self._pending) == unit:
                self._close_unit()

    @property
    def value(self) -> float:
        """The mean. There has to be a value."""
        return self.total / self.count

    @property
    def total(self) -> float:
        """The sum."""
        return math.fsum([*self._blocks, self._open, *self._pending])

    @property
    def stderr(self) -> float | None:
        """The standard error of the mean; None for fewer than two values."""
        blocks = len(self._blocks)
        if blocks < 2:
            return None
        means = [total / self._length for total in self._blocks]
        middle = math.fsum(means) / blocks
        variance = math.fsum((mean - middle) ** 2 for mean in means) / (blocks - 1)
        return math.sqrt(
            variance * self._length / self.count
        )  # per value, over all values: the rest counts too

    def _close_unit(self) -> None:
        self._open += math.fsum(self._pending)
        self._open_count += len(self._pending)
        self._pending = []
        if self._open_count == self._length:
            self._blocks.append(self._open)
            self._open, self._open_count = 0.0, 0
        if len(self._blocks) == _MOST_BLOCKS:
            self._blocks = [a + b for a, b in zip(self._blocks[::2], self._blocks[1::2], strict=True)]
            self._length *= 2


class Quantiles:
    """Quantiles of values that are not negative, to 0.05 % of their size, by counting those of nearly one size.

    The size of a value is its exponent and ten bits of its mantissa, so no rounding decides where it falls.
    Below 2**-60 a value counts as 0.
    """

    _SHIFT = 42  # of float64's 52 mantissa bits
    _LOWEST, _HIGHEST = -60, 40

    def __init__(self) -> None:
        self._first = self._bin(np.array([2.0**self._LOWEST]))[0]
        last = self._bin(np.array([2.0**self._HIGHEST]))[0]
        self._counts = np.zeros(last - self._first + 2, np.int64)  # number 0: what counts as 0

    def add(self, values: NDArray[np.float64]) -> None:
        """Take some values."""
        bins = self._bin(np.minimum(values, 2.0**self._HIGHEST)) - self._first + 1
        np.add.at(self._counts, np.maximum(bins, 0), 1)

    def at(self, share: float) -> float:
        """The least value that `share` of all are not above. There has to be one."""
        cumulative = np.cumsum(self._counts)
        found = int(np.searchsorted(cumulative, max(1, math.ceil(share * int(cumulative[-1])))))
        if found == 0:
            return 0.0
        edges = np.array([found - 1, found]) + self._first
        low, high = (edges << self._SHIFT).view(np.float64)
        return float(low + high) / 2

    @classmethod
    def _bin(cls, values: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.ascontiguousarray(values, np.float64).view(np.int64) >> cls._SHIFT
