"""Synthetic models and the plain writers."""

from __future__ import annotations

import hashlib
import weakref
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from quant.arch import VERSIONS, detect, expected, logical_shape
from quant.checkpoints import open_checkpoint, write
from quant.errors import InvalidRequest
from quant.synthetic import iter_checkpoint, make_checkpoint, synthetic_arch, write_pth, write_safetensors

CASES = [(version, False) for version in VERSIONS] + [("5.0", True), ("5.1", True)]


@pytest.mark.parametrize(("version", "is_log"), CASES)
def test_every_version_has_the_right_tensors(version: str, is_log: bool) -> None:
    tensors = make_checkpoint(version, 3, 64, 100, 8, time_first_is_log=is_log)
    arch = synthetic_arch(version, 3, 64, 100, 8, time_first_is_log=is_log)
    assert detect({name: values.shape for name, values in tensors.items()}) == arch
    for name, values in tensors.items():
        assert values.dtype == np.float32, name
        assert np.isfinite(values).all(), name
        assert values.std() > 1e-3, name
        assert np.abs(values).max() < 20, name
        if name in expected(arch):
            assert logical_shape(values.shape) == expected(arch)[name]


def test_values_depend_on_seed_and_name_only() -> None:
    model = iter_checkpoint("6", 2, 32, 50, 16, seed=3)
    all_at_once = make_checkpoint("6", 2, 32, 50, 16, seed=3)
    for name in reversed(list(model.shapes)):
        assert np.array_equal(model.tensor(name), all_at_once[name])
    other = make_checkpoint("6", 2, 32, 50, 16, seed=4)
    assert not any(np.array_equal(other[name], all_at_once[name]) for name in all_at_once)
    drawn = [values.ravel()[:8].tobytes() for values in all_at_once.values()]
    assert len(set(drawn)) == len(drawn)


def test_how_values_are_drawn() -> None:
    """A change here changes every golden file made from synthetic models."""
    seed = int.from_bytes(hashlib.sha256(b"7/emb.weight").digest()[:16], "little")
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal((11, 16), dtype=np.float32)
    values = make_checkpoint("7", 2, 16, 11, head_size=8, seed=7)["emb.weight"]
    assert np.array_equal(values, normal * np.float32(0.5))


def test_stored_shapes_follow_blinkdl() -> None:
    shapes = {version: iter_checkpoint(version, 2, 64, 50, 16).shapes for version in VERSIONS}
    assert shapes["4"]["blocks.0.att.time_decay"] == (64,)
    assert shapes["4"]["blocks.0.att.time_mix_k"] == (1, 1, 64)
    assert shapes["5.0"]["blocks.1.att.time_decay"] == (4,)
    assert shapes["5.2"]["blocks.1.att.time_decay"] == (4, 16)
    assert shapes["6"]["blocks.0.att.time_decay"] == (1, 1, 64)
    assert shapes["6"]["blocks.0.att.time_maa_w2"] == (5, 32, 64)
    assert shapes["6"]["blocks.0.att.time_maa_x"] == (1, 1, 64)
    assert shapes["7"]["blocks.0.att.k_k"] == (1, 1, 64)
    assert shapes["7"]["blocks.0.att.r_k"] == (4, 16)
    assert shapes["7"]["blocks.0.ffn.x_k"] == (1, 1, 64)
    assert "blocks.0.att.v0" in shapes["7"]
    assert "blocks.0.att.v0" not in iter_checkpoint("7", 2, 64, 50, 16, layer0_value=False).shapes


def test_decays_are_within_their_versions_range() -> None:
    for version, _ in CASES:
        tensors = make_checkpoint(version, 2, 64, 50, 8)
        if version == "7":
            z = tensors["blocks.1.att.w0"]
            decay = np.exp(-0.606531 / (1 + np.exp(-z)))
        else:
            decay = np.exp(-np.exp(tensors["blocks.1.att.time_decay"]))
        assert decay.max() > 0.9
        assert decay.min() < decay.max()


def normalised(
    random: np.random.Generator, tensors: dict[str, np.ndarray], block: str, count: int
) -> np.ndarray:
    x = random.standard_normal((count, 256))
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    return x * tensors[f"{block}ln2.weight"] + tensors[f"{block}ln2.bias"]


@pytest.mark.parametrize("version", ["4", "6", "7"])
@pytest.mark.parametrize("density", [0.5, 0.13])
def test_ffn_density(version: str, density: float) -> None:
    tensors = make_checkpoint(version, 2, 256, 20, 32, ffn_density=density)
    block = "blocks.1."
    x = normalised(np.random.default_rng(0), tensors, block, 400)
    name = {"4": "time_mix_k", "6": "time_maa_k", "7": "x_k"}[version]
    mix = tensors[f"{block}ffn.{name}"].reshape(-1)
    previous = 1 - mix if version == "4" else mix
    inner = (x[1:] * (1 - previous) + x[:-1] * previous) @ tensors[f"{block}ffn.key.weight"].T
    assert abs((inner > 0).mean() - density) < 0.04
    assert 0.8 < inner.std() < 1.3
    out = np.maximum(inner, 0) ** 2 @ tensors[f"{block}ffn.value.weight"].T
    assert 0.3 < out.std() < 1.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"version": "8"},
        {"n_layer": 0},
        {"n_embd": 30},
        {"ranks": (1,)},
        {"ffn_density": 0.0},
        {"ffn_density": 1.0},
        {"time_first_is_log": True},
    ],
)
def test_impossible_models_are_refused(arguments: dict[str, object]) -> None:
    usual: dict[str, object] = {"version": "7", "n_layer": 2, "n_embd": 64, "vocab_size": 50, "head_size": 16}
    with pytest.raises(InvalidRequest) as caught:
        make_checkpoint(**{**usual, **arguments})  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_usual_sizes() -> None:
    assert synthetic_arch("5.2", 12, 768, 65536).n_ffn == 2688
    assert synthetic_arch("6", 12, 64, 100).n_ffn == 224
    assert synthetic_arch("7", 2, 64, 100, 8).rank_gate == 32
    assert synthetic_arch("7", 2, 2048, 100).rank_gate == 256


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("version", ["4", "7"])
def test_torch_opens_what_is_written(tmp_path: Path, dtype: str, version: str) -> None:
    torch = pytest.importorskip("torch")
    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    model = iter_checkpoint(version, 2, 16, 11, 8)
    path = tmp_path / "m.pth"
    write_pth(path, model, dtype)
    for options in ({}, {"mmap": True}):
        loaded = torch.load(path, weights_only=True, **options)
        assert list(loaded) == list(model.shapes)
        for name, values in model:
            assert torch.equal(loaded[name], torch.from_numpy(values).to(kind)), name


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_the_stock_library_opens_what_is_written(tmp_path: Path, dtype: str) -> None:
    stock = pytest.importorskip("safetensors")
    model = iter_checkpoint("5.2", 2, 16, 11, 8)
    path = tmp_path / "m.safetensors"
    write_safetensors(path, model, dtype, metadata={"a": "b"})
    assert int.from_bytes(path.read_bytes()[:8], "little") % 64 == 56
    with stock.safe_open(path, "np") as file:
        assert set(file.keys()) == set(model.shapes)
        assert file.metadata() == {"a": "b"}
        if dtype != "bf16":
            for name, values in model:
                assert np.array_equal(file.get_tensor(name), values.astype({"f32": "f4", "f16": "f2"}[dtype]))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_round_trip(tmp_path: Path, dtype: str, suffix: str) -> None:
    tensors = make_checkpoint("6", 2, 32, 11, 8)
    path = tmp_path / f"m.{suffix}"
    writer = write_pth if suffix == "pth" else write_safetensors
    writer(path, iter(tensors.items()), dtype)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.arch == synthetic_arch("6", 2, 32, 11, 8)
        for name, values in tensors.items():
            assert checkpoint.dtype(name) == dtype
            want = values.reshape(checkpoint.shape(name))
            assert np.array_equal(checkpoint.read_raw(name), write.encode(want, dtype))
            tolerance = {"f32": 0, "f16": 2**-11, "bf16": 2**-8}[dtype]
            assert np.allclose(checkpoint.read(name), want, rtol=tolerance, atol=1e-7)
    assert list(tmp_path.iterdir()) == [path]


def test_bf16_rounds_to_nearest_even() -> None:
    bits = np.array(
        [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0xFFFFFFFF, 1, 0x80000000],
        np.uint32,
    )
    want = [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7F80, 0x7FC0, 0xFFFF, 0, 0x8000]
    assert write.encode(bits.view(np.float32), "bf16").tolist() == want


def test_bytes_are_deterministic_and_storages_aligned(tmp_path: Path) -> None:
    for number in (1, 2):
        write_pth(tmp_path / f"{number}.pth", iter_checkpoint("4", 2, 24, 9))
    assert (tmp_path / "1.pth").read_bytes() == (tmp_path / "2.pth").read_bytes()
    data = (tmp_path / "1.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "1.pth") as archive:
        assert archive.testzip() is None
        for member in archive.infolist():
            name, extra = (int.from_bytes(data[member.header_offset + at :][:2], "little") for at in (26, 28))
            assert (member.header_offset + 30 + name + extra) % 64 == 0


@pytest.mark.parametrize("limit", [0, 300, 1000, 1700])
def test_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Large-file fields, with a small file: they begin at `limit` bytes here."""
    monkeypatch.setattr(write, "_WIDE", limit)
    tensors = {"a": np.arange(300, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
    path = tmp_path / "wide.pth"
    write_pth(path, tensors)
    assert b"PK\6\6" in path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with open_checkpoint(path) as checkpoint:
        assert np.array_equal(checkpoint.read("a"), tensors["a"])
        assert np.array_equal(checkpoint.read("b"), tensors["b"])
    torch = pytest.importorskip("torch")
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(300.0))


def test_many_members(tmp_path: Path) -> None:
    path = tmp_path / "many.pth"
    write_pth(path, {f"t{number}": np.zeros(1, np.float32) for number in range(5000)})
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.names) == 5000


def test_failed_writes_leave_nothing(tmp_path: Path) -> None:
    class Liar:
        shapes = {"a": (2,), "b": (3,)}  # noqa: RUF012

        def __iter__(self):  # type: ignore[no-untyped-def]
            yield "a", np.zeros(2, np.float32)
            yield "b", np.zeros(4, np.float32)

    for writer in (write_pth, write_safetensors):
        with pytest.raises(ValueError, match="tensor b"):
            writer(tmp_path / "x", Liar())
        with pytest.raises(InvalidRequest, match="unknown dtype f64"):
            writer(tmp_path / "x", {}, "f64")
    assert list(tmp_path.iterdir()) == []


def test_streaming_makes_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = iter_checkpoint("4", 2, 16, 11)
    alive: list[weakref.ref[np.ndarray]] = []

    class Watched:
        shapes = model.shapes

        def __iter__(self):  # type: ignore[no-untyped-def]
            for name in model.shapes:
                values = model.tensor(name)
                alive.append(weakref.ref(values))
                yield name, values
                del values

    write_pth(tmp_path / "x.pth", Watched())
    for before, _ in pairwise(alive):
        assert before() is None
