"""Folders for bitsandbytes: what its own classes read out of them, and what comes back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quant_models import checkpoint, quantized
from safetensors.numpy import load_file

from quant.checkpoints import open_checkpoint
from quant.codecs import layouts, nf4
from quant.container.reader import ModelFile
from quant.errors import FormatError, InvalidRequest
from quant.export.formats import Exported, export
from quant.recipe import class_of
from quant.sources import open_model
from quant.synthetic import synthetic_arch

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes")

VERSIONS = {"4": 7, "5.2": 8, "6": 8, "7": 6}
"""{version: linear layers of a block}."""
SUFFIXES = ("absmax", "quant_map", "quant_state.bitsandbytes__nf4")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{version: a .pth in bf16}; the rows of v4's ffn.value are no whole blocks, nor a whole number of them in all."""
    folder = tmp_path_factory.mktemp("sources")
    made = {}
    for version in VERSIONS:
        n_ffn = 200 if version == "4" else 192
        arch = synthetic_arch(version, 2, 64 if version == "4" else 128, 256, 64, n_ffn=n_ffn)
        made[version] = checkpoint(folder / f"{version}.pth", arch, "bf16")
    return made


def exported(source: Path, out: Path, **options: Any) -> Exported:
    with open_model(source) as opened:
        return export(opened, out, "bnb", **options)


def layers(stored: dict[str, np.ndarray]) -> dict[str, Any]:
    """{name: what bitsandbytes' own class makes of the layer and what lies beside it}."""
    ending = f".{SUFFIXES[-1]}"
    names = [name.removesuffix(ending) for name in stored if name.endswith(ending)]
    return {
        name: bnb.nn.Params4bit.from_prequantized(
            data=torch.from_numpy(stored[name]),
            quantized_stats={
                f"{name}.{part}": torch.from_numpy(stored[f"{name}.{part}"]) for part in SUFFIXES
            },
            device="cpu",
        )
        for name in names
    }


def dequantized(layer: Any) -> np.ndarray:
    return bnb.functional.dequantize_4bit(layer.data, layer.quant_state).float().numpy()


@pytest.mark.parametrize("version", VERSIONS)
def test_from_a_checkpoint_they_are_what_bitsandbytes_makes_of_it(
    sources: dict[str, Path], tmp_path: Path, version: str
) -> None:
    result = exported(sources[version], tmp_path / "bnb")
    stored = load_file_with_bf16(tmp_path / "bnb" / "model.safetensors")
    found = layers(stored)
    assert result.dtypes["nf4"] == len(found) == 2 * VERSIONS[version] and "u8" not in result.dtypes
    with open_checkpoint(sources[version]) as source, open_checkpoint(tmp_path / "bnb") as back:
        assert back.arch == source.arch and back.quantized == "nf4"
        compared = 0
        for name in source.names:
            if version == "7" and name.startswith("blocks.0.att.v") and "value" not in name:
                continue  # block 0's, which nothing reads
            piece = back._pieces[name]
            if class_of(name) not in ("att", "ffn"):
                assert np.array_equal(back.read(name), source.read(name)), name
                continue
            weight = torch.tensor(source.read(name)).bfloat16()
            codes, state = bnb.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
            assert np.array_equal(stored[piece.source], codes.numpy())
            for part, tensor in state.as_dict(packed=True).items():
                assert np.array_equal(stored[f"{piece.source}.{part}"], tensor.numpy()), part
            layer = found[piece.source]
            assert layer.quant_state.dtype == torch.bfloat16 and layer.quant_state.shape == weight.shape
            state.dtype = layer.quant_state.dtype = torch.float32  # not rounded once more
            wanted = bnb.functional.dequantize_4bit(codes, state).numpy()
            assert np.array_equal(dequantized(layer), wanted) and np.array_equal(back.read(name), wanted)
            compared += 1
        assert compared == len(found)


def load_file_with_bf16(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file; numpy has no bf16, so by torch."""
    from safetensors.torch import load_file as load

    return {n: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for n, t in load(path).items()}


@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_from_a_model_file_of_nf4_its_codes_are_written(
    sources: dict[str, Path], tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized(sources[version], tmp_path / "nf4.safetensors", "nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # nothing is left to quantize
    result = exported(tmp_path / "nf4.safetensors", tmp_path / "bnb")
    monkeypatch.undo()
    stored = load_file(tmp_path / "bnb" / "model.safetensors")
    found = layers(stored)
    with ModelFile.open(tmp_path / "nf4.safetensors") as model, open_checkpoint(tmp_path / "bnb") as back:
        names = [name for name, plan in model.plan.items() if plan.encoding == "nf4"]
        assert len(names) == len(found) == result.dtypes["nf4"] > 0
        for name in names:
            plan = model.plan[name]
            grouped = layouts.unpack(model.parts(name), plan.encoding, plan.layout, plan.shape)
            layer = found[back._pieces[name].source]
            assert np.array_equal(layer.data.numpy(), nf4.packed(grouped.codes))
            root = grouped.scales[:, ::2].astype(np.float64)
            scale = grouped.rows[:, None].astype(np.float64) * root**2 * float(nf4.SPAN)
            assert np.allclose(
                layer.quant_state.absmax.numpy(), scale.reshape(-1), rtol=2.001 * 2**-24, atol=0
            )  # two roundings
            assert np.array_equal(back.read(name), dequantized(layer))
            # the file's own values differ by what the table was rounded by, no more
            table = np.abs((nf4.CODEBOOK.astype(np.float64) - 64) / float(nf4.SPAN) - nf4.VALUES).max()
            lost = np.abs(model.decode(name).astype(np.float64) - dequantized(layer)).reshape(-1, 64)
            assert (
                lost <= layer.quant_state.absmax.numpy()[:, None] * (table + 5 * 2**-24)
            ).all()  # five roundings
        for name in ("emb.weight", "head.weight"):
            assert np.array_equal(back.read(name), model.decode(name))
    quantized(tmp_path / "bnb" / "model.safetensors", tmp_path / "again.safetensors", "nf4")
    with (
        ModelFile.open(tmp_path / "nf4.safetensors") as a,
        ModelFile.open(tmp_path / "again.safetensors") as b,
    ):
        for name in names:
            first, second = a.parts(name), b.parts(name)
            assert np.array_equal(first["q"], second["q"]) and np.array_equal(first["s"], second["s"]), name


@pytest.mark.parametrize("nested", [False, True])
def test_the_codes_of_a_bitsandbytes_checkpoint_are_kept(
    sources: dict[str, Path], tmp_path: Path, nested: bool
) -> None:
    """Blocks of 64 hold a weight of code 0 or 15, so quantizing what they decode to finds them again."""
    exported(sources["7"], tmp_path / "bnb", dtype="f32")
    weights = tmp_path / "bnb" / "model.safetensors"
    stored = {name: torch.from_numpy(array) for name, array in load_file(weights).items()}
    if nested:
        with open_checkpoint(sources["7"]) as source, open_checkpoint(tmp_path / "bnb") as back:
            for name in (n for n in source.names if class_of(n) in ("att", "ffn")):
                codes, state = bnb.functional.quantize_4bit(
                    torch.tensor(source.read(name)), blocksize=64, quant_type="nf4", compress_statistics=True
                )
                key = back._pieces[name].source
                stored |= {key: codes, **{f"{key}.{k}": v for k, v in state.as_dict(packed=True).items()}}
        from safetensors.torch import save_file

        save_file(stored, weights, metadata={"format": "pt"})
    quantized(tmp_path / "bnb", tmp_path / "o", "nf4")
    compared = 0
    with ModelFile.open(tmp_path / "o") as model, open_checkpoint(tmp_path / "bnb") as back:
        for name, plan in model.plan.items():
            if plan.encoding == "nf4":
                grouped = layouts.unpack(model.parts(name), plan.encoding, plan.layout, plan.shape)
                assert np.array_equal(nf4.packed(grouped.codes), stored[back._pieces[name].source].numpy())
                compared += 1
    assert compared == 12


def test_the_configuration_names_what_stays_floats(sources: dict[str, Path], tmp_path: Path) -> None:
    for version in VERSIONS:
        exported(sources[version], tmp_path / version, dtype="f16")
        config = json.loads((tmp_path / version / "config.json").read_text())
        settings = config["quantization_config"]
        assert settings["quant_method"] == "bitsandbytes" and settings["load_in_4bit"] is True
        assert settings["bnb_4bit_quant_type"] == "nf4" and settings["bnb_4bit_use_double_quant"] is False
        assert settings["bnb_4bit_compute_dtype"] == config["torch_dtype"] == "float16"
        skipped = set(settings["llm_int8_skip_modules"])
        stored = load_file(tmp_path / version / "model.safetensors")
        codes = {name.removesuffix(".weight") for name in layers(stored)}
        matrices = {
            name.removesuffix(".weight")
            for name, array in stored.items()
            if name.endswith(".weight") and array.ndim == 2 and "embeddings" not in name
        }
        assert codes | skipped == matrices and not codes & skipped
        assert ("lm_head" if version == "7" else "head") in skipped
        assert {layer.quant_state.dtype for layer in layers(stored).values()} == {torch.float16}
        quantized(sources[version], tmp_path / f"{version}.nf4", "nf4")
        exported(tmp_path / f"{version}.nf4", tmp_path / f"{version}-nf4", dtype="bf16")
        other = json.loads((tmp_path / f"{version}-nf4" / "config.json").read_text())
        more = {"blocks.0.ffn.value"} if version == "4" else set()  # int8 there: rows of 200
        assert len(other["quantization_config"]["llm_int8_skip_modules"]) == len(skipped) + 2 * len(more)
        assert other["torch_dtype"] == "bfloat16"


def test_what_is_refused(sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def refused(source: Path, words: str) -> None:
        with pytest.raises(InvalidRequest, match=words) as caught:
            exported(source, out)
        assert caught.value.exit_code == 2 and not out.exists()

    for kind in ("int8", "int4"):
        quantized(sources["7"], tmp_path / kind, kind)
        refused(tmp_path / kind, rf"is quantized \({kind}\)")
    old = checkpoint(tmp_path / "5.0.pth", synthetic_arch("5.0", 1, 64, 256, 64))
    refused(old, r"no Hugging Face code computes RWKV-5\.0")
    quantized(sources["7"], tmp_path / "nf4", "nf4")
    with (
        open_model(tmp_path / "nf4") as opened,
        pytest.raises(InvalidRequest, match=r"is quantized \(nf4\)") as caught,
    ):
        export(opened, out, "hf")
    assert str(caught.value.hint).startswith("use --to bnb")
    data = bytearray((tmp_path / "nf4").read_bytes())
    with ModelFile.open(tmp_path / "nf4") as model:
        part = next(p for p in model.plan["blocks.1.att.value.weight"].parts if p.name == "s")
    data[part.offset] ^= 1
    (tmp_path / "nf4").write_bytes(data)
    with pytest.raises(FormatError, match=r"blocks\.1\.att\.value\.weight has blocks of two scales"):
        exported(tmp_path / "nf4", out)
    assert not out.exists()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    refused(sources["7"], r'pip install "rwkvcli\[torch\]"$')
