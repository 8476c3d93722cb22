"""Means, their errors and quantiles of streams, against numpy and against what is known of made-up streams."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rwkvcli.services.estimates import Mean, Quantiles


def mean_of(values: np.ndarray, step: int | None = None) -> Mean:
    mean = Mean()
    for begin in range(0, len(values), step or len(values)):
        mean.add(values[begin : begin + (step or len(values))])
    return mean


@pytest.mark.parametrize("count", [2, 3, 100, 127, 128, 129, 1000, 8191, 100_000])
def test_the_mean_is_that_of_all_values_however_they_come(count: int) -> None:
    values = np.random.default_rng(count).gamma(1.0, 2.0, count)
    whole = mean_of(values)
    assert whole.count == count
    assert whole.value == pytest.approx(math.fsum(values) / count, rel=1e-14)
    for step in (1, 7, 64, 500):
        if count / step < 5000:
            other = mean_of(values, step)
            assert (other.value, other.stderr) == (whole.value, whole.stderr)


def test_fewer_than_two_values_have_no_error() -> None:
    assert mean_of(np.array([3.0])).stderr is None
    assert mean_of(np.array([3.0])).value == 3.0
    assert Mean().stderr is None


def test_of_few_values_the_error_is_the_usual_one() -> None:
    values = np.random.default_rng(0).normal(size=100)
    assert mean_of(values).stderr == pytest.approx(values.std(ddof=1) / 10)


def test_of_a_steady_stream_the_error_is_zero() -> None:
    assert mean_of(np.full(1000, 2.5)).stderr == 0


def test_the_error_of_independent_values() -> None:
    values = np.random.default_rng(1).normal(0, 3, 200_000)
    assert mean_of(values).stderr == pytest.approx(3 / math.sqrt(200_000), rel=0.25)  # itself an estimate


def test_the_error_of_values_that_are_alike() -> None:
    """An AR(1) stream: its mean varies (1 + r) / (1 - r) times as much as that of independent values."""
    generator = np.random.default_rng(2)
    r, count = 0.95, 100_000
    errors, means = [], []
    for _ in range(12):
        values = generator.normal(size=count)
        for i in range(1, count):
            values[i] += r * values[i - 1]
        mean = mean_of(values)
        means.append(mean.value)
        errors.append(mean.stderr)
    expected = 1 / (1 - r) / math.sqrt(count)
    assert np.mean(errors) == pytest.approx(expected, rel=0.1)
    usual = np.sqrt(1 / (1 - r * r) / count)
    assert usual < expected / 5


def test_memory_does_not_grow() -> None:
    mean = Mean()
    for _ in range(50):
        mean.add(np.ones(100_000))
    assert len(mean._blocks) < 128
    assert len(mean._pending) < 64


def test_quantiles() -> None:
    values = np.exp(np.random.default_rng(3).normal(-5, 3, 50_001))
    quantiles = Quantiles()
    for part in np.array_split(values, 7):
        quantiles.add(part)
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        exact = np.quantile(values, share, method="inverted_cdf")
        assert quantiles.at(share) == pytest.approx(exact, rel=5e-4)


def test_quantiles_of_nothing_much() -> None:
    quantiles = Quantiles()
    quantiles.add(np.array([0.0, 1e-30, 1e-19]))
    assert quantiles.at(0.5) == 0
    quantiles.add(np.array([1e300, np.inf]))
    assert quantiles.at(1.0) == pytest.approx(2.0**40, rel=1e-3)
