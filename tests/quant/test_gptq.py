"""GPTQ: against the definition of optimal brain surgery, and against plain rounding by the error of the output."""

from __future__ import annotations

import numpy as np
import pytest

from quant.codebooks import is_codebook
from quant.codecs import decode, layouts, levels, q4
from quant.codecs.grouped import factors
from quant.formats import KN, TILE, parts_of
from quant.methods import gptq, numpy_encoder


def case(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights [n, k] and the second moments of correlated inputs of very different sizes, one of them always 0."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((k, k)) * np.exp(random.normal(0, 1, k))
    x = random.standard_normal((4 * k, k)) @ (mixing + 3 * np.eye(k))
    x[:, 5] = 0
    return random.standard_normal((n, k)).astype(np.float32), (x.T @ x / len(x)).astype(np.float32)


def output_error(w: np.ndarray, stored: np.ndarray, hessian: np.ndarray) -> float:
    lost = (w - stored).astype(np.float64)
    return float(np.einsum("nk,kj,nj->", lost, hessian.astype(np.float64), lost))


@pytest.mark.parametrize("layout", [TILE, KN])
@pytest.mark.parametrize("encoding", ["q4g32", "q4g16", "q5g32", "q6g32"])
@pytest.mark.parametrize("shape", [(40, 144), (37, 75)])
def test_the_output_loses_less(encoding: str, layout: str, shape: tuple[int, int]) -> None:
    w, hessian = case(*shape)
    parts = gptq.encode(w, hessian, encoding, layout)
    assert [(part, parts[part].dtype.itemsize, parts[part].shape) for part in parts] == [
        (spec.part, 4 if spec.dtype == "F32" else 1, spec.shape) for spec in parts_of(encoding, layout, shape)
    ]
    assert ("cb" in parts) == (encoding != "q6g32") and (
        "cb" not in parts or is_codebook(parts["cb"].tobytes(), int(encoding[1]))
    )
    importance = (np.diag(hessian) / np.diag(hessian).mean() + 0.01).astype(np.float32)
    plain = numpy_encoder().encode(w, encoding, layout, importance)
    ours, theirs = (output_error(w, decode(p, encoding, layout, shape), hessian) for p in (parts, plain))
    assert ours < 0.75 * theirs
    again = gptq.encode(w, hessian, encoding, layout)
    assert all(array.tobytes() == again[part].tobytes() for part, array in parts.items())


@pytest.mark.parametrize("layout", [TILE, KN])
@pytest.mark.parametrize("encoding", ["q4g16", "q5g16", "q6g16"])
def test_codes_are_those_of_the_definition(
    encoding: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round one input after the other; after each, move the others to the least error of the output that is left.

    By the definition, with the inverse of what is left of the hessian computed anew at every step.
    """
    monkeypatch.setattr(gptq, "PANEL", 32)
    w, hessian = case(24, 75, 3)
    parts = gptq.encode(w, hessian, encoding, layout)
    grouped = layouts.unpack(parts, encoding, layout, w.shape)
    factor = np.repeat(factors(grouped), 16, axis=1)[:, : grouped.length].astype(np.float64)
    codes = grouped.codes[:, : grouped.length]
    if layout == KN:
        factor, codes = factor.T, codes.T
    entries = levels(grouped, encoding).astype(np.float64)
    damped = hessian.astype(np.float64)
    damped += 0.01 * np.diag(damped).mean() * np.eye(len(damped))
    left = w.astype(np.float64)
    different = 0
    for i in range(w.shape[1]):
        inverse = np.linalg.inv(damped[i:, i:])
        best = np.abs(left[:, i, None] - factor[:, i, None] * entries).argmin(axis=1)
        best[factor[:, i] == 0] = 0
        different += int((best != codes[:, i]).sum())
        lost = left[:, i] - factor[:, i] * entries[codes[:, i]]
        left[:, i:] -= lost[:, None] / inverse[0, 0] * inverse[0]
    assert different <= 3  # ties within float32's rounding


def test_without_correlations_it_is_plain_rounding_of_every_input() -> None:
    w, _ = case(16, 64, 1)
    parts = gptq.encode(w, np.eye(64, dtype=np.float32), "q4g32", TILE)
    plain = numpy_encoder().encode(w, "q4g32", TILE)
    grouped = layouts.unpack(parts, "q4g32", TILE, w.shape)
    stored = np.repeat(factors(grouped), 32, axis=1)[:, :, None] * q4.entries(parts["cb"]).astype(np.float64)
    off = np.abs(w[:, :, None] - stored)
    chosen = np.take_along_axis(off, grouped.codes[:, :, None].astype(np.int64), axis=2)[:, :, 0]
    assert (chosen <= off.min(axis=2) + 1e-6 * np.abs(w)).all()  # the nearest level, but for float32's ties
    # The scales have coarser steps (HEADROOM). Half a step off, a level is wrong by that share of itself.
    ours, theirs = (np.square(w - decode(p, "q4g32", TILE, w.shape)).sum() for p in (parts, plain))
    half_a_step = 0.5 / np.abs(grouped.scales.astype(np.float64)).min()
    assert abs(ours - theirs) <= half_a_step**2 * np.square(w).sum()


def test_nothing_to_go_by() -> None:
    w = np.zeros((16, 32), np.float32)
    parts = gptq.encode(w, np.zeros((32, 32), np.float32), "q4g32", TILE)
    assert not decode(parts, "q4g32", TILE, w.shape).any() and not parts["s"].any()
