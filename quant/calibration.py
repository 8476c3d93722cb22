"""What a text says about a model's matrices: how large their inputs are, and how often they are not zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.arch import Arch
from quant.arrays import F32, F64
from quant.formats import KN, TILE, stored_bytes

DAMPING = 0.01
"""Added to every input's share, of the size 1, so that what the text leaves untouched is not given up."""
KN_BELOW = 0.25
"""Density under which `ffn.value` is laid out by input channel: one text decodes faster so up to 0.3 (AVX2) or 0.5 (AVX-512),
prompts and batches up to 0.15 (AVX-512) or 0.3 (AVX2), see docs/benchmarks.md."""
KN_PADDING = 1.125
"""How much larger it may be so, for its records are padded: what narrow models would pay."""


@dataclass(frozen=True)
class InputSums:
    """Of one matrix's inputs, over all tokens."""

    squares: F64
    """[K] sum of squares."""
    nonzero: npt.NDArray[np.uint64]
    """[K] how often it was not 0."""


@dataclass(frozen=True)
class Calibration:
    """What was gathered from a text."""

    text: str
    """Its name."""
    sha256: str
    """Of the whole text's bytes."""
    tokens: int
    """How many of its tokens the model read."""
    inputs: Mapping[str, InputSums]
    """By logical name."""
    statistic: str = "root mean square of each input"
    """What of the inputs codes are chosen by."""

    def record(self) -> dict[str, Any]:
        """What the file's metadata say about it."""
        return {"text": self.text, "sha256": self.sha256, "tokens": self.tokens, "statistic": self.statistic}

    def importance(self, name: str) -> F32 | None:
        """float32 [K], about 1: how much errors at each input of the matrix `name` count. None: not known.

        The root of the mean square: the mean square itself lessens the mean error of the outputs a little more, but gives up
        inputs that are small as a rule and decisive now and then (docs/quality.md).
        """
        sums = self.inputs.get(name)
        if sums is None:
            return None
        mean = float(sums.squares.mean())
        if not 0 < mean < np.inf:
            return None
        result: F32 = (np.sqrt(sums.squares / mean) + DAMPING).astype(np.float32)
        return result

    def density(self) -> float | None:
        """Share of the inputs of `ffn.value` that are not 0, over all layers; None: not known."""
        found = [sums for name, sums in self.inputs.items() if name.endswith(".ffn.value.weight")]
        if not found or not self.tokens:
            return None
        return float(np.mean([sums.nonzero.mean() / self.tokens for sums in found]))


def layout_by_density(density: float, arch: Arch) -> tuple[str, str]:
    """The layout of `ffn.value`, and why: "kn" where skipping zeros makes it faster and padding costs little."""
    shape = arch.n_embd, arch.n_ffn
    padding = stored_bytes("q4g32", KN, shape) / stored_bytes("q4g32", TILE, shape)
    told = f"{100 * density:.3g} % of its inputs are not zero in the text"
    if padding > KN_PADDING:
        return "tile", f"{told}, but skipping the others would make it {100 * (padding - 1):.0f} % larger"
    return "kn" if density < KN_BELOW else "tile", told
