"""A small trained model, where the environment variable RWKV_TEST_CHECKPOINTS names a folder that has it.

`tiny-rwkv-5v2-730K.pth` is RWKV-5.2 with 12 layers of 64 channels over raw bytes, trained on English with a
group-norm epsilon of 1e-5 (rwkv.cpp's test data, MIT licence).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch backend is optional")

from quant.checkpoints import open_checkpoint  # noqa: E402
from quant.methods import numpy_encoder  # noqa: E402
from quant.orient import logical_tensors, turned  # noqa: E402
from quant.pipeline import quantize  # noqa: E402
from rwkvcli.runtime.torch_backend import TorchModel  # noqa: E402

torch.set_num_threads(1)
FOLDER = os.environ.get("RWKV_TEST_CHECKPOINTS")
NAME = "tiny-rwkv-5v2-730K.pth"
pytestmark = pytest.mark.skipif(
    not FOLDER or not (Path(FOLDER) / NAME).is_file(), reason=f"no {NAME} in RWKV_TEST_CHECKPOINTS"
)
EPS = 1e-5

PROSE = (
    b"The old man sat down by the fire and looked at the children for a long time before he began to speak. "
    b"There was a house upon the hill, he said, and in the house there lived a woman who had never been seen "
    b"by any of the people in the village, though they could hear her singing in the evening."
)


@pytest.fixture(scope="module")
def model() -> TorchModel:
    with open_checkpoint(Path(str(FOLDER)) / NAME) as checkpoint:
        weights = {
            name: turned(checkpoint.read(item.source), item)
            for name, item in logical_tensors(checkpoint.arch).items()
        }
        return TorchModel((checkpoint.arch, weights), group_norm_eps=EPS)


def bits_per_byte(logits: np.ndarray, text: bytes) -> float:
    """Of text[1:], `logits` [T, 256] being what the model gave after each byte of text."""
    wide = logits[:-1].astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]
    chosen = wide[np.arange(len(wide)), list(text[1:])]
    return float((log_sums - chosen).mean() / np.log(2))


def test_next_byte(model: TorchModel) -> None:
    logits = model.forward([34, 105, 110], model.new_state())  # the bytes `"in`
    assert logits.shape == (256,)
    assert np.isfinite(logits).all()
    ranked = bytes(np.argsort(-logits).astype(np.uint8))
    assert set(ranked[:8]) <= set(b"abcdefghijklmnopqrstuvwxyz ,.'\n"), ranked[:8]
    assert ord(" ") in ranked[:4]


def test_english_is_likelier_than_noise(model: TorchModel) -> None:
    prose = bits_per_byte(model.forward(PROSE, model.new_state(), all_logits=True), PROSE)
    shuffled = bytes(np.random.default_rng(1).permutation(list(PROSE)).astype(np.uint8))
    noise = bits_per_byte(model.forward(shuffled, model.new_state(), all_logits=True), shuffled)
    assert prose < 3.2
    assert noise > prose + 1.5


def test_epsilon_matters(model: TorchModel) -> None:
    """With the usual 64e-5 this model's logits are off by more than 1."""
    usual = TorchModel((model.arch, {name: tensor.numpy() for name, tensor in model.weights.items()}))
    a = model.forward([34, 105, 110], model.new_state())
    b = usual.forward([34, 105, 110], usual.new_state())
    assert np.abs(a - b).max() > 0.5


@pytest.mark.parametrize("kind", ["f32", "int8", "int4"])
def test_engine_on_the_trained_model(model: TorchModel, kind: str, tmp_path: Path) -> None:
    from rwkvcli import Model

    with open_checkpoint(Path(str(FOLDER)) / NAME) as checkpoint:
        quantize(checkpoint, tmp_path / "model", kind, encoder=numpy_encoder(), group_norm_eps=EPS)
    engine = Model.load(tmp_path / "model", device="cpu", threads=1)
    tokens = list(PROSE)
    found = engine.forward(tokens, engine.new_state(), all_logits=True)
    expected = model.forward(tokens, model.new_state(), all_logits=True)
    if kind == "f32":
        assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)
    else:
        loss = bits_per_byte(found, PROSE) - bits_per_byte(expected, PROSE)
        assert abs(loss) <= {"int8": 0.02, "int4": 0.2}[kind]
