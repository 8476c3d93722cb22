"""Exported models: read back they are what they were, and other tools' own readers find what their converters write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import other_tools
import pytest
from quant_models import quantized
from safetensors.numpy import load_file

from quant.arch import expected
from quant.checkpoints import open_checkpoint
from quant.checkpoints.write import encode
from quant.errors import Cancelled, FormatError, InvalidRequest
from quant.export.formats import FORMATS, Exported, export
from quant.pipeline import Progress
from quant.sources import open_model
from quant.synthetic import make_checkpoint, write_pth

Tensors = dict[str, np.ndarray]
RANKS: dict[str, Any] = {"6": {"ranks": (3, 5)}, "7": {"ranks": (5, 7, 3, 9)}}
VOCABULARY = [bytes([i]) for i in range(256)]
HF = ("4", "5.2", "6", "7")


@pytest.fixture(scope="session")
def exportable(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Tensors, Path]]:
    """{version: (tensors that bf16 holds exactly, their .pth in bf16)}; heads of 64, as fla's epsilon wants."""
    folder = tmp_path_factory.mktemp("exportable")
    result = {}
    for version in ("4", "5.0", "5.1", "5.2", "6", "7"):
        made = make_checkpoint(version, 2, 128, 256, 64, n_ffn=96, **RANKS.get(version, {}))
        tensors = {
            name: (encode(a, "bf16").astype(np.uint32) << 16).view(np.float32)
            for name, a in made.items()
            if not name.startswith("blocks.0.att.v") or "value" in name
        }
        write_pth(folder / f"{version}.pth", tensors, "bf16")
        result[version] = tensors, folder / f"{version}.pth"
    return result


def exported(source: Path, out: Path, to: str, **options: Any) -> Exported:
    options.setdefault("vocabulary", lambda weights: VOCABULARY)
    with open_model(source) as opened:
        return export(opened, out, to, **options)


def check_equal(path: Path, tensors: Mapping[str, np.ndarray], dtypes: set[str]) -> None:
    with open_checkpoint(path) as opened:
        names = expected(opened.arch)
        assert set(names) == set(tensors) == set(opened.names)
        for name, shape in names.items():
            assert np.array_equal(opened.read(name), tensors[name].reshape(shape)), name
        assert {opened.dtype(name) for name in names} == dtypes


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6", "7"])
def test_round_trips_are_exact(
    exportable: Mapping[str, tuple[Tensors, Path]], tmp_path: Path, version: str
) -> None:
    """From a checkpoint and from a model file, to every format that the version has, and on to a .pth."""
    tensors, source = exportable[version]
    model = tmp_path / "model.safetensors"
    quantized(source, model, "bf16")
    routes = [
        "pth",
        "safetensors",
        *(["hf"] if version in HF else []),
        *(["gguf"] if version in "67" else []),
    ]
    for to in routes:
        for number, start in enumerate((source, model)):
            out = tmp_path / f"{to}{number}{FORMATS[to].suffix}"
            result = exported(start, out, to)
            mixed = to == "gguf" or start == model  # vectors are float32 there
            check_equal(out, tensors, {"bf16", "f32"} if mixed else {"bf16"})
            assert result.nbytes == sum(file.stat().st_size for file in result.files)
            assert (result.version, result.path) == (version, out)
        exported(out, tmp_path / f"from-{to}.pth", "pth", dtype="bf16")
        assert (tmp_path / f"from-{to}.pth").read_bytes() == (tmp_path / "pth0.pth").read_bytes()


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_dtypes(exportable: Mapping[str, tuple[Tensors, Path]], tmp_path: Path, dtype: str) -> None:
    tensors, source = exportable["7"]
    rounded = {
        name: a if dtype == "f32" else a.astype(np.float16).astype(np.float32) for name, a in tensors.items()
    }
    exported(source, tmp_path / "m.pth", "pth", dtype=dtype)
    check_equal(tmp_path / "m.pth", rounded, {dtype})


def test_torch_and_safetensors_read_them(
    exportable: Mapping[str, tuple[Tensors, Path]], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    tensors, source = exportable["6"]
    model = tmp_path / "model.safetensors"
    quantized(source, model, "f16")
    exported(model, tmp_path / "m.pth", "pth")
    loaded = torch.load(tmp_path / "m.pth", weights_only=True)
    assert set(loaded) == set(tensors)
    assert {values.dtype for values in loaded.values()} == {torch.float16, torch.float32}
    for name, values in loaded.items():
        assert values.shape == tensors[name].shape
        stored = np.float16 if values.dtype == torch.float16 else np.float32
        assert np.array_equal(values.numpy(), tensors[name].astype(stored)), name
    exported(source, tmp_path / "m.safetensors", "safetensors", dtype="f32")
    found = load_file(tmp_path / "m.safetensors")
    assert {name: a.shape for name, a in found.items()} == {name: a.shape for name, a in tensors.items()}
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_hf_is_what_the_converters_write(
    exportable: Mapping[str, tuple[Tensors, Path]], tmp_path: Path, version: str
) -> None:
    tensors, source = exportable[version]
    exported(source, tmp_path / "model", "hf", dtype="f32")
    writer = other_tools.fla if version == "7" else other_tools.transformers
    wanted = load_file(writer(tensors, tmp_path / "wanted.safetensors"))
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: a.shape for name, a in found.items()} == {name: a.shape for name, a in wanted.items()}
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]) == (128, 2, 96)
    assert config["eos_token_id"] == 0 and config["torch_dtype"] == "float32"
    if version == "7":
        ranks = (f"{name}_low_rank_dim" for name in ("decay", "a", "v", "gate"))
        assert [config[rank] for rank in ranks] == [5, 7, 3, 9]
    else:
        assert config["rescale_every"] == 0 and config.get("head_size_divisor", 8) == 8


@pytest.mark.parametrize(("version", "dtype"), [("6", "f32"), ("7", "f32"), ("7", "f16")])
def test_gguf_is_what_the_converter_writes(
    exportable: Mapping[str, tuple[Tensors, Path]], tmp_path: Path, version: str, dtype: str
) -> None:
    """The package gguf reads both files: same names, types, shapes and data."""
    gguf = pytest.importorskip("gguf")
    tensors, source = exportable[version]
    exported(source, tmp_path / "m.gguf", "gguf", dtype=dtype)
    other_tools.llama_cpp(tensors, tmp_path / "wanted.gguf", kind=dtype)
    mine, his = gguf.GGUFReader(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "wanted.gguf")
    wanted = {item.name: item for item in his.tensors}
    assert {item.name for item in mine.tensors} == set(wanted)
    for item in mine.tensors:
        other = wanted[item.name]
        assert item.shape.tolist() == other.shape.tolist(), item.name
        assert item.tensor_type == other.tensor_type, item.name
        assert np.array_equal(item.data, other.data), item.name
    said = {key: field.contents() for key, field in mine.fields.items() if not key.startswith("GGUF.")}
    arch = f"rwkv{version}"
    assert said["general.architecture"] == arch and said["general.file_type"] == {"f32": 0, "f16": 1}[dtype]
    sizes = {"context_length": 1 << 20, "embedding_length": 128, "block_count": 2, "feed_forward_length": 96}
    sizes |= {"attention.head_count": 0, "wkv.head_size": 64}
    more = {
        "6": {"rescale_every_n_layers": 0, "time_mix_extra_dim": 3, "time_decay_extra_dim": 5},
        "7": {"attention.decay_lora_rank": 5, "attention.iclr_lora_rank": 7, "attention.gate_lora_rank": 9}
        | {"attention.value_residual_mix_lora_rank": 3},
    }[version]
    assert {key: said[f"{arch}.{key}"] for key in sizes | more} == sizes | more
    tokens = said["tokenizer.ggml.tokens"]
    assert len(tokens) == 256 and tokens[0] == "<s>" and tokens[10] == r"\n" and tokens[255] == r"\xff"
    assert said["tokenizer.ggml.token_type"] == [3] + [1] * 255
    assert said["tokenizer.ggml.model"] == "rwkv" and said["tokenizer.ggml.eos_token_id"] == 0


def test_what_cannot_be_exported(exportable: Mapping[str, tuple[Tensors, Path]], tmp_path: Path) -> None:
    tensors, source = exportable["7"]
    out = tmp_path / "out"

    def refused(start: Path, to: str, words: str, **options: Any) -> None:
        with pytest.raises(InvalidRequest, match=words) as caught:
            exported(start, out, to, **options)
        assert caught.value.exit_code == 2 and not out.exists()
        for other in re.findall(
            r"pth|safetensors|hf", caught.value.hint or ""
        ):  # what is advised can be done
            exported(start, tmp_path / f"{start.stem}-{to}-{other}", other)

    quantized(source, tmp_path / "int8.safetensors", "int8")
    refused(tmp_path / "int8.safetensors", "pth", r"is quantized \(int8\)")
    refused(other_tools.llama_cpp(tensors, tmp_path / "q.gguf", kind="q8_0"), "pth", r"is quantized \(q8_0\)")
    refused(exportable["4"][1], "gguf", "llama.cpp computes RWKV-6 and 7")
    refused(exportable["5.0"][1], "gguf", "llama.cpp computes RWKV-6 and 7")
    refused(exportable["5.0"][1], "hf", "no Hugging Face code computes RWKV-5.0")
    refused(source, "gguf", "has another", vocabulary=lambda weights: None)
    quantized(source, tmp_path / "eps.safetensors", "f32", group_norm_eps=1e-5)
    refused(tmp_path / "eps.safetensors", "gguf", "llama.cpp always takes 0.00064")
    refused(tmp_path / "eps.safetensors", "hf", "fla always takes the size of a head")
    refused(source, "onnx", "unknown format onnx")
    refused(source, "pth", "unknown format pth or dtype f64", dtype="f64")
    fused = tmp_path / "fused"
    fused.mkdir()
    other_tools.vllm_rwkv7(tensors, fused / "model.safetensors", fused=True)
    (fused / "config.json").write_text('{"model_type": "rwkv7", "embedding_layer_norm_fused": true}')
    for to in ("pth", "safetensors", "gguf"):
        refused(fused, to, "first layer norm in the embedding")
    exported(fused, tmp_path / "hf", "hf")
    with open_checkpoint(tmp_path / "hf") as opened, open_checkpoint(fused) as start:
        assert opened.arch.ln0_fused and not any("ln0" in name for name in opened.names)
        assert np.array_equal(opened.read("emb.weight"), start.read("emb.weight"))


def test_failures_leave_what_was_there(
    exportable: Mapping[str, tuple[Tensors, Path]], tmp_path: Path
) -> None:
    tensors, source = exportable["7"]
    out, folder = tmp_path / "out.pth", tmp_path / "folder"
    out.write_bytes(b"before")
    with pytest.raises(InvalidRequest, match="exists already"):
        exported(source, out, "pth")
    with pytest.raises(InvalidRequest, match="is the source itself"):
        exported(source, source, "safetensors", force=True)
    calls: list[Progress] = []
    for to, target in (("pth", out), ("gguf", out), ("hf", folder)):
        with pytest.raises(Cancelled):
            exported(
                source, target, to, force=True, should_stop=lambda: len(calls) > 3, on_progress=calls.append
            )
        calls.clear()
    huge = dict(tensors)
    huge["blocks.1.ffn.x_k"] = np.full_like(huge["blocks.1.ffn.x_k"], 1e5)
    write_pth(tmp_path / "huge.pth", huge)
    with pytest.raises(FormatError, match=r"blocks\.1\.ffn\.x_k has values past the range of f16"):
        exported(tmp_path / "huge.pth", out, "pth", force=True, dtype="f16")
    huge["head.weight"] = np.full_like(huge["head.weight"], np.nan)
    write_pth(tmp_path / "huge.pth", huge)
    with pytest.raises(FormatError, match="NaN or infinite"):
        exported(tmp_path / "huge.pth", folder, "hf")
    assert out.read_bytes() == b"before" and not folder.exists()
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".part")]
    exported(source, out, "pth", force=True, on_progress=calls.append)
    total = sum(a.size for a in tensors.values())
    assert calls[0].done == 0 and calls[-1] == Progress("", total, total)
    exported(source, folder, "hf")
    with pytest.raises(InvalidRequest, match=r"model\.safetensors exists already"):
        exported(source, folder, "hf")
    with pytest.raises(InvalidRequest, match="is the source itself"):
        exported(folder, folder, "hf", force=True)
    exported(source, folder, "hf", force=True)


@pytest.mark.parametrize(("dtype", "value"), [("bf16", 3.4e38), ("bf16", -3.4e38), ("f16", 65520.0)])
def test_values_past_the_range_are_refused(tmp_path: Path, dtype: str, value: float) -> None:
    tensors = make_checkpoint("4", 1, 32, 256, n_ffn=32)
    tensors["head.weight"][3, 4] = value
    write_pth(tmp_path / "m.pth", tensors)
    with pytest.raises(FormatError, match=f"head.weight has values past the range of {dtype}") as caught:
        exported(tmp_path / "m.pth", tmp_path / "out.pth", "pth", dtype=dtype)
    assert caught.value.hint is not None and caught.value.hint.endswith("--dtype f32")
    assert [file.name for file in tmp_path.iterdir()] == ["m.pth"]


def test_a_tokenizer_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    write_pth(tmp_path / "m.pth", make_checkpoint("4", 1, 32, 40, n_ffn=32))
    source, out = tmp_path / "m.safetensors", tmp_path / "out"
    quantized(tmp_path / "m.pth", source, "f32", tokenizer_json=b'{"model": {}}')
    out.mkdir()
    theirs = out / "tokenizer.json"
    theirs.write_text("{}")
    with pytest.raises(InvalidRequest, match="exists already"):
        exported(source, out, "hf")
    assert theirs.read_text() == "{}" and [file.name for file in out.iterdir()] == ["tokenizer.json"]
    made = exported(source, out, "hf", force=True)
    assert theirs.read_bytes() == b'{"model": {}}' and theirs in made.files
    assert made.nbytes == sum(file.stat().st_size for file in out.iterdir())
