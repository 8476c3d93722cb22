"""What `quantize` tells of its work: errors, sizes, the report in the file, and what an evaluation returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quant_models import BareEncoder, checkpoint, expected_logical, odd_arch, quantized, relative_error

from quant.container.header import dumps
from quant.container.reader import ModelFile
from quant.errors import Cancelled
from quant.recipe import KINDS, Override, class_of, class_sizes, estimated_bytes, make_plan
from quant.synthetic import SyntheticModel, synthetic_arch


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "m.pth", odd_arch("7"))


def test_measured_errors_are_the_real_ones(tmp_path: Path) -> None:
    arch = odd_arch("7")
    source = checkpoint(tmp_path / "m.pth", arch)
    result = quantized(source, tmp_path / "m.safetensors", "int4")
    wanted = expected_logical(SyntheticModel(arch))
    with ModelFile.open(tmp_path / "m.safetensors") as model:
        for row in result.tensors:
            stored = model.decode(row.name)
            assert row.loss.relative == pytest.approx(relative_error(wanted[row.name], stored), rel=1e-5)
            assert row.loss.largest == np.abs(wanted[row.name] - stored).max()


@pytest.mark.parametrize(("kind", "override"), [("int8", "head=f32"), ("f32", "att.key=int4")])
def test_errors_of_classes_count_the_weights_that_lost_nothing(
    tmp_path: Path, kind: str, override: str
) -> None:
    arch = odd_arch("7")
    plan = make_plan(arch, kind, overrides=[Override.parse(override)])
    result = quantized(checkpoint(tmp_path / "m.pth", arch), tmp_path / "o", kind, plan=plan)
    wanted = expected_logical(SyntheticModel(arch))
    with ModelFile.open(tmp_path / "o") as model:
        for row in result.classes:
            names = [name for name in wanted if row.name in ("total", class_of(name))]
            values, stored = (
                np.concatenate([of(name).reshape(-1) for name in names])
                for of in (wanted.__getitem__, model.decode)
            )
            assert row.loss.relative == pytest.approx(relative_error(values, stored), rel=1e-5)


def test_errors_are_measured_for_encoders_that_do_not_tell(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m.pth", odd_arch("6"))
    told = quantized(source, tmp_path / "a", "int4")
    measured = quantized(source, tmp_path / "b", "int4", encoder=BareEncoder())
    for a, b in zip(told.tensors, measured.tensors, strict=True):
        assert a.loss.relative == pytest.approx(b.loss.relative, rel=1e-5)


def test_what_no_json_can_say_is_never_written() -> None:
    with pytest.raises(ValueError):
        dumps({"error": float("inf")})


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_known_before(tmp_path: Path, kind: str) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    arch = synthetic_arch("7", 3, 256, 2000)
    plan = make_plan(arch, kind)
    result = quantized(checkpoint(tmp_path / "m.pth", arch), tmp_path / "o", kind)
    assert estimated_bytes(plan) == pytest.approx(result.nbytes, rel=0.02)
    sizes = class_sizes(plan)
    assert {row.name: (row.weights, row.nbytes) for row in result.classes[:-1]} == sizes


def test_the_report_is_json_of_plain_numbers(small: Path, tmp_path: Path) -> None:
    quantized(small, tmp_path / "o", "int4")
    with ModelFile.open(tmp_path / "o") as model:
        assert (
            json.dumps(model.report, allow_nan=False, sort_keys=True, separators=(",", ":"))
            == model.metadata["report"]
        )
        assert set(model.report["classes"]) == {"emb", "att", "ffn", "low-rank", "head", "vectors", "total"}
        assert 1e-3 < model.report["classes"]["att"]["error"] < 5e-3
        assert model.report["classes"]["vectors"]["error"] == 0


def test_what_an_evaluation_returns_is_kept(small: Path, tmp_path: Path) -> None:
    seen = []

    def evaluate(path: Path) -> dict[str, Any]:
        with ModelFile.open(path) as model:
            seen.append({name: model.decode(name).copy() for name in model.plan})
        return {"kl": {"mean": 0.5}, "text": "x" * 8000}

    result = quantized(small, tmp_path / "o", "int4", evaluate=evaluate)
    assert result.quality == {"kl": {"mean": 0.5}, "text": "x" * 8000}
    with ModelFile.open(tmp_path / "o") as model:
        assert model.report["quality"] == result.quality
        assert all(np.array_equal(model.decode(name), seen[0][name]) for name in model.plan)


def test_an_evaluation_that_fails_leaves_nothing(small: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())

    def evaluate(path: Path) -> dict[str, Any]:
        assert path.parent == tmp_path
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        quantized(small, tmp_path / "o", "int4", evaluate=evaluate)
    assert sorted(tmp_path.iterdir()) == before
