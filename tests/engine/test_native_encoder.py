"""The C++ encoder against the numpy one: the same bytes, on every CPU level and for any number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from least_errors import bounds
from small_models import ModelMaker

from quant.codecs import decode, layouts, levels
from quant.container.reader import ModelFile
from quant.formats import ENCODINGS as ENCODED
from quant.methods import STATISTICS, numpy_encoder
from quant.pipeline import quantize
from quant.sources import open_model
from rwkvcli import _kernels
from rwkvcli.services.encoding import NativeEncoder

ENCODINGS = ["q8g32", "q6g32", "q6g16", "q5g32", "q5g16", "q4g32", "q4g16"]
LAYOUTS = ["t16x4", "row", "kn"]
SHAPES = [(1, 1), (1, 8), (17, 24), (50, 96), (33, 224), (130, 480), (64, 40), (300, 1000)]


def weights(shape: tuple[int, int]) -> np.ndarray:
    """Rows of very different magnitudes, zeros here and there, a zero row, column and corner."""
    random = np.random.default_rng(shape[0])
    values = random.standard_normal(shape) * np.exp(random.normal(0, 2, (shape[0], 1)))
    values[random.random(shape) < 0.1] = 0
    if shape[0] > 16 and shape[1] > 8:
        values[3] = 0
        values[:, 5] = 0
        values[:16, :32] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_same_bytes_as_numpy(encoding: str, layout: str, shape: tuple[int, int]) -> None:
    w = weights(shape)
    for method in ("codebook", "nearest") if shape == (50, 96) else ("codebook",):
        wanted = numpy_encoder(method).encode(w, encoding, layout)
        for level in _kernels.cpu_levels():
            for threads in (1, 3):
                made = _kernels.encode(w, encoding, layout, threads, method, level)
                assert made.keys() == wanted.keys()
                for part, array in wanted.items():
                    assert made[part].dtype == array.dtype and made[part].shape == array.shape, part
                    assert made[part].tobytes() == array.tobytes(), (part, level, threads)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_same_bytes_as_numpy_with_importance(encoding: str, layout: str) -> None:
    w = weights((50, 90))
    importance = np.random.default_rng(4).uniform(0.01, 30, 90).astype(np.float32)
    wanted = numpy_encoder().encode(w, encoding, layout, importance)
    for level in _kernels.cpu_levels():
        made = _kernels.encode(w, encoding, layout, 2, "codebook", level, importance)
        assert all(made[part].tobytes() == array.tobytes() for part, array in wanted.items()), level
    plain = numpy_encoder().encode(w, encoding, layout)
    alike = numpy_encoder().encode(w, encoding, layout, np.ones(90, np.float32))
    assert all(plain[part].tobytes() == array.tobytes() for part, array in alike.items())
    alone = encoding.startswith("q6") and layout == "kn"  # an input by itself, and no table to learn
    assert (plain["q"].tobytes() == wanted["q"].tobytes()) == (encoding == "q8g32" or alone)


def test_what_counts_more_loses_less() -> None:
    w = np.random.default_rng(5).standard_normal((64, 256)).astype(np.float32)
    importance = np.where(np.arange(256) % 4, 0.1, 3.7).astype(np.float32)
    errors = {}
    for name, weight in (("plain", None), ("weighted", importance)):
        parts = NativeEncoder(1).encode(w, "q4g32", "t16x4", weight)
        lost = np.square(w - decode(parts, "q4g32", "t16x4", w.shape), dtype=np.float64)
        errors[name] = (lost @ importance).sum()
    assert errors["weighted"] < 0.7 * errors["plain"]


def test_same_bytes_for_a_sample_of_many_rows() -> None:
    w = np.random.default_rng(1).standard_t(4, (2000, 96)).astype(np.float32)
    wanted, made = (e.encode(w, "q4g16", "t16x4") for e in (numpy_encoder(), NativeEncoder(2)))
    assert all(made[part].tobytes() == array.tobytes() for part, array in wanted.items())


@pytest.mark.parametrize("magnitude", [1e-42, 1e-28, 1e15, 1e19, 3e37])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_same_bytes_for_extreme_weights(encoding: str, magnitude: float) -> None:
    w = (np.random.default_rng(2).standard_normal((20, 70)) * magnitude).astype(np.float32)
    wanted, made = (e.encode(w, encoding, "row") for e in (numpy_encoder(), NativeEncoder(1)))
    assert all(made[part].tobytes() == array.tobytes() for part, array in wanted.items())
    assert all(np.isfinite(made[part]).all() for part in STATISTICS)


@pytest.mark.parametrize("version", ["6", "7"])
@pytest.mark.parametrize("kind", ["int8", "int6", "int5", "int4"])
def test_same_files_as_numpy(make_model: ModelMaker, tmp_path: Path, version: str, kind: str) -> None:
    plain = make_model(version, "f32", n_embd=48, head_size=8, ffn_value="kn")
    for name, encoder in (("numpy", numpy_encoder()), ("native", NativeEncoder(2))):
        with open_model(plain) as source:
            quantize(source, tmp_path / name, kind, encoder=encoder, ffn_value="kn")
    assert (tmp_path / "numpy").read_bytes() == (tmp_path / "native").read_bytes()
    ModelFile.open(tmp_path / "native").close()


def test_quality_on_a_matrix_of_real_size() -> None:
    w = np.random.default_rng(3).standard_normal((1024, 2048), dtype=np.float32)
    for encoding, limit in (
        ("q8g32", 0.031e-3),
        ("q4g32", 5.5e-3),
        ("q4g16", 4.15e-3),
    ):
        parts = NativeEncoder(2).encode(w, encoding, "t16x4")
        error = np.square(w - decode(parts, encoding, "t16x4", (1024, 2048)), dtype=np.float64).mean()
        assert error < limit
    rows = w[:64]  # 5 and 6 bits: what the best scales lose, and their rounding
    for encoding in ("q6g32", "q6g16", "q5g32", "q5g16"):
        parts = NativeEncoder(2).encode(w, encoding, "t16x4")
        lost = np.square(w - decode(parts, encoding, "t16x4", w.shape), dtype=np.float64)[:64]
        table = levels(layouts.unpack(parts, encoding, "t16x4", w.shape), encoding)
        bound = bounds(rows, ENCODED[encoding].group, table)
        allowed = bound.expected if encoding.startswith("q6") else bound.most  # 5 bits try fewer scales
        assert lost.sum() < allowed * np.square(rows, dtype=np.float64).sum()


@pytest.mark.parametrize(
    ("w", "arguments", "error"),
    [
        (np.zeros((2, 2), np.float64), ("q8g32", "row", 1), TypeError),
        (np.zeros((2, 2), np.float32).T[::-1], ("q8g32", "row", 1), TypeError),
        (np.zeros(4, np.float32), ("q8g32", "row", 1), ValueError),
        (np.zeros((0, 4), np.float32), ("q8g32", "row", 1), ValueError),
        (np.zeros((2, 2), np.float32), ("q4g64", "row", 1), ValueError),
        (np.zeros((2, 2), np.float32), ("q8g32", "tile", 1), ValueError),
        (np.zeros((2, 2), np.float32), ("q8g32", "row", 0), ValueError),
        (np.zeros((2, 2), np.float32), ("q8g32", "row", 1, "gptq"), ValueError),
        (np.zeros((2, 2), np.float32), ("q8g32", "row", 1, "codebook", "sse9"), ValueError),
        *(
            (
                np.zeros((2, 2), np.float32),
                ("q4g32", "row", 1, "codebook", "", np.array(h, np.float32)),
                ValueError,
            )
            for h in ([1, 0], [1, np.nan], [1, np.inf], [1, -1], [1], [[1, 1]])
        ),
        (np.zeros((2, 2), np.float32), ("q4g32", "row", 1, "codebook", "", np.ones(2)), TypeError),
    ],
)
def test_wrong_arguments_are_refused(w: np.ndarray, arguments: tuple, error: type[Exception]) -> None:
    with pytest.raises(error):
        _kernels.encode(w, *arguments)
