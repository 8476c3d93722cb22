"""Quantizing with a text, for a size and by GPTQ, as `rwkv quantize` does."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quant_models import checkpoint, odd_arch

from quant.calibration import Calibration, InputSums, layout_by_density
from quant.container.reader import ModelFile
from quant.recipe import class_of
from quant.sources import open_model, source_of
from quant.synthetic import synthetic_arch
from rwkvcli.errors import UsageError
from rwkvcli.runtime.model import demo_path
from rwkvcli.services.calibrating import WINDOW, gather, read_windows
from rwkvcli.services.planning import Choices, parse_size
from rwkvcli.services.quantization import forecast, quantize

TEXT = b"It was the best of times, it was the worst of times. " * 40


def choices(**more: Any) -> Choices:
    return Choices(text=io.BytesIO(TEXT), text_name="tale.txt", **more)


def made(source: Path, out: Path, kind: str = "int4", **more: Any) -> ModelFile:
    with open_model(source) as opened:
        quantize(opened, out, kind, threads=1, **more)
    return ModelFile.open(out)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("small") / "m.pth", odd_arch("7"))


def test_calibrated_codes_lose_less_where_it_matters(tmp_path: Path) -> None:
    """On the demo, by the error of the outputs of the text, in every matrix."""
    with (
        made(demo_path(), tmp_path / "plain") as plain,
        made(demo_path(), tmp_path / "weighed", choices=choices(tokens=1024, ffn_value="tile")) as weighed,
        ModelFile.open(demo_path()) as demo,
    ):
        windows = read_windows(io.BytesIO(TEXT), "", _Bytes(), 1024)  # type: ignore[arg-type]
        known = gather(demo_path(), windows, threads=1)
        record = json.loads(weighed.calibration)
        assert record == {
            "text": "tale.txt", "sha256": hashlib.sha256(TEXT).hexdigest(), "tokens": 1024,
            "statistic": "root mean square of each input",
        }  # fmt: skip
        assert (plain.calibration, plain.method, weighed.method) == ("none", "codebook", "codebook")
        errors = []
        for name, plan in plain.plan.items():
            if not plan.encoding.startswith("q4"):
                continue
            squares = known.inputs[name].squares
            w = demo.decode(name)
            lost = [
                (np.square(w - m.decode(name), dtype=np.float64) @ squares).sum() for m in (plain, weighed)
            ]
            errors.append(lost[1] / lost[0])
        assert len(errors) == 36 and max(errors) < 1.01 and np.mean(errors) < 0.95


class _Bytes:
    """The demo's vocabulary, as far as `read_windows` needs it."""

    eos_id = 0

    def encode_bytes(self, text: bytes) -> list[int]:
        return list(text)

    def encode_settled(self, text: bytes) -> tuple[list[int], int]:
        return list(text), len(text)


def test_windows_are_spread_over_the_text() -> None:
    text = bytes(i % 251 for i in range(10_000))
    found = read_windows(io.BytesIO(text), "t", _Bytes(), 4 * WINDOW)  # type: ignore[arg-type]
    assert len(found.ids) == 4 and {len(window) for window in found.ids} == {WINDOW}
    begins = [0, 3163, 6326, 9489]
    for window, begin in zip(found.ids, begins, strict=True):
        assert window[0] == 0 and bytes(window[1:].astype(np.uint8)) == text[begin : begin + WINDOW - 1]
    short = read_windows(io.BytesIO(b"abc"), "t", _Bytes())  # type: ignore[arg-type]
    assert [list(window) for window in short.ids] == [[0, 97, 98, 99]] and short.tokens == 4
    with pytest.raises(UsageError, match="t: the text is empty"):
        read_windows(io.BytesIO(b""), "t", _Bytes())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["plain", "gptq"])
def test_the_same_text_gives_the_same_bytes(small: Path, tmp_path: Path, kind: str) -> None:
    method = None
    if kind == "gptq":
        pytest.importorskip("torch")
        method = "gptq"
    for name in ("a", "b"):
        made(small, tmp_path / name, choices=choices(tokens=64, method=method)).close()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    other = Choices(text=io.BytesIO(b"zzz" + TEXT), text_name="tale.txt", tokens=64, method=method)
    made(small, tmp_path / "c", choices=other).close()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(("version", "kind"), [("4", "int4"), ("5.2", "int6"), ("6", "int5")])
def test_gptq_of_every_version(tmp_path: Path, version: str, kind: str) -> None:
    """Every matrix is near its source, the metadata say how it was made."""
    pytest.importorskip("torch")
    source = checkpoint(tmp_path / "m.pth", odd_arch(version))
    seen: list[str] = []
    with open_model(source) as opened:
        quantize(
            opened, tmp_path / "o", kind, threads=1, choices=choices(tokens=64, method="gptq", ffn_value="kn"),
            on_progress=lambda p: seen.append(p.tensor),
        )  # fmt: skip
    with ModelFile.open(tmp_path / "o") as model, open_model(source) as opened:
        assert model.method == "gptq" and json.loads(model.calibration)["tokens"] == 64
        assert model.plan["blocks.1.ffn.value.weight"].layout == "kn"
        assert "calibrating" in seen and seen[-1] == "head.weight"
        weights = source_of(opened)
        for name, plan in model.plan.items():
            w = weights.rows(name, 0, plan.shape[0])
            error = np.square(w - model.decode(name)).sum() / np.square(w).sum()
            assert error < {"q4": 0.06, "q5": 0.06 / 4, "q6": 0.06 / 16, "q8": 1e-4}.get(
                plan.encoding[:2], 1e-4
            )
            if class_of(name) in ("att", "ffn"):
                assert plan.encoding.startswith("q" + kind[-1])


def test_gptq_of_single_tensors(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    found = []
    for method in ("codebook", "gptq"):
        asked = choices(tokens=64, method=method, tensors=(r"blocks\.1\.ffn\.key=int4",))
        with open_model(small) as opened:
            quantize(opened, tmp_path / method, "int8", threads=1, choices=asked)
        with ModelFile.open(tmp_path / method) as model:
            assert model.method == method
            found.append([model.decode(f"blocks.{i}.ffn.key.weight") for i in range(2)])
    plain, chosen = found
    assert np.array_equal(plain[0], chosen[0]) and not np.array_equal(plain[1], chosen[1])


def test_gptq_goes_on_after_an_interruption(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made(small, tmp_path / "whole", choices=choices(tokens=64, method="gptq")).close()
    calls: list[str] = []

    def stop() -> bool:
        return "calibrating" in calls and calls[-1] == "blocks.1.att.value.weight"

    with pytest.raises(Exception, match="quantization was stopped"), open_model(small) as opened:
        quantize(
            opened, tmp_path / "o", "int4", threads=1, choices=choices(tokens=64, method="gptq"), resume=True,
            on_progress=lambda p: calls.append(p.tensor), should_stop=stop,
        )  # fmt: skip
    assert (tmp_path / ".o.part").exists()
    made(small, tmp_path / "o", choices=choices(tokens=64, method="gptq"), resume=True).close()
    assert (tmp_path / "o").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_size_is_kept_to(small: Path, tmp_path: Path) -> None:
    with open_model(small) as opened:
        smallest = forecast(
            opened, tmp_path / "o", "int4", choices=Choices(tensors=("weight$=q4g32",)), threads=1
        )
    target = smallest.bits_per_weight + 0.5
    for room in (1.02, 1.15, 3.0):
        limit = int(smallest.nbytes * room)
        with made(small, tmp_path / "o", choices=choices(max_size=limit, tokens=64), force=True) as model:
            assert model.size <= limit and f"at most {limit} bytes" in model.recipe
            eights = [
                n for n, i in model.plan.items() if class_of(n) in ("att", "ffn") and i.encoding == "q8g32"
            ]
            assert (len(eights) == 12) == (room == 3.0)
    with open_model(small) as opened:
        told = forecast(opened, tmp_path / "o", "int4", choices=Choices(target_bpw=target), threads=1)
        assert target - 0.4 < told.bits_per_weight <= target and told.encodings["blocks.0.ln1.bias"] == "f32"
        with pytest.raises(UsageError, match="too small: this model cannot be smaller than"):
            forecast(opened, tmp_path / "o", "int4", choices=Choices(max_size=20_000), threads=1)


def test_the_layout_of_ffn_value_and_why(small: Path, tmp_path: Path) -> None:
    with made(small, tmp_path / "plain") as model:
        assert model.report["ffn_value"] == {
            "layout": "tile", "why": "by size: 48 channels, and large models leave most of its inputs at zero",
        }  # fmt: skip
    with made(small, tmp_path / "o", choices=choices(tokens=64)) as model:
        found = model.report["ffn_value"]
        assert found["layout"] == "tile" and "of its inputs are not zero in the text" in found["why"]
    with made(small, tmp_path / "f16", choices=Choices(tensors=("ffn.value=f16",))) as model:
        assert "ffn_value" not in model.report
    wide = synthetic_arch("7", 2, 2048, 256)
    middle = synthetic_arch("7", 2, 768, 256)
    for arch in (wide, middle):
        assert [layout_by_density(x, arch)[0] for x in (0.13, 0.24, 0.26)] == ["kn", "kn", "tile"]
    layout, why = layout_by_density(0.05, synthetic_arch("7", 2, 256, 256))
    assert layout == "tile" and "but skipping the others would make it 43 % larger" in why


def test_gptq_counts_the_same_share_of_zeros(small: Path, tmp_path: Path) -> None:
    """Though it does so in two windows only, here of four."""
    pytest.importorskip("torch")
    shares = []
    for method in ("codebook", "gptq"):
        with open_model(small) as opened:
            asked = choices(tokens=4 * WINDOW, method=method)
            told = forecast(opened, tmp_path / "o", "int4", choices=asked, threads=1)
        shares.append(float(told.notes["ffn_value"]["why"].partition(" %")[0]))
    # counted in two windows and shared out over the tokens of four, it would be half of that
    assert shares[1] == pytest.approx(shares[0], rel=0.05)


def test_what_a_text_leaves_alone_still_counts() -> None:
    sums = InputSums(np.array([0.0, 4.0, 8.0]), np.array([0, 2, 4], np.uint64))
    known = Calibration(
        "t", "", 4, {"blocks.0.ffn.value.weight": sums, "x": InputSums(np.zeros(2), sums.nonzero[:2])}
    )
    importance = known.importance("blocks.0.ffn.value.weight")
    assert importance is not None and importance.tolist() == pytest.approx([0.01, 1.01, 2**0.5 + 0.01])
    assert known.importance("x") is None and known.importance("y") is None
    assert known.density() == 0.5 and Calibration("t", "", 4, {}).density() is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "gptq"}, "gptq needs a text"),
        ({"method": "awq"}, "unknown method 'awq'"),
        ({"tokens": 5}, "no text to take tokens from"),
        ({"recipe": "best", "target_bpw": 5.0}, "two ways to say the same"),
        ({"target_bpw": 0.0}, "no number of bits"),
        ({"tensors": ("nothing=int8",)}, "no tensor matches 'nothing'"),
    ],
)
def test_choices_that_make_no_sense(small: Path, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    before = sorted(tmp_path.iterdir())
    with open_model(small) as opened, pytest.raises(UsageError, match=message):
        quantize(opened, tmp_path / "o", "int4", choices=Choices(**more))
    for tensors in ((), ("head=bf16",)):
        nothing = choices(method="gptq", tensors=tensors)
        with (
            open_model(small) as opened,
            pytest.raises(UsageError, match="4, 5 and 6 bits, and int8 has none"),
        ):
            quantize(opened, tmp_path / "o", "int8", choices=nothing)
    with open_model(small) as opened, pytest.raises(UsageError, match="int8 has one size"):
        quantize(opened, tmp_path / "o", "int8", choices=Choices(max_size=10))
    assert sorted(tmp_path.iterdir()) == before


def test_sizes() -> None:
    assert [parse_size(text) for text in ("900MB", "1.5GB", "10 KiB", "77", "2kB")] == [
        900_000_000, 1_500_000_000, 10_240, 77, 2000,
    ]  # fmt: skip
    for text in ("", "MB", "-1MB", "900XB", "nan"):
        with pytest.raises(UsageError, match="is no size"):
            parse_size(text)
    for text in ("1e99GB", "9" * 30 + "GB", "5e9GB"):
        with pytest.raises(UsageError, match="is more than any disk or memory holds"):
            parse_size(text)
