"""Codes and scales for given grids of levels, row by row, without data.

Groups are worked on side by side: an array of groups is [k, groups], and sums run over ascending k in
float32, so that the order of additions is the same for any width of vector registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from quant.arrays import F32, F64, I8, U8
from quant.codecs import q4, q5, q6

TINY = np.float32(1e-30)
"""Rows whose largest weight is below this are zero: their scales would be denormal numbers."""
SMALL = np.float32(1e-6)
"""Groups whose largest weight is below this share of the row's are zero: so is their scale, once rounded."""
ONE = np.float32(1)
_HALF = np.float32(0.5)
TOP8 = np.float32(127)
CUBE8 = np.float32(127**3)
TOP = np.float32(127**2)
"""The largest factor of a group: s = 127."""

TABLE: U8 = np.array([1, 16, 27, 36, 44, 51, 57, 63, 68, 73, 79, 86, 94, 103, 113, 124], np.uint8)
"""The fixed 4-bit table, where learning starts: what it converges to on normally distributed weights."""
TABLE5: U8 = np.array([65, 68, 71, 74, 77, 80, 83, 86, 89, 92, 95, 99, 103, 107, 112, 119], np.uint8)
"""The same of 5 bits. It ends where most of its steps are 3, so that whole numbers are near to what it converges to."""

_STEPS = (0.80, 0.87, 0.93, 1.0, 1.06, 1.12, 1.19, 1.25)
_STEPS5 = (0.97, 0.99, 1.01, 1.04, 1.12, 1.15, 1.19, 1.29)
_STEPS6 = (0.955, 0.985, 1.0, 1.016, 1.032, 1.067, 1.123, 1.185)


def _candidates(steps: tuple[float, ...], end: int) -> F32:
    return np.array([sign * step / end for step in steps for sign in (1, -1)], np.float32)


class Fit(NamedTuple):
    """Codes of R rows of L weights with Lg groups each, and what was lost in every row."""

    codes: U8
    """[R, L]."""
    scales: I8
    """[R, Lg]."""
    rows: F32
    """[R]."""
    error: F64
    """[R]: sum of squared errors: float32 over a group (float64 where that overflows), then float64 over groups
    in order."""
    power: F64
    """[R]: sum of squared weights, likewise."""
    largest: F32
    """[R]: largest absolute error."""


class Groups(NamedTuple):
    """A run of equally long groups of a block of rows: the whole ones, or the rest at the end of each row."""

    columns: slice
    """Their weights."""
    indices: slice
    """Their numbers within a row."""

    def gather(self, rows: F32) -> F32:
        """[R, L] -> [k, R * groups], row by row."""
        count = self.indices.stop - self.indices.start
        cut = rows[:, self.columns]
        return np.ascontiguousarray(cut.reshape(len(rows) * count, -1).T)

    def spread(self, columns: F32 | None, rows: int) -> F32 | None:
        """[L] -> [k, R * groups]: what `gather` gives for R = `rows` equal rows; None stays None."""
        return None if columns is None else self.gather(np.broadcast_to(columns, (rows, len(columns))))


def groups_of(length: int, group: int) -> Iterator[Groups]:
    """The groups of a row of `length` weights: those of full size, and the rest if there is one."""
    whole = length // group
    if whole:
        yield Groups(slice(0, whole * group), slice(0, whole))
    if length % group:
        yield Groups(slice(whole * group, length), slice(whole, whole + 1))


def fit8(block: F32, group: int) -> Fit:
    """q8 codes for `block` [R, L]. The scale of a group is the smallest that reaches its largest weight."""
    count, length = block.shape
    codes = np.empty((count, length), np.uint8)
    scales = np.zeros((count, -(-length // group)), np.int8)
    top = np.abs(block).max(axis=1)
    rows = np.where(top >= TINY, top / CUBE8, np.float32(0))
    stats = _Statistics(count)
    for run in groups_of(length, group):
        x = run.gather(block)
        width = x.shape[1] // count
        d = np.repeat(rows, width)
        reach = np.abs(x).max(axis=0)
        ratio = reach / divisor(TOP8 * d, d > 0)
        root = np.minimum(np.ceil(np.sqrt(ratio)), TOP8)
        root[d == 0] = 0
        factor = d * (root * root)
        scaled = x / divisor(factor, factor > 0)
        scaled[:, factor == 0] = 0
        code = np.clip((scaled + np.float32(128.5)).astype(np.int32), 1, 255)
        stats.add(x, factor * (code.astype(np.float32) - np.float32(128)), count)
        scales[:, run.indices] = root.reshape(count, width)
        codes[:, run.columns] = code.T.reshape(count, -1)
    return Fit(codes, scales, rows, *stats.result())


def fit(block: F32, group: int, lookup: Grid, importance: F32 | None = None) -> Fit:
    """Codes of 4, 5 or 6 bits for `block` [R, L]: searched scales, then the best of the rounded ones near them.

    `importance` [L]: how much errors in each column count for both; None: all alike.
    """
    count, length = block.shape
    codes = np.empty((count, length), np.uint8)
    scales = np.zeros((count, -(-length // group)), np.int8)
    top = np.abs(block).max(axis=1)
    live = top >= TINY
    unit: F32 = block / divisor(top, live)[:, None]
    unit[~live] = 0
    wanted = np.empty(scales.shape, np.float32)
    for run in groups_of(length, group):
        found = search(run.gather(unit), lookup, run.spread(importance, count))
        wanted[:, run.indices] = found.reshape(count, -1)
    step = np.abs(wanted).max(axis=1) / TOP
    rows = step * top
    rows[~live] = 0
    stats = _Statistics(count)
    for run in groups_of(length, group):
        width = run.indices.stop - run.indices.start
        root, code = round_scales(
            run.gather(unit),
            np.ravel(wanted[:, run.indices]),
            np.repeat(step, width),
            lookup,
            run.spread(importance, count),
        )
        square = root.astype(np.int32) * np.abs(root.astype(np.int32))
        factor = np.repeat(rows, width) * square.astype(np.float32)
        stats.add(run.gather(block), factor * lookup.levels[code], count)
        scales[:, run.indices] = root.reshape(count, width)
        codes[:, run.columns] = code.T.reshape(count, -1)
    return Fit(codes, scales, rows, *stats.result())


class Grid(Protocol):
    """What codes stand for, and how scales for it are searched."""

    levels: F32
    """What each code stands for."""
    candidates: F32
    """Scales to try, as shares of the group's largest weight; both signs, as grids are not symmetric."""
    neighbours: range
    """Which roots near a wanted scale are tried: 0 is the one below it."""

    def indices(self, values: F32) -> U8:
        """The code of the nearest level, for any shape."""
        ...

    def entries(self, values: F32) -> F32:
        """The nearest level itself, for any shape."""
        ...


class SixBits:
    """All whole numbers in -32..31; the higher one on a tie."""

    levels = q6.LEVELS
    candidates = _candidates(_STEPS6, 32)
    neighbours = range(-4, 6)

    def indices(self, values: F32) -> U8:
        """Code 0..63 of the nearest number, for any shape."""
        inside = np.fmin(np.fmax(values, q6.LEVELS[0]), q6.LEVELS[-1])
        inside += np.float32(q6.ZERO + 0.5)
        codes: U8 = inside.astype(np.uint8)
        return codes

    def entries(self, values: F32) -> F32:
        """The nearest number itself, for any shape."""
        found: F32 = self.indices(values).astype(np.float32)
        found -= np.float32(q6.ZERO)
        return found


SIX_BITS = SixBits()


class Lookup:
    """Nearest entry of an ascending table of 16 values: the number of midpoints below; lower on a tie."""

    GRID = 8
    """Entries are multiples of 1 / GRID within -64..64, so midpoints are multiples of half of that."""
    candidates = _candidates(_STEPS, 63)
    neighbours = range(2)

    def __init__(self, entries: F32) -> None:
        """`entries`: float32 [16]."""
        self.levels = entries
        middles = (entries[1:] + entries[:-1]) * np.float32(0.5)
        self._fine = np.float32(2 * self.GRID)
        self._limit = np.float32(2 * self.GRID * 64)
        steps = np.arange(-self._limit, self._limit + 1, dtype=np.float32) / self._fine
        # rounding up to a midpoint's grid keeps the side of every midpoint
        self._index: U8 = np.searchsorted(middles, steps, side="left").astype(np.uint8)
        self._entry: F32 = entries[self._index]

    def indices(self, values: F32) -> U8:
        """Index 0..15 of the nearest entry, for any shape."""
        return self._index[self._place(values)]

    def entries(self, values: F32) -> F32:
        """The nearest entry itself, for any shape."""
        return self._entry[self._place(values)]

    def _place(self, values: F32) -> npt.NDArray[np.uint16]:
        fine = values * self._fine
        np.ceil(fine, out=fine)
        np.clip(fine, -self._limit, self._limit, out=fine)
        fine += self._limit
        return fine.astype(np.uint16)


class Mirrored:
    """16 ascending numbers from 0 up, and for each m of them -1 - m: 32 levels on both sides of -1/2."""

    candidates = _candidates(_STEPS5, 56)
    neighbours = range(2)

    def __init__(self, half: F32) -> None:
        """`half`: float32 [16], multiples of 1 / Lookup.GRID below 64."""
        self.levels = q5.levels(half)
        self._distances = Lookup(half + _HALF)

    def indices(self, values: F32) -> U8:
        """Code 0..31 of the nearest level, for any shape; the one nearer to -1/2 on a tie, and of those around it 0."""
        centred = values + _HALF
        codes = self._distances.indices(np.abs(centred))
        codes |= (centred < 0).astype(np.uint8) << np.uint8(4)
        return codes

    def entries(self, values: F32) -> F32:
        """The nearest level itself, for any shape."""
        return self.levels[self.indices(values)]


def grid_of(bits: int, table: U8 | None) -> Grid:
    """The grid of codes of 4, 5 or 6 bits, with a table where they have one."""
    if table is None:
        return SIX_BITS
    return Lookup(q4.entries(table)) if bits == 4 else Mirrored(q5.entries(table))


def search(x: F32, lookup: Grid, importance: F32 | None = None) -> F32:
    """The scale, with sign, that suits each group of `x` [k, n] best: float32 [n], 0 for groups of zeros.

    Weights are within -1..1. For every candidate: codes, then the scale that is best for these codes in
    closed form; of all, the one that explains most of the group's power; once more from there. `importance` [k, n]
    weighs the errors; None: all alike.
    """
    reach = np.abs(x).max(axis=0)
    live = reach >= SMALL
    best = np.full(x.shape[1], -1, np.float32)
    scale = np.zeros(x.shape[1], np.float32)
    reach = divisor(reach, live)

    def attempt(candidate: F32) -> None:
        entries = lookup.entries(x * (ONE / candidate))
        cross, square = _correlate(x, entries, importance)
        safe = divisor(square, square > 0)
        fitted = cross / safe
        gain = cross * fitted
        better = gain > best
        best[better] = gain[better]
        scale[better] = fitted[better]

    for factor in lookup.candidates:
        attempt(reach * factor)
    scale[~live] = 0  # what was fitted to them may have no reciprocal
    attempt(divisor(scale, scale != 0))
    scale[~live] = 0
    return scale


def round_scales(
    x: F32, wanted: F32, step: F32, lookup: Grid, importance: F32 | None = None
) -> tuple[I8, U8]:
    """Signed roots [n] and codes [k, n] for groups `x` [k, n] of wanted scale [n], in units of `step` [n].

    Tries the neighbouring roots; a group whose error they do not lessen becomes zero.
    """
    ratio = np.abs(wanted) / divisor(step, step > 0)
    low = np.minimum(np.floor(np.sqrt(ratio)), TOP8)
    sign = np.where(wanted < 0, np.float32(-1), np.float32(1))

    def attempt(root: F32) -> tuple[F32, U8]:
        factor = step * (root * root) * sign
        scaled = x * (ONE / divisor(factor, factor != 0))
        code, entries = lookup.indices(scaled), lookup.entries(scaled)
        cross, square = _correlate(x, entries, importance)
        return (factor + factor) * cross - (factor * factor) * square, code

    def near(away: int) -> F32:
        found: F32 = np.clip(low + np.float32(away), np.float32(0), TOP8)
        return found

    size = near(lookup.neighbours[0])
    best, code = attempt(size)
    for away in lookup.neighbours[1:]:
        other = near(away)
        gain, codes = attempt(other)
        better = gain > best
        best, size = np.where(better, gain, best), np.where(better, other, size)
        code[:, better] = codes[:, better]
    dead = best <= 0
    dead |= wanted == 0
    root = (size * sign).astype(np.int8)
    root[dead] = 0
    dead |= root == 0
    code[:, dead] = 0
    return root, code


def divisor(values: F32, usable: npt.NDArray[np.bool_]) -> F32:
    """`values`, but 1 where they are not usable."""
    result: F32 = np.where(usable, values, ONE)
    return result


def _correlate(x: F32, entries: F32, importance: F32 | None) -> tuple[F32, F32]:
    """[n]: sums over k of x times its entry and of the squared entries, weighted by `importance` [k, n]."""
    if importance is None:
        return _sum(x * entries), _sum(entries * entries)
    return _sum(x * importance * entries), _sum(entries * importance * entries)


def _sum(terms: F32) -> F32:
    """Sum of [k, n] over k in float32, k ascending."""
    total: F32 = terms[0].copy()
    for term in terms[1:]:
        total += term
    return total


def _wide_squares(values: F32) -> F64:
    """Sum of the squares of [k, n] over k in float64, k ascending."""
    total = np.zeros(values.shape[1])
    for row in values.astype(np.float64):
        total += row * row
    return total


class _Statistics:
    """Squared errors of a block of rows, added group by group."""

    def __init__(self, count: int) -> None:
        self.error, self.power = np.zeros(count), np.zeros(count)
        self.largest = np.zeros(count, np.float32)

    def add(self, x: F32, decoded: F32, count: int) -> None:
        """Weights and decoded values [k, R * groups] of one run."""
        lost = x - decoded
        errors, powers = _sum(lost * lost).astype(np.float64), _sum(x * x).astype(np.float64)
        large = ~np.isfinite(errors + powers)
        if large.any():
            errors[large], powers[large] = _wide_squares(lost[:, large]), _wide_squares(x[:, large])
        for group in errors.reshape(count, -1).T:
            self.error += group
        for group in powers.reshape(count, -1).T:
            self.power += group
        np.maximum(self.largest, np.abs(lost).max(axis=0).reshape(count, -1).max(axis=1), out=self.largest)

    def result(self) -> tuple[F64, F64, F32]:
        return self.error, self.power, self.largest
