"""What choosing a token costs, in microseconds: `python -m benchmarks.sampler [LOGITS.npy]`.

By default over logits of the World vocabulary made from a seed: `peaked`, a few candidates far above a broad
rest, as trained models give; `broad`, a normal distribution of standard deviation 2, where thousands survive
a cut; `flat`, an untrained model. A penalized run has seen 300 different tokens at its end. Best and median
of 300 calls, the whole Python call included.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from numpy.typing import NDArray

from rwkvcli.runtime.sampling import Sampler, SamplingParams
from rwkvcli.runtime.tokenizer import WorldTokenizer

VOCABULARY = 65536
VALID = 65529
CALLS = 300
SETTINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "temperature 1": {},
    "temperature 0.8": {"temperature": 0.8},
    "top-p 0.85": {"top_p": 0.85},
    "top-p 0.5, penalties": {"top_p": 0.5, "presence_penalty": 0.4, "frequency_penalty": 0.4},
    "top-k 40": {"top_k": 40},
    "min-p 0.05": {"min_p": 0.05},
    "typical 0.9": {"typical": 0.9},
}


def logits_of(kind: str) -> NDArray[np.float32]:
    """Float32 logits [65536]."""
    rng = np.random.default_rng(1)
    normal = rng.standard_normal(VOCABULARY).astype(np.float32)
    if kind == "peaked":
        logits = 2.5 * normal - 10
        logits[rng.integers(0, VALID, 5)] += np.array([18, 17, 16.5, 15, 14], np.float32)
        return logits
    return normal * np.float32({"broad": 2.0, "flat": 0.01}[kind])


def microseconds(logits: NDArray[np.float32], settings: dict[str, float]) -> NDArray[np.float64]:
    """Of every call. The likeliest token changes from call to call."""
    sampler = Sampler(SamplingParams.of({"seed": 1}, settings), VALID, WorldTokenizer())
    favourites = np.random.default_rng(2).permutation(np.arange(300, 60000))[:CALLS]
    times = []
    for favourite in favourites:
        row = logits.copy()
        row[favourite] = row.max() + 4
        begin = time.perf_counter()
        sampler(row)
        times.append(time.perf_counter() - begin)
    return np.array(times) * 1e6


def main() -> None:
    cases = {name: np.load(name).astype(np.float32).ravel() for name in sys.argv[1:]}
    for name, logits in (cases or {kind: logits_of(kind) for kind in ("peaked", "broad", "flat")}).items():
        for setting, options in SETTINGS.items():
            times = microseconds(logits, options)
            print(f"{name:10s} {setting:22s} {times.min():7.1f} {np.median(times):7.1f}")


if __name__ == "__main__":
    main()
