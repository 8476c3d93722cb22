"""Encodings for a size: the ones that lose least, from what each was measured to lose.

Every tensor begins in its smallest encoding. Then the step that takes most error off per byte is taken, again and
again, while the size allows it. Steps go along each tensor's lower convex hull, where this order is the best there is
for every size that it reaches exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from quant.errors import InvalidRequest, amount


class Option(NamedTuple):
    """One way to store a tensor."""

    encoding: str
    nbytes: int
    error: float
    """What it loses, on a scale that all tensors share."""


class Step(NamedTuple):
    """From one option of a tensor to a larger and better one."""

    gain: float
    """Error taken off per byte."""
    name: str
    number: int
    """Which option of the tensor's hull it leads to."""
    nbytes: int
    """How much larger it is."""


def choose(options: Mapping[str, Sequence[Option]], limit: int) -> dict[str, Option]:
    """{tensor: option} of the least total error that greedy steps find within `limit` bytes in all.

    InvalidRequest, with the smallest possible size, where nothing fits.
    """
    hulls = {name: hull(each) for name, each in options.items()}
    at = dict.fromkeys(hulls, 0)
    room = limit - sum(each[0].nbytes for each in hulls.values())
    if room < 0:
        raise InvalidRequest(f"too small by {amount(-room)}")
    steps = [
        Step((low.error - high.error) / (high.nbytes - low.nbytes), name, number, high.nbytes - low.nbytes)
        for name, each in hulls.items()
        for number, (low, high) in enumerate(pairwise(each), 1)
    ]
    # along a hull gains fall, so a tensor's steps come in their order; ties go by name
    for step in sorted(steps, key=lambda step: (-step.gain, step.name, step.number)):
        if step.nbytes <= room and at[step.name] == step.number - 1:
            at[step.name] = step.number
            room -= step.nbytes
    return {name: hulls[name][number] for name, number in at.items()}


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of error over bytes, smallest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (option.nbytes, option.error)):
        if kept and option.error >= kept[-1].error:
            continue  # no better, and no smaller
        while len(kept) > 1 and _slope(kept[-2], option) <= _slope(kept[-2], kept[-1]):
            kept.pop()
        kept.append(option)
    return kept


def _slope(low: Option, high: Option) -> float:
    return (high.error - low.error) / (high.nbytes - low.nbytes)
