"""Logits of the same random model through the formats of other tools: equal to those of its .pth, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import other_tools
import pytest

from quant.checkpoints import open_checkpoint
from quant.methods import numpy_encoder
from quant.pipeline import quantize
from quant.synthetic import make_checkpoint, write_pth
from rwkvcli import Model

TOKENS = [3, 17, 0, 8, 8, 19, 1]
RANKS: dict[str, Any] = {"6": {"ranks": (3, 5)}, "7": {"ranks": (5, 7, 3, 9)}}


def logits(source: Path, folder: Path, **options: Any) -> np.ndarray:
    """All logits of the float32 model file that `source` becomes."""
    with open_checkpoint(source) as opened:
        quantize(opened, folder / "model.safetensors", "f32", encoder=numpy_encoder(), force=True, **options)
    model = Model.load(str(folder / "model.safetensors"), threads=1)
    return model.forward(TOKENS, model.new_state(), all_logits=True)


def random_model(version: str) -> dict[str, np.ndarray]:
    made = make_checkpoint(version, 2, 64, 20, 32, n_ffn=96, seed=3, **RANKS.get(version, {}))
    return {name: array.astype(np.float16).astype(np.float32) for name, array in made.items()}


@pytest.mark.parametrize(
    ("version", "writers"),
    [
        ("4", [other_tools.transformers]),
        ("5.0", [other_tools.transformers]),
        ("5.1", [other_tools.transformers]),
        ("5.2", [other_tools.web_rwkv, other_tools.transformers]),
        ("6", [other_tools.web_rwkv, other_tools.candle_v6, other_tools.llama_cpp, other_tools.rwkv_cpp]),
        ("7", [other_tools.web_rwkv, other_tools.fla, other_tools.llama_cpp, other_tools.rwkv_cpp]),
    ],
)
def test_logits_are_those_of_the_pth(
    tmp_path: Path, version: str, writers: list[Callable[[dict[str, np.ndarray], Path], Path]]
) -> None:
    tensors = random_model(version)
    write_pth(tmp_path / "m.pth", tensors)
    wanted = logits(tmp_path / "m.pth", tmp_path)
    assert np.ptp(wanted) > 1
    for writer in writers:
        assert np.array_equal(logits(writer(tensors, tmp_path / "other"), tmp_path), wanted), writer.__name__


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2"])
def test_logarithms_of_rwkv_cpp_cost_nothing_but_rounding(tmp_path: Path, version: str) -> None:
    tensors = random_model(version)
    write_pth(tmp_path / "m.pth", tensors)
    wanted = logits(tmp_path / "m.pth", tmp_path)
    found = logits(other_tools.rwkv_cpp(tensors, tmp_path / "m.bin"), tmp_path)
    assert np.abs(found - wanted).max() < 1e-5 * np.ptp(wanted)


def test_a_norm_inside_the_embedding(tmp_path: Path) -> None:
    """Rows that were normalized beforehand, in float32, give the logits of the model that normalizes them itself."""
    tensors = random_model("7")
    write_pth(tmp_path / "m.pth", tensors)
    wanted = logits(tmp_path / "m.pth", tmp_path)
    folder = tmp_path / "fused"
    folder.mkdir()
    other_tools.vllm_rwkv7(tensors, folder / "model.safetensors", fused=True)
    (folder / "config.json").write_text('{"model_type": "rwkv7", "embedding_layer_norm_fused": true}')
    found = logits(folder, tmp_path)
    assert np.abs(found - wanted).max() < 1e-5 * np.ptp(wanted)
    pytest.importorskip("torch")
    plain = Model.load(str(tmp_path / "model.safetensors"), device="torch")
    found = plain.forward(TOKENS, plain.new_state(), all_logits=True)
    assert np.abs(found - wanted).max() < 1e-5 * np.ptp(wanted)


FOLDER = os.environ.get("RWKV_CPP_TESTS", "")
FILES = sorted(Path(FOLDER).glob("tiny-rwkv-*.bin")) if FOLDER else []


@pytest.mark.skipif(not FILES, reason="RWKV_CPP_TESTS does not name the folder `tests` of rwkv.cpp")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_small_models_of_rwkv_cpp(path: Path, tmp_path: Path) -> None:
    """Its own files against its own expected logits. It computes v5 with another epsilon than v5 was trained with."""
    version, size, kind = path.stem.removeprefix("tiny-rwkv-").split("-")
    wanted = np.fromfile(path.parent / f"expected-logits-{version}-{size}.bin", np.float32)
    with open_checkpoint(path) as opened:
        quantize(
            opened,
            tmp_path / "m.safetensors",
            "f32",
            encoder=numpy_encoder(),
            group_norm_eps=1e-5 if version[0] == "5" else None,
        )
    model = Model.load(str(tmp_path / "m.safetensors"), threads=1)
    found = model.forward([ord(char) for char in '"in'], model.new_state())
    if kind in ("FP32", "FP16"):
        assert np.abs(found - wanted).max() < (1e-5 if kind == "FP32" else 5e-3)
    else:
        assert np.corrcoef(found, wanted)[0, 1] > 0.98
