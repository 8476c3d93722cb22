"""What the quantizers choose: quality, limits, special rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from least_errors import bounds
from quant_models import relative_error

from quant.codebooks import is_codebook
from quant.codecs import decode, layouts, levels, q4, q5
from quant.errors import InvalidRequest
from quant.formats import ENCODINGS, parts_of
from quant.methods import STATISTICS, codebook, nearest, numpy_encoder

QUANTIZED = [name for name, encoding in ENCODINGS.items() if encoding.quantized and not encoding.form]
LAYOUTS = ["t16x4", "row", "kn"]


def sample(kind: str, shape: tuple[int, int] = (256, 1024)) -> np.ndarray:
    """Weights of the distributions of the table of expected errors, at a usual magnitude."""
    random = np.random.default_rng(7)
    if kind == "uniform":
        values = random.uniform(-1, 1, shape)
    elif kind == "t5":
        values = random.standard_t(5, shape)
    else:
        values = random.standard_normal(shape)
        channels = {"gauss": (0, 1), "x6": (10, 6), "x60": (2, 60)}[kind]
        values[:, random.choice(shape[1], channels[0], replace=False)] *= channels[1]
    return (values * 0.02).astype(np.float32)


# Relative squared errors, times 1000, that this design of codebooks and scales is known to reach.
EXPECTED = {
    "gauss": (0.030, 5.39, 4.05), "t5": (0.047, 6.63, 4.56), "x6": (0.055, 7.21, 4.72), "x60": (0.150, 2.64, 1.50),
    "uniform": (0.015, 3.35, 2.88),
}  # fmt: skip
SEARCHED = ["q6g32", "q6g16", "q5g32", "q5g16"]


@pytest.mark.parametrize("kind", EXPECTED)
def test_errors_are_those_of_the_design(kind: str) -> None:
    values = sample(kind)
    for encoding, expected in zip(("q8g32", "q4g32", "q4g16"), EXPECTED[kind], strict=True):
        parts = numpy_encoder().encode(values, encoding, "row")
        error = 1000 * relative_error(values, decode(parts, encoding, "row", values.shape))
        # the drawn outlier channels decide how large their share of the power is: more room there
        assert error < expected * (1.05 if kind in ("gauss", "uniform", "t5") else 1.15), (encoding, error)


@pytest.mark.parametrize("kind", EXPECTED)
def test_errors_of_six_and_five_bits_are_those_of_the_best_scales_rounded(kind: str) -> None:
    """And less than those of scales that just reach the largest weight, as those of 8 bits do: even steps of 1 / 32 of it (of
    5 bits 1 / 16) would lose a twelfth of a squared step per weight.
    """
    values = sample(kind)[:128]
    power = np.square(values, dtype=np.float64).sum()
    for encoding in SEARCHED:
        parts = numpy_encoder().encode(values, encoding, "row")
        error = relative_error(values, decode(parts, encoding, "row", values.shape))
        group, end = ENCODINGS[encoding].group, 1 << ENCODINGS[encoding].bits - 1
        largest = np.abs(values.reshape(-1, group)).max(axis=1).astype(np.float64)
        assert error < group * np.square(largest / end).sum() / 12 / power
        bound = bounds(values, group, levels(layouts.unpack(parts, encoding, "row", values.shape), encoding))
        # with 5 bits two roots are tried, after scales that are 2 to 8 % apart: the best one may be missed
        assert error < (bound.expected if ENCODINGS[encoding].bits == 6 else bound.most)


@pytest.mark.parametrize("kind", ["gauss", "t5", "x6", "x60"])
def test_tables_of_five_bits_lose_less_than_even_steps_can(kind: str) -> None:
    values = sample(kind)[:64]
    for encoding in ("q5g32", "q5g16"):
        parts = numpy_encoder().encode(values, encoding, "row")
        error = relative_error(values, decode(parts, encoding, "row", values.shape))
        assert error < bounds(values, ENCODINGS[encoding].group, np.arange(-16, 16)).least


def test_six_bits_are_the_nearest() -> None:
    values = np.concatenate([np.random.default_rng(2).uniform(-40, 40, 20000), [-32.5, 31.5, 1e6, -1e6, 0.5]])
    values = values.astype(np.float32)
    best = np.abs(values[:, None].astype(np.float64) - np.arange(-32, 32)).argmin(axis=1)
    best[-1] = 33  # 0.5 is a tie, where the higher one is taken
    assert np.array_equal(nearest.SIX_BITS.indices(values), best)
    assert np.array_equal(nearest.SIX_BITS.entries(values), best - 32)


def test_learned_tables_are_better_than_the_fixed_one_where_weights_are_special() -> None:
    values = sample("uniform")
    errors = {}
    for method in ("codebook", "nearest"):
        parts = numpy_encoder(method).encode(values, "q4g32", "row")
        errors[method] = relative_error(values, decode(parts, "q4g32", "row", values.shape))
    assert errors["codebook"] < 0.95 * errors["nearest"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", QUANTIZED)
@pytest.mark.parametrize("shape", [(1, 8), (17, 24), (17, 96), (50, 224), (3, 480), (31, 33), (1, 1)])
def test_odd_shapes(encoding: str, layout: str, shape: tuple[int, int]) -> None:
    values = sample("gauss", (64, 512))[: shape[0], : shape[1]].copy()
    parts = numpy_encoder().encode(values, encoding, layout)
    assert set(parts) == {spec.part for spec in parts_of(encoding, layout, shape)} | set(STATISTICS)
    stored = decode(parts, encoding, layout, shape)
    assert relative_error(values, stored) < limit(values, parts, encoding, layout)
    lost = (values - stored).astype(np.float64)
    axis = 0 if layout == "kn" else 1
    assert np.allclose(parts["row_error"], (lost**2).sum(axis), rtol=1e-5, atol=0)
    assert np.allclose(parts["row_power"], (values.astype(np.float64) ** 2).sum(axis), rtol=1e-5)
    assert np.array_equal(parts["row_max"], np.abs(values - stored).max(axis))


def limit(values: np.ndarray, parts: dict[str, np.ndarray], encoding: str, layout: str) -> float:
    """What an encoding may lose: of 5 and 6 bits, what the best scales do, each rounded as badly as can be."""
    if encoding not in SEARCHED:
        return {"q8g32": 6e-5, "q4g32": 1.2e-2, "q4g16": 1e-2}[encoding]
    grouped = layouts.unpack(parts, encoding, layout, values.shape)
    by_row = values.T if layout == "kn" else values
    # float32 has 24 bits: nothing is lost of a lone weight but its rounding
    return bounds(by_row, ENCODINGS[encoding].group, levels(grouped, encoding)).most + 2.0**-44


def test_a_vocabulary_of_odd_size() -> None:
    values = np.random.default_rng(1).standard_normal((50277, 8)).astype(np.float32)
    parts = numpy_encoder().encode(values, "q8g32", "t16x4")
    assert parts["d"].shape == (50288,)
    assert relative_error(values, decode(parts, "q8g32", "t16x4", values.shape)) < 6e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", QUANTIZED)
def test_zero_groups_and_rows(encoding: str, layout: str) -> None:
    values = sample("gauss", (48, 96)).copy()
    values[3] = 0
    values[:, 5] = 0
    values[:16, :32] = 0
    values[20, 64:] = 1e-20
    parts = numpy_encoder().encode(values, encoding, layout)
    stored = decode(parts, encoding, layout, values.shape)
    assert not stored[3].any() or layout == "kn"
    assert not stored[:16, :32].any()
    grouped = layouts.unpack(parts, encoding, layout, values.shape)
    by_row = values.T if layout == "kn" else values
    zero_rows = ~by_row.any(axis=1)
    assert not grouped.rows[zero_rows].any()
    group = ENCODINGS[encoding].group
    dead = np.repeat(grouped.scales == 0, group, axis=1)
    assert (grouped.codes[dead] == (128 if encoding == "q8g32" else 0)).all()


def test_a_tensor_of_zeros() -> None:
    for encoding in QUANTIZED:
        parts = numpy_encoder().encode(np.zeros((20, 40), np.float32), encoding, "t16x4")
        assert not parts["d"].any() and not parts["s"].any()
        assert not decode(parts, encoding, "t16x4", (20, 40)).any()


@pytest.mark.parametrize("magnitude", [1e-42, 1e-31, 1e-28, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("encoding", QUANTIZED)
def test_any_magnitude_is_safe(encoding: str, magnitude: float) -> None:
    values = (sample("gauss", (16, 64)).astype(np.float64) * magnitude).astype(np.float32)
    values[0, 0] = 0.02 * magnitude
    parts = numpy_encoder().encode(values, encoding, "row")
    stored = decode(parts, encoding, "row", values.shape)
    assert np.isfinite(parts["d"]).all() and (parts["d"] >= 0).all()
    if magnitude >= 1e-28:
        assert relative_error(values, stored) < 1e-2
    elif magnitude < 1e-31:
        assert not stored.any()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 100),
    st.sampled_from(QUANTIZED),
    st.sampled_from(LAYOUTS),
    st.integers(0, 2**32),
)
def test_codes_and_scales_stay_in_their_ranges(n: int, k: int, encoding: str, layout: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = (random.standard_normal((n, k)) * np.exp(random.normal(0, 3, (n, 1)))).astype(np.float32)
    values[random.random((n, k)) < 0.3] = 0
    parts = numpy_encoder().encode(values, encoding, layout)
    grouped = layouts.unpack(parts, encoding, layout, (n, k))
    assert grouped.scales.min() >= -127
    if encoding == "q8g32":
        assert grouped.codes.min() >= 1 and grouped.scales.min() >= 0
        # no weight is clipped: each is within half a step (plus rounding) of its code
        by_row = values.T if layout == "kn" else values
        root = grouped.scales.astype(np.float64)
        step = np.repeat(grouped.rows[:, None] * root**2, 32, axis=1)[:, : by_row.shape[1]]
        stored = decode(parts, encoding, layout, (n, k))
        lost = np.abs(
            (values.astype(np.float64) - stored).T if layout == "kn" else values.astype(np.float64) - stored
        )
        assert (lost <= step * 0.5001 + 1e-30).all()
    elif "cb" in parts:
        assert is_codebook(parts["cb"].tobytes(), ENCODINGS[encoding].bits)


def test_mirrored_lookup_finds_the_nearest_level() -> None:
    grid = nearest.Mirrored(q5.entries(nearest.TABLE5))
    halves = (np.sort(grid.levels)[1:] + np.sort(grid.levels)[:-1]) / 2
    values = np.random.default_rng(3).uniform(-80, 80, 20000)
    values = np.concatenate([values[~np.isin(values, halves)], [1e6, -1e6, 0]]).astype(np.float32)
    best = np.abs(values[:, None].astype(np.float64) - grid.levels).argmin(axis=1)
    assert np.array_equal(grid.indices(values), best)
    assert np.array_equal(grid.entries(values), grid.levels[best])
    ties = halves[halves != -0.5].astype(np.float32)  # go to the level nearer to -1/2
    assert (np.abs(grid.entries(ties) + 0.5) < np.abs(ties + 0.5)).all()
    assert grid.entries(np.float32([-0.5]))[0] == grid.levels[0] > 0


def test_lookup_finds_the_nearest_entry() -> None:
    random = np.random.default_rng(3)
    entries = q4.entries(nearest.TABLE)
    values = np.concatenate(
        [random.uniform(-80, 80, 20000), (entries[1:] + entries[:-1]) / 2, [1e6, -1e6, 0]]
    )
    values = values.astype(np.float32)
    lookup = nearest.Lookup(entries)
    best = np.abs(values[:, None].astype(np.float64) - entries).argmin(
        axis=1
    )  # argmin: the lower one on a tie
    assert np.array_equal(lookup.indices(values), best)
    assert np.array_equal(lookup.entries(values), entries[best])


def test_sampled_rows_are_spread_and_bounded() -> None:
    assert codebook.sample_rows(5, 10) == [0, 1, 2, 3, 4]
    rows = codebook.sample_rows(10000, 1024)
    assert len(rows) == codebook.SAMPLE // 1024 and rows[0] == 0 and rows == sorted(set(rows))
    assert len(codebook.sample_rows(8192, 1 << 20)) == codebook.LEAST_ROWS


def test_weights_of_a_few_values_give_a_valid_table() -> None:
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (64, 64)).astype(np.float32)
    parts = numpy_encoder().encode(values, "q4g32", "row")
    assert is_codebook(parts["cb"].tobytes())
    assert relative_error(values, decode(parts, "q4g32", "row", values.shape)) < 1e-3


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="gptq"):
        numpy_encoder("gptq")
