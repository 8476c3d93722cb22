"""Choosing the next token.

The order is BlinkDL's: softmax over the valid ids; top-p, then top-k, at temperature 1; then temperature.
(Most other engines apply the temperature first.) Greedy choice, temperature 0, takes the first of the
largest logits.

Random numbers come from the counter-based generator Philox4x64-10: draw number `i` of seed `s` is a pure
function of `s` and `i`, the same on every device, and needs no state but the counter. It equals
`numpy.random.Generator(numpy.random.Philox(counter=i, key=s)).random()`. The token is the first at which
the running sum of the weights, over ascending ids, exceeds the draw.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rwkvcli.errors import FormatError, UsageError

Float32: TypeAlias = NDArray[np.float32]

_SEEDS = 2**64
_DAMAGED = "the model file may be damaged: `rwkv verify` checks it"


@dataclass(frozen=True)
class SamplingParams:
    """How to choose among the next tokens. Raises UsageError for values out of range.

    `temperature` >= 0, 0 being greedy. `top_k` >= 0, 0 being off. `top_p` > 0, off from 1 up. `seed` in
    [0, 2**64); None takes a random one.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature must be 0 or more, not {self.temperature}", hint="0 is greedy")
        if not self.top_p > 0:  # also refuses NaN
            raise UsageError(
                f"top_p must be above 0, not {self.top_p}", hint="1 is off; for greedy use temperature 0"
            )
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 or more, not {self.top_k}", hint="0 is off")
        if self.seed is not None and not 0 <= self.seed < _SEEDS:
            raise UsageError(f"seed must be from 0 to 2**64 - 1, not {self.seed}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class Sampler:
    """Draws tokens: `params` and the number of the next draw.

    `valid` is the number of ids that belong to tokens: logits past it are ignored.
    """

    def __init__(self, params: SamplingParams, valid: int) -> None:
        if valid < 1:
            raise UsageError(f"the vocabulary must have at least one id, not {valid}")
        from rwkvcli import _kernels

        self._native = _kernels.Sampler()
        self._native_error = _kernels.FormatError
        # beyond these float32 cannot tell the difference
        self._temperature = min(max(params.temperature, 1e-30), 1e30)
        self.params = params
        self.valid = valid
        self.seed = secrets.randbits(32) if params.seed is None else params.seed
        """The seed in use, also when none was asked for: with it the run can be repeated."""
        self.draws = 0

    def __call__(self, logits: Float32) -> int:
        """The next token for float32 `logits` [V]. A greedy choice draws no number.

        Raises FormatError when no token can be chosen: a logit is NaN or +inf, or all are -inf.
        """
        logits = logits[: self.valid]
        if self.params.greedy:
            best = int(np.argmax(logits))
            if not math.isfinite(logits[best]):
                raise FormatError(f"the model's largest logit is {logits[best]}", hint=_DAMAGED)
            return best
        draw = uniform(self.seed, self.draws)
        try:
            token = self._native.sample(logits, self._temperature, self.params.top_k, self.params.top_p, draw)
        except self._native_error as e:
            raise FormatError(str(e), hint=_DAMAGED) from None
        self.draws += 1
        return token

    def state(self) -> dict[str, int]:
        """What is needed to go on later with the same draws."""
        return {"seed": self.seed, "draws": self.draws}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on where `state()` was taken. Raises FormatError if it is not such a state."""
        seed, draws = state.get("seed"), state.get("draws")
        if not (
            isinstance(seed, int) and isinstance(draws, int) and 0 <= seed < _SEEDS and 0 <= draws < _SEEDS
        ):
            raise FormatError("not the state of a sampler")
        self.seed, self.draws = seed, draws


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
