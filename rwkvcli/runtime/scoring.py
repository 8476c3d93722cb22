"""What logits say of the tokens that came, in float64 and with the same bits on every processor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from rwkvcli import _kernels
from rwkvcli.errors import FormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rwkvcli.runtime.backend import Float32, Logits

    Float64: TypeAlias = NDArray[np.float64]
    Int32: TypeAlias = NDArray[np.int32]


_LOGITS = 1 << 22
"""Logits that are held at a time (16 MB)."""
_MOST_ROWS = 512
_BLOCK = 64
"""Logits of which the largest is looked for first."""


def rows_together(vocab: int) -> int:
    """Of how many tokens the logits are held at a time."""
    return max(1, min(_MOST_ROWS, _LOGITS // vocab))


def score(logits: Float32, targets: Sequence[int] | Int32) -> tuple[Float64, Int32]:
    """Of float32 logits [T, V]: the log-probability (nats) of each target [T], and each row's likeliest token,
    the first of several. All V rows of the vocabulary count. Raises FormatError for logits that are no numbers.
    """
    with _refusals():
        return _kernels.score(logits, targets)


def of_each(given: Logits, ids: Sequence[int]) -> Float64:
    """Of `given` float32 logits [V]: the log-probability (nats) of each of the tokens `ids` [N >= 1], with the bits of
    `score`. Raises FormatError for logits that are no numbers.
    """
    import numpy as np

    logits: Float32 = np.asarray(given)
    chosen = logits[np.asarray(ids)]
    _, tops = score(logits[None], [ids[int(chosen.argmin())]])  # refuses the worst of them
    total = score(logits[None], tops)[0]  # minus the logarithm of the sum of weights
    found: Float64 = (chosen.astype(np.float64) - float(logits[tops[0]])) + total
    return found


def likeliest(given: Logits, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Of `given` float32 logits [V]: the log-probability (nats) of `token`, and the `count` likeliest tokens with theirs, the
    likeliest first, of equal ones the first. Raises FormatError for logits that are no numbers.
    """
    import numpy as np

    chosen, best, values = likeliest_of_each(np.asarray(given)[None], [token], count)
    return float(chosen[0]), list(zip(best[0].tolist(), values[0].tolist(), strict=True))


def likeliest_of_each(logits: Float32, targets: Sequence[int], count: int) -> tuple[Float64, Int32, Float64]:
    """The same of float32 logits [T, V] and T targets: log-probabilities [T], the likeliest tokens [T, count] and theirs
    [T, count]; of a vocabulary that has fewer tokens, of all of them."""
    import numpy as np

    wanted: Int32 = np.asarray(targets, np.int32)
    chosen, tops = score(logits, wanted)
    count = min(count, logits.shape[1])
    best = tops[:, None][:, :count]
    if count > 1:
        best = np.array([_best(row, count) for row in logits], np.int32)
    rows = np.arange(len(logits))
    # the logarithms of the sums of all exponentials
    totals = logits[rows, wanted].astype(np.float64) - chosen
    values = logits[rows[:, None], best].astype(np.float64) - totals[:, None]
    return chosen, best, np.where(best == wanted[:, None], chosen[:, None], values)


def _best(logits: Float32, count: int) -> NDArray[np.intp]:
    """The places of the `count` >= 1 largest of `logits`, the largest first, of equal ones the first."""
    import numpy as np

    peaks = logits[: len(logits) // _BLOCK * _BLOCK].reshape(-1, _BLOCK).max(axis=1)
    if count <= len(peaks):  # at least so many are no smaller than
        above = np.flatnonzero(logits >= np.partition(peaks, -count)[-count])
    else:
        above = np.arange(len(logits))
    return above[np.argsort(-logits[above], kind="stable")][:count]


def divergence(base: Float32, logits: Float32) -> Float64:
    """Kullback-Leibler divergence (nats, >= 0) of each row of `logits` [T, V] from the same row of `base`: what
    it costs on average to expect `logits` where `base` holds.

    Raises FormatError for logits that are no numbers.
    """
    with _refusals():
        return _kernels.divergence(base, logits)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except _kernels.FormatError as e:
        raise FormatError(
            f"{e}: the model cannot be measured",
            hint="make it again from its checkpoint, or download it again",
        ) from None
