"""The real Hugging Face transformers, where they are installed: they read what is exported, and what they save is read.

RWKV-4 is the version that they compute themselves. The bitsandbytes part also needs accelerate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.checkpoints import open_checkpoint
from quant.export.formats import export
from quant.methods import numpy_encoder
from quant.pipeline import quantize
from quant.sources import open_model
from quant.synthetic import make_checkpoint, write_pth
from rwkvcli import Model

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

TOKENS = [5, 99, 200, 7, 7, 31]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random RWKV-4 as model.pth, model.safetensors (a float32 model file) and the exported folder hf."""
    folder = tmp_path_factory.mktemp("transformers")
    write_pth(folder / "model.pth", make_checkpoint("4", 3, 128, 256, n_ffn=512, seed=2))
    with open_checkpoint(folder / "model.pth") as opened:
        export(opened, folder / "hf", "hf")
        quantize(opened, folder / "model.safetensors", "f32", encoder=numpy_encoder())
    return folder


def loaded(folder: Path, **options: Any) -> Any:
    model, info = transformers.RwkvForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return model


def test_they_compute_the_same_logits(folder: Path) -> None:
    model = Model.load(str(folder / "model.safetensors"), threads=1)
    wanted = model.forward(TOKENS, model.new_state(), all_logits=True)
    with torch.no_grad():
        found = loaded(folder / "hf").eval()(torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(found - wanted).max() < 1e-5 * np.ptp(wanted)


def test_what_they_save_in_parts_is_read(folder: Path, tmp_path: Path) -> None:
    loaded(folder / "hf").train().save_pretrained(tmp_path, max_shard_size="400KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    with open_checkpoint(tmp_path) as saved, open_checkpoint(folder / "model.pth") as original:
        assert saved.arch == original.arch
        assert all(np.array_equal(saved.read(name), original.read(name)) for name in original.names)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_what_bitsandbytes_quantized_in_them_is_read(folder: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("accelerate")
    bnb = pytest.importorskip("bitsandbytes")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": kind == "nf4"}
    config = transformers.BitsAndBytesConfig(**(four if kind != "int8" else {"load_in_8bit": True}))
    model = loaded(folder / "hf", quantization_config=config, device_map="cpu")
    model.save_pretrained(tmp_path)
    layers = {
        name: layer for name, layer in model.named_modules() if type(layer).__name__.startswith("Linear")
    }
    compared = 0
    with open_checkpoint(tmp_path) as saved:
        assert saved.arch.version == "4" and saved.quantized.startswith(kind)
        for name in saved.names:
            layer = layers.get(saved._pieces[name].source.removesuffix(".weight"))
            if isinstance(layer, bnb.nn.Linear4bit):
                state = layer.weight.quant_state
                state.dtype = torch.float32
                wanted = bnb.functional.dequantize_4bit(layer.weight.data, state)
            elif isinstance(layer, bnb.nn.Linear8bitLt):
                wanted = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
            else:
                continue
            assert np.array_equal(saved.read(name), wanted.numpy()), name
            compared += 1
    assert compared == 3 * 7


@pytest.mark.parametrize("kind", ["checkpoint", "nf4"])
def test_they_load_what_is_exported_for_bitsandbytes(folder: Path, tmp_path: Path, kind: str) -> None:
    """Every layer is where it should be and holds our values. (Products are its own: in bf16 on some processors.)"""
    pytest.importorskip("accelerate")
    bnb = pytest.importorskip("bitsandbytes")
    source = folder / "model.pth"
    if kind == "nf4":
        with open_checkpoint(source) as opened:
            quantize(opened, tmp_path / "nf4.safetensors", "nf4", encoder=numpy_encoder())
        source = tmp_path / "nf4.safetensors"
    with open_model(source) as start:
        export(start, tmp_path / "bnb", "bnb")
    with open_checkpoint(tmp_path / "bnb") as back:
        model = loaded(tmp_path / "bnb", device_map="cpu").eval()
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
        four = {name for name, layer in layers.items() if isinstance(layer, bnb.nn.Linear4bit)}
        assert len(four) == 3 * 7 and set(layers) - four == {"head"}
        for name in back.names:
            key = back._pieces[name].source.removesuffix(".weight")
            if key in four:
                layer = layers[key]
                found = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                assert np.array_equal(back.read(name), found.numpy()), name
