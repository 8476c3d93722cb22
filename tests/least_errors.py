"""What codes of given levels lose at the least, by trying every scale: the bound that searched and rounded scales are held to.

A group x with codes c loses |x - s c|², least at s = xc/cc, where it explains s² |c|² of the group's power. The file has the
scale (d r²) with a whole root r of at most 127, which the largest group of a row has exactly. The scales of roots r and r + 1 are
a share of 2r + 1 over r² apart, so the nearer one misses a wanted scale by a share e of at most half of that. e² is a third of
(1/r)² on average (of all wanted roots between), and the group loses e² s² |c|² more: at its optimum there is no term in e.
So an encoder that finds the best scales, and then the better of two roots, loses at most `least` + `rounding`; one that
also tries other codes for them less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TRIES = np.linspace(0.75, 1.35, 41)
"""Scales to try, as shares of the one with which the largest weight is the level farthest from 0; both signs."""


class Bounds(NamedTuple):
    """Relative squared errors."""

    least: float
    """With the best scale of every group, not rounded."""
    rounding: float
    """What rounding these scales adds, on average."""
    worst: float
    """What it adds at the most."""

    @property
    def expected(self) -> float:
        return self.least + self.rounding

    @property
    def most(self) -> float:
        return self.least + self.worst


def bounds(values: np.ndarray, group: int, levels: np.ndarray, counts: np.ndarray | None = None) -> Bounds:
    """For `values` [R, L] in groups along the rows, whose codes stand for `levels`. `counts` [L]: how much errors there count."""
    levels = np.sort(levels.astype(np.float64))
    middles = (levels[1:] + levels[:-1]) / 2
    end = np.abs(levels).max()
    count, length = values.shape
    padded, weight = np.zeros((2, count, -(-length // group) * group))
    padded[:, :length], weight[:, :length] = values, 1.0 if counts is None else counts
    x, h = padded.reshape(-1, group), weight.reshape(-1, group)
    power = float((h * np.square(x)).sum())
    reach = np.abs(x).max(axis=1)
    best, scale = np.zeros(len(x)), np.zeros(len(x))
    for share in (sign * each for each in TRIES for sign in (1, -1)):
        s = np.where(reach > 0, reach, 1.0) * share / end
        codes = levels[np.searchsorted(middles, x / s[:, None])]
        cross, square = (h * x * codes).sum(axis=1), (h * np.square(codes)).sum(axis=1)
        square = np.where(square > 0, square, 1.0)
        better = np.square(cross) / square > best
        best = np.where(better, np.square(cross) / square, best)
        scale = np.where(better, cross / square, scale)
    least = power - float(best.sum())
    sizes = np.abs(scale).reshape(count, -1)
    root = np.maximum(
        127 * np.sqrt(sizes / np.where(sizes.max(axis=1) > 0, sizes.max(axis=1), 1.0)[:, None]), 1
    )
    missed = np.where(root < 127, 1 / root, 0.0).reshape(-1)
    rounding = float((np.square(missed) / 3 * best).sum())
    worst = float((np.square((2 * root + 1) / (2 * root**2)).reshape(-1) * best).sum())
    return Bounds(least / power, rounding / power, worst / power) if power > 0 else Bounds(0.0, 0.0, 0.0)
