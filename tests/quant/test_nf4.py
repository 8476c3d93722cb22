"""NF4 in model files, against the real bitsandbytes on the CPU: its codes, its scales, its own dequantization."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from quant_models import checkpoint, quantized, relative_error

from quant.checkpoints import open_checkpoint
from quant.codecs import decode, layouts, nf4
from quant.codecs.nf4 import BLOCK, CODEBOOK, SPAN, VALUES, ZERO, Blocks
from quant.container.reader import ModelFile
from quant.errors import Cancelled, FormatError, InvalidRequest
from quant.formats import parts_of
from quant.methods import nf4 as method
from quant.methods import numpy_encoder
from quant.pipeline import quantize
from quant.recipe import Override, is_allowed, make_plan
from quant.synthetic import synthetic_arch

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes.functional")

SHAPES = [(1, 64), (3, 128), (16, 192), (50, 1024), (257, 64)]
TABLE_ERROR = np.abs((CODEBOOK.astype(np.float64) - 64) / float(SPAN) - VALUES).max()
"""Of the largest weight in a block."""


def matrix(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random rows of very different sizes."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * np.exp(random.normal(0, 1, (shape[0], 1)))).astype(np.float32)


def theirs(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bitsandbytes' codes [N, K], scales, and float32 values of float32 w [N, K] (w itself where rows are no whole blocks)."""
    stored, state = bnb.quantize_4bit(torch.from_numpy(w.copy()), blocksize=64, quant_type="nf4")
    packed = stored.numpy().reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[: w.size].reshape(w.shape)
    values = bnb.dequantize_4bit(stored, state).numpy() if w.shape[1] % BLOCK == 0 else w
    return codes, state.absmax.numpy(), values


def test_the_table_is_the_best_one_on_the_grid() -> None:
    """Every scaling of bitsandbytes' table that fits -63..63, with the span that suits it best, on normal weights."""
    values = bnb.get_4bit_type("nf4", device="cpu").numpy()
    assert np.array_equal(VALUES, values) and values[ZERO] == 0
    codes, absmax, _ = theirs(np.random.default_rng(1).standard_normal((4096, 64)).astype(np.float32))
    weight = np.bincount(codes.ravel(), np.repeat(absmax.astype(np.float64) ** 2, 64), 16)
    wide = values.astype(np.float64)
    costs = {}
    for scale in np.arange(20, 63.5, 0.01):
        entries = np.floor(scale * wide + 0.5)
        if entries[-1] <= 63 and (np.diff(entries) > 0).all():
            span = (weight * entries**2).sum() / (weight * entries * wide).sum()
            costs[tuple(entries)] = ((weight * (entries / span - wide) ** 2).sum(), span)
    best = min(costs, key=lambda entries: costs[entries][0])
    assert best == tuple(CODEBOOK.astype(float) - 64)
    ours = (weight * (np.array(best) / float(SPAN) - wide) ** 2).sum()
    assert ours <= 1.02 * costs[best][0]  # a span of four digits will do


@pytest.mark.parametrize("shape", [*SHAPES, (7, 40), (65, 33), (1, 5)])
def test_codes_and_scales_are_those_of_bitsandbytes(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = matrix(shape)
    codes, absmax, values = theirs(w)
    for together in (1 << 20, 1):
        monkeypatch.setattr(method, "_TOGETHER", together)
        found = method.quantized(w)
        assert np.array_equal(found.codes, codes) and np.array_equal(found.absmax, absmax)
    stored, _ = bnb.quantize_4bit(torch.from_numpy(w), blocksize=64, quant_type="nf4")
    assert np.array_equal(nf4.packed(codes), stored.numpy())
    assert np.array_equal(nf4.unpacked(stored.numpy(), shape), codes)
    if shape[1] % BLOCK == 0:
        assert np.array_equal(nf4.values(found), values)


@pytest.mark.parametrize("layout", ["t16x4", "row"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_file_keeps_the_codes_and_rounds_scales_and_table(
    shape: tuple[int, int], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = matrix(shape)
    parts, (loss, recoding) = method.encode(w, layout)
    assert recoding is not None
    assert {part: a.shape for part, a in parts.items()} == {
        s.part: s.shape for s in parts_of("nf4", layout, shape)
    }
    grouped = layouts.unpack(parts, "nf4", layout, shape)
    codes, absmax, values = theirs(w)
    assert np.array_equal(grouped.codes, codes) and np.array_equal(parts["cb"], CODEBOOK)
    assert np.array_equal(grouped.scales[:, ::2], grouped.scales[:, 1::2]) and grouped.scales.min() > 0
    stored = decode(parts, "nf4", layout, shape)
    assert np.array_equal(stored, decode(parts, "q4g32", layout, shape))
    # a scale r² d is at most half a step from the wanted one, and a step at root r is (2r + 1) d
    wanted = absmax.astype(np.float64).reshape(shape[0], -1) / float(SPAN)
    unit = wanted.max(axis=1, keepdims=True) / 127**2
    scale_error = (np.sqrt(wanted / unit) + 0.5) * unit
    bound = 63 * scale_error + TABLE_ERROR * wanted * float(SPAN)
    lost = np.abs(stored.astype(np.float64) - values).reshape(shape[0], -1, BLOCK)
    rounding = (
        5 * 2**-24 * (wanted * float(SPAN) + bound)
    )  # of the row scale, two products here, one there, and this wanted
    assert (lost <= (bound + rounding)[:, :, None]).all()
    assert recoding.relative == pytest.approx(relative_error(values, stored), rel=w.size * 2**-53)
    assert recoding.largest == np.abs(values - stored).max()
    assert loss.relative == pytest.approx(relative_error(w, stored), rel=w.size * 2**-53)
    monkeypatch.setattr(method, "_TOGETHER", 100)  # few rows at a time: the same
    again, losses = method.encode(w, layout)
    assert all(np.array_equal(parts[part], again[part]) for part in parts)
    assert losses.loss.relative == pytest.approx(loss.relative, rel=w.size * 2**-53)


def test_the_largest_block_of_a_row_has_the_largest_root() -> None:
    grouped = nf4.to_grouped(method.quantized(matrix((9, 256))))
    assert (grouped.scales.max(axis=1) == 127).all()


def test_what_is_stored_gives_the_blocks_back() -> None:
    w = matrix((40, 512))
    w[3] = 0
    w[4, 64:128] = 0
    w[5, :64] *= 1e-9  # no scale of the row is nearer to it than zero
    w[6, :64] *= 1e-4
    found = method.quantized(w)
    grouped = nf4.to_grouped(found)
    dead = np.repeat(grouped.scales == 0, 32, axis=1)
    assert not grouped.codes[dead].any() and dead.sum() == 512 + 64 + 64 and not grouped.rows[3]
    again = nf4.from_grouped(grouped)
    assert again is not None and np.array_equal(again.codes[~dead], found.codes[~dead])
    assert (again.codes[dead] == ZERO).all()
    twice = nf4.to_grouped(again)
    assert np.array_equal(twice.codes, grouped.codes) and np.array_equal(twice.scales, grouped.scales)
    assert np.allclose(twice.rows, grouped.rows, rtol=4.001 * 2**-24, atol=0)  # four roundings
    uneven = grouped.scales.copy()
    uneven[7, 2] -= 1
    odd = layouts.Grouped(grouped.codes, uneven, grouped.rows, grouped.length, CODEBOOK)
    assert nf4.from_grouped(odd) is None


@pytest.mark.parametrize("magnitude", [1e-42, 1e-31, 1e-28, 1e-12, 1.0, 1e12, 1e30, 3e37])
def test_any_magnitude_is_safe(magnitude: float) -> None:
    w = (np.random.default_rng(2).standard_normal((16, 128)) * magnitude).astype(np.float32)
    parts, _ = method.encode(w, "t16x4")
    stored = decode(parts, "nf4", "t16x4", w.shape)
    assert np.isfinite(parts["d"]).all() and (parts["d"] >= 0).all()
    if magnitude >= 1e-28:
        assert relative_error(w, stored) < 1.5e-2  # NF4 itself: 0.9e-2
    elif magnitude < 1e-31:
        assert not stored.any()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v7 checkpoint: rows of 128 and of 192, and for ffn.value of a second one 200."""
    folder = tmp_path_factory.mktemp("nf4")
    checkpoint(folder / "odd.pth", synthetic_arch("7", 2, 128, 256, 64, n_ffn=200))
    return checkpoint(folder / "m.pth", synthetic_arch("7", 2, 128, 256, 64, n_ffn=192), "bf16")


def test_a_model_in_nf4(source: Path, tmp_path: Path) -> None:
    result = quantized(source, tmp_path / "a", "nf4")
    quantized(source, tmp_path / "b", "nf4")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    error = power = ours = nf4_alone = weights = 0.0
    with ModelFile.open(tmp_path / "a") as model, open_checkpoint(source) as opened:
        assert (model.recipe, model.method) == ("nf4", "nf4")
        kinds = {name: item.encoding for name, item in model.plan.items()}
        linear = {
            name for name in kinds if name.endswith(".weight") and name.split(".")[2:3] in (["att"], ["ffn"])
        }
        linear = {name for name in linear if ".ln_x." not in name}
        assert {name for name, kind in kinds.items() if kind == "nf4"} == linear and len(linear) == 2 * 6
        assert kinds["emb.weight"] == kinds["head.weight"] == kinds["blocks.1.att.w1"] == "q8g32"
        assert {item.layout for name, item in model.plan.items() if name in linear} == {"t16x4"}
        for name in linear:
            codes, _, values = theirs(opened.read(name))
            plan = model.plan[name]
            grouped = layouts.unpack(model.parts(name), plan.encoding, plan.layout, plan.shape)
            assert np.array_equal(grouped.codes, codes), name
            lost = values.astype(np.float64) - model.decode(name)
            error += (lost**2).sum()
            power += (values.astype(np.float64) ** 2).sum()
            if ".att." in name:
                w = opened.read(name).astype(np.float64)
                ours += (lost**2).sum()
                nf4_alone += ((w - values) ** 2).sum()
                weights += (w**2).sum()
        told = model.report["nf4"]
        assert told["error"] == pytest.approx(error / power, rel=5e-4)  # four digits are told
        assert told["matrices"] == len(linear) and set(told["classes"]) == {"att", "ffn"}
        assert model.report["classes"]["att"]["encodings"] == ["nf4"]
    # what bitsandbytes lost, and what the re-encoding added to it, by the triangle inequality
    bound = (np.sqrt(nf4_alone) + np.sqrt(ours)) / np.sqrt(weights)
    assert result.classes[1].loss.relative <= bound**2


def test_rows_that_are_no_whole_blocks_get_eight_bits(source: Path, tmp_path: Path) -> None:
    quantized(source.with_name("odd.pth"), tmp_path / "o", "nf4")
    with ModelFile.open(tmp_path / "o") as model:
        assert model.plan["blocks.0.ffn.value.weight"][:2] == ("q8g32", "t16x4")
        assert model.plan["blocks.0.ffn.key.weight"][:2] == ("nf4", "t16x4")
    arch = synthetic_arch("7", 2, 128, 256, 64, n_ffn=200)
    with pytest.raises(
        InvalidRequest, match=r"blocks\.0\.ffn\.value\.weight has rows of 200, and nf4 blocks of 64"
    ):
        make_plan(arch, "int4", overrides=[Override.parse("ffn=nf4")])


def test_plans_of_nf4() -> None:
    arch = synthetic_arch("7", 2, 2048, 256, 64)
    plan = make_plan(arch, "nf4")
    assert plan["blocks.1.ffn.value.weight"][:2] == ("nf4", "t16x4")  # where int4 has kn
    with pytest.raises(InvalidRequest, match=r"nf4 has no ffn\.value by input channel"):
        make_plan(arch, "nf4", ffn_value="kn")
    mixed = make_plan(arch, "nf4", overrides=[Override.parse("att.key=q4g16"), Override.parse("head=nf4")])
    assert mixed["blocks.0.att.key.weight"].encoding == "q4g16" and mixed["head.weight"].encoding == "nf4"
    some = make_plan(arch, "int4", overrides=[Override.parse(r"att\.(key|value)|emb|ffn.value=nf4")])
    assert some["blocks.0.ffn.value.weight"][:2] == ("nf4", "t16x4") and some["emb.weight"][:2] == (
        "nf4",
        "row",
    )
    assert some["blocks.0.ffn.key.weight"].encoding == "q4g32"
    with pytest.raises(
        InvalidRequest, match=r"ffn\.value\.weight would lie by input channel in some blocks only"
    ):
        make_plan(arch, "int4", overrides=[Override.parse(r"blocks\.0\.ffn.value=nf4")])
    assert not is_allowed("blocks.0.ffn.value.weight", "nf4", "kn")
    with pytest.raises(InvalidRequest, match="blocks of 64 inputs"):
        parts_of("nf4", "t16x4", (64, 96))


def test_other_formats_beside_it(source: Path, tmp_path: Path) -> None:
    """Learned codes and NF4 in one file: each tensor says what it is."""
    overrides = [Override.parse("att.key=q4g16"), Override.parse("emb=nf4")]
    with open_checkpoint(source) as opened:
        plan = make_plan(opened.arch, "nf4", overrides=overrides)
        quantize(opened, tmp_path / "o", "nf4", encoder=numpy_encoder(), plan=plan)
        with ModelFile.open(tmp_path / "o") as model:
            assert model.method == "codebook"
            assert not np.array_equal(model.parts("blocks.0.att.key.weight")["cb"], CODEBOOK)
            _, _, values = theirs(opened.read("emb.weight"))
            assert relative_error(values, model.decode("emb.weight")) < 3e-4
    with pytest.raises(InvalidRequest, match="codes of nf4 are not chosen here"):
        numpy_encoder().encode(np.zeros((2, 64), np.float32), "nf4", "t16x4")


def test_an_interrupted_run_goes_on_to_the_same_file(source: Path, tmp_path: Path) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 30

    quantized(source, tmp_path / "whole", "nf4")
    with pytest.raises(Cancelled):
        quantized(source, tmp_path / "o", "nf4", resume=True, should_stop=stop)
    journal = (tmp_path / ".o.journal").read_text()
    assert "blocks.0.att.key.weight" in journal and "blocks.1.ffn.value.weight" not in journal
    quantized(source, tmp_path / "o", "nf4", resume=True)
    assert (tmp_path / "o").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_file_with_another_table_is_refused(source: Path, tmp_path: Path) -> None:
    quantized(source, tmp_path / "o", "nf4")
    data = bytearray((tmp_path / "o").read_bytes())
    with ModelFile.open(tmp_path / "o") as model:
        part = next(p for p in model.plan["blocks.1.att.value.weight"].parts if p.name == "cb")
    data[part.offset + 3] += 1
    (tmp_path / "o").write_bytes(data)
    with pytest.raises(FormatError, match="a codebook that is not NF4's"):
        ModelFile.open(tmp_path / "o")


def test_without_bitsandbytes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InvalidRequest, match=r'pip install "rwkvcli\[torch\]"$') as caught:
        quantized(source, tmp_path / "o", "nf4")
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())
    with pytest.raises(InvalidRequest, match=r'pip install "rwkvcli\[torch\]"$'):
        method.quantized(np.zeros((1, 64), np.float32))
    with ModelFile.open(quantized(source, tmp_path / "o", "int8").path):
        pass


def test_a_bitsandbytes_too_old_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(bnb, "quantize_4bit", missing)
    with pytest.raises(InvalidRequest, match="does not quantize on a processor") as caught:
        method.quantized(np.zeros((1, 64), np.float32))
    assert "pip install -U bitsandbytes" in str(caught.value.hint)


def test_blocks_are_made_of_codes_and_scales_only() -> None:
    codes = np.tile(np.arange(16, dtype=np.uint8), (2, 4))
    values = nf4.values(Blocks(codes, np.array([1, 2], np.float32)))
    assert np.array_equal(values, np.tile(VALUES, (2, 4)) * np.array([[1], [2]], np.float32))


def test_codes_are_not_held_twice_while_they_are_packed() -> None:
    w = np.random.default_rng(0).standard_normal((4096, 4096), dtype=np.float32)
    method.encode(w[:16], "t16x4")  # imports
    tracemalloc.start()
    method.encode(w, "t16x4")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # a byte each, and three times half a byte in packing; twice would be 3.5, and parts of the matrix take some more
    assert most < 3 * w.size
