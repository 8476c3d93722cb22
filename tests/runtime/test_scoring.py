"""Log-probabilities and divergences of logits, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from text_oracles import log_softmax

from rwkvcli.errors import FormatError
from rwkvcli.runtime.scoring import divergence, score


def rows(count: int, vocab: int, scale: float = 4.0, seed: int = 0) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    return (scale * generator.standard_normal((count, vocab))).astype(np.float32)


@pytest.mark.parametrize("vocab", [1, 2, 7, 8, 9, 256, 50277, 65536])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 4.0, 300.0])
def test_equals_float64(vocab: int, scale: float) -> None:
    base, logits = rows(3, vocab, scale), rows(3, vocab, scale, seed=1)
    targets = [0, vocab // 2, vocab - 1]
    log_probs, tops = score(logits, targets)
    expected = log_softmax(logits)
    assert log_probs.dtype == np.float64
    np.testing.assert_allclose(log_probs, expected[[0, 1, 2], targets], rtol=1e-14, atol=1e-13)
    np.testing.assert_array_equal(tops, logits.argmax(axis=1))
    p = log_softmax(base)
    kl = (np.exp(p) * (p - expected)).sum(axis=1)
    np.testing.assert_allclose(divergence(base, logits), kl, rtol=1e-12, atol=1e-12)


def test_every_exponent_on_the_way_to_zero() -> None:
    gaps = -np.linspace(
        0, 800, 20001, dtype=np.float32
    )  # e^gap against 1: what is left of it in ln(1 + e^gap)
    logits = np.stack([np.zeros_like(gaps), gaps], axis=1)
    log_probs, _ = score(logits, np.ones(len(gaps), np.int32))
    np.testing.assert_allclose(log_probs, log_softmax(logits)[:, 1], rtol=1e-15)
    small = score(logits, np.zeros(len(gaps), np.int32))[0]
    np.testing.assert_allclose(-small, np.log1p(np.exp(gaps.astype(np.float64))), rtol=1e-9, atol=5e-16)


def test_likeliest_is_the_first_of_several() -> None:
    assert score(np.array([[1, 3, 3, 2]], np.float32), [0])[1].tolist() == [1]


def test_a_model_does_not_diverge_from_itself() -> None:
    logits = rows(50, 65536)
    assert divergence(logits, logits).tolist() == [0.0] * 50
    near = divergence(logits, np.nextafter(logits, np.float32(np.inf)))
    assert (near >= 0).all()
    assert (near < 1e-12).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    for column in (0, 5, 9):
        logits = rows(4, 10)
        logits[2, column] = bad
        with pytest.raises(FormatError, match="not finite"):
            divergence(rows(4, 10), logits)
        if bad != -np.inf:
            with pytest.raises(FormatError, match="not finite"):
                score(logits, [0, 0, 0, 0])
    with pytest.raises(FormatError, match="not finite"):
        score(np.full((1, 10), bad, np.float32), [3])


def test_shapes_and_targets_are_checked() -> None:
    for targets in ([0], [0, 0, 10], [0, 0, -1]):
        with pytest.raises(ValueError, match="target"):
            score(rows(3, 10), targets)
    with pytest.raises(ValueError, match="one shape"):
        divergence(rows(3, 10), rows(3, 11))
    with pytest.raises(ValueError, match="two-dimensional"):
        score(rows(3, 10)[0], [0])
