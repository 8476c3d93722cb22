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

    logits: Float32 = np.asarray(given)
    chosen = float(score(logits[None], [token])[0][0])
    count = min(count, len(logits))
    if not count:
        return chosen, []
    total = float(logits[token]) - chosen  # the logarithm of the sum of all exponentials
    least = np.partition(logits, -count)[-count]
    above = np.flatnonzero(logits >= least)
    best = above[np.argsort(-logits[above], kind="stable")][:count]
    return chosen, [(int(i), float(logits[i]) - total) for i in best]


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
