"""Slow and obvious twins of the native tokenizer and sampler."""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray


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


def uniform(seed: int, index: int) -> float:
    """Draw number `index` of `seed`: float64 in [0, 1), a multiple of 2**-53. Arguments in [0, 2**64)."""
    block = index + 1  # numpy counts before it draws
    return (philox4x64((block % 2**64, block >> 64, 0, 0), (seed, 0))[0] >> 11) * 2.0**-53


def philox4x64(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)."""
    mask = 0xFFFFFFFFFFFFFFFF
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0 = 0xD2E7470EE14C6C93 * c0
        p1 = 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & mask, (p0 >> 64) ^ c3 ^ k1, p0 & mask
        k0 = (k0 + 0x9E3779B97F4A7C15) & mask
        k1 = (k1 + 0xBB67AE8584CAA73B) & mask
    return c0, c1, c2, c3


def distribution(
    logits: Sequence[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float = 0.0,
    typical: float = 1.0,
    temperature_first: bool = False,
) -> tuple[dict[int, float], float]:
    """Probabilities by id (ascending), and how near a cut was to falling elsewhere."""
    top = max(logits)
    first = temperature if temperature_first else 1.0
    weights = [math.exp((logit - top) / first) for logit in logits]
    kept = list(range(len(weights)))
    margin = math.inf

    def best(order: Sequence[tuple[float, int]], share: float) -> list[int]:
        """Ids in the given order until `share` of the weights of all is reached, and those equal to the last."""
        nonlocal margin
        whole = math.fsum(weights[i] for _, i in order)
        total = 0.0
        for key, i in order:
            margin = min(margin, abs(total + weights[i] - share * whole) / whole)
            total += weights[i]
            if total >= share * whole:
                margin = min([margin, *(abs(other - key) for other, _ in order if other != key)])
                return [j for other, j in order if other <= key]
        return [i for _, i in order]

    if typical < 1:
        whole = math.fsum(weights)
        surprise = {i: -math.log(weights[i] / whole) for i in kept if weights[i] > 0}
        expected = math.fsum(weights[i] / whole * surprise[i] for i in surprise)
        kept = best(sorted((abs(surprise[i] - expected), i) for i in surprise), typical)
    if top_p < 1:
        kept = best(sorted((-weights[i], i) for i in kept), top_p)
    if min_p > 0:
        largest = max(weights[i] for i in kept)
        margin = min([margin, *(abs(weights[i] / largest - min_p) for i in kept)])
        kept = [i for i in kept if weights[i] >= min_p * largest]
    if top_k:
        kept = sorted(kept, key=lambda i: (-weights[i], i))[:top_k]
    top = max(logits[i] for i in kept)
    final = {i: math.exp((logits[i] - top) / temperature) for i in sorted(kept)}
    whole = math.fsum(final.values())
    return {i: weight / whole for i, weight in final.items()}, margin


def penalized(
    logits: Sequence[float],
    generated: Sequence[tuple[int, float]],
    presence: float,
    frequency: float,
    repetition: float,
    decay: float,
) -> list[float]:
    """`logits` after the penalties for `generated`: (token, what it adds to its count), oldest first."""
    counts: dict[int, float] = {}
    for token, weight in generated:
        counts = {other: count * decay for other, count in counts.items()}
        counts[token] = counts.get(token, 0.0) + weight
    result = list(logits)
    for token, count in counts.items():
        logit = result[token]
        if repetition != 1:
            logit = logit / repetition if logit > 0 else logit * repetition
        result[token] = logit - presence - frequency * count
    return result


def completing(tokens: Sequence[bytes], generated: Sequence[int], banned: Sequence[bytes]) -> set[int]:
    """Ids after which one of `banned` stands in the text at a place where it did not stand before."""
    before = b"".join(tokens[i] for i in generated)

    def completes(data: bytes, text: bytes) -> bool:
        whole = before + data
        ends = range(max(len(before) + 1, len(text)), len(whole) + 1)
        return any(whole[end - len(text) : end] == text for end in ends)

    return {i for i, data in enumerate(tokens) if any(completes(data, text) for text in banned)}


def chooser(probabilities: dict[int, float], near: float = 1e-5) -> Callable[[float], list[int]]:
    """From a draw to the ids that it may fall on: one, or the neighbours of a boundary that it all but hits."""
    possible = [number for number, probability in probabilities.items() if probability > 0]
    ends = list(accumulate(probabilities[number] for number in possible))

    def choose(draw: float) -> list[int]:
        return possible[bisect_right(ends, draw - near) : bisect_right(ends, draw + near) + 1]

    return choose


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def rounding(terms: int) -> float:
    """How far two log-softmaxes over `terms` logits of float32 may be apart in float64: a sum of so many positive terms is
    wrong by a part of up to terms / 2^53, in each; exponentials, logarithms and differences of numbers below 32 by up to 64 / 2^52
    together."""
    return (terms + 64) * 2.0**-52
