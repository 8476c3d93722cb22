"""Slow and obvious twins of the native tokenizer and sampler."""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate


def world_entries(blob: bytes) -> dict[bytes, int]:
    """Entries and their ids out of a vocabulary blob, as csrc/text/world_tokenizer.h describes it."""
    count, total = struct.unpack_from("<II", blob, 8)
    lengths = blob[24 : 24 + count]
    assert len(blob) == 24 + count + total
    entries, at = {}, 24 + count
    for number, length in enumerate(lengths, start=1):
        entries[blob[at : at + length]] = number
        at += length
    return entries


def greedy(entries: dict[bytes, int], text: bytes) -> list[int]:
    """Longest match from left to right, by trying every length."""
    longest = max(map(len, entries))
    ids, at = [], 0
    while at < len(text):
        size = next(size for size in range(longest, 0, -1) if text[at : at + size] in entries)
        ids.append(entries[text[at : at + size]])
        at += size
    return ids


def first_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the first stop string to be complete (the longest of those), and that string."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def distribution(
    logits: Sequence[float], temperature: float, top_k: int, top_p: float
) -> tuple[dict[int, float], float]:
    """Probabilities by id (ascending), and how near the top-p cut was to falling elsewhere."""
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    whole = math.fsum(weights)
    order = sorted(range(len(weights)), key=lambda i: -weights[i])  # stable: lower ids first among equals
    margin = math.inf
    if top_p < 1:
        total = 0.0
        for i in order:
            margin = min(margin, abs(total + weights[i] - top_p * whole) / whole)
            total += weights[i]
            if total >= top_p * whole:
                order = [j for j in order if weights[j] >= weights[i]]
                break
    if top_k:
        order = order[:top_k]
    kept = {i: math.exp((logits[i] - top) / temperature) for i in sorted(order)}
    whole = math.fsum(kept.values())
    return {i: weight / whole for i, weight in kept.items()}, margin


def chooser(probabilities: dict[int, float], near: float = 1e-5) -> Callable[[float], list[int]]:
    """From a draw to the ids that it may fall on: one, or the neighbours of a boundary that it all but hits."""
    possible = [number for number, probability in probabilities.items() if probability > 0]
    ends = list(accumulate(probabilities[number] for number in possible))

    def choose(draw: float) -> list[int]:
        return possible[bisect_right(ends, draw - near) : bisect_right(ends, draw + near) + 1]

    return choose
