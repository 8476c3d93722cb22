"""What the engine counts of relu^2 activations, against the PyTorch twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quant_models import checkpoint, odd_arch, quantized

torch = pytest.importorskip("torch", reason="the PyTorch backend is optional")

from rwkvcli import Model  # noqa: E402
from rwkvcli.runtime import torch_blocks  # noqa: E402
from rwkvcli.runtime.native import NativeModel  # noqa: E402


def test_active_channels_of_each_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "small.pth", odd_arch("7", n_layer=3), "f32")
    quantized(source, tmp_path / "kn.safetensors", "int8", ffn_value="kn")
    seen: list[int] = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(int((x > 0).sum()))
        return torch.relu(x) ** 2

    monkeypatch.setattr(torch_blocks, "relu_squared", watched)
    tokens = np.random.default_rng(0).integers(0, 256, 200)
    twin = Model.load(tmp_path / "kn.safetensors", device="torch")
    twin.forward(tokens, twin.new_state())
    model = Model.load(tmp_path / "kn.safetensors", threads=2)
    assert isinstance(model.backend, NativeModel)
    model.backend.count_active_channels(True)
    model.forward(tokens[:50], model.new_state())
    model.backend.count_active_channels(True)  # begins anew
    model.forward(tokens, model.new_state())
    counted = model.backend.active_channels
    expected = np.array(seen).reshape(-1, 3).sum(axis=0)
    # int8 rounds activations, and the twin adds in another order: what is next to zero may fall on either side
    np.testing.assert_allclose(counted, expected, rtol=2e-3)
    model.backend.count_active_channels(False)
    model.forward(tokens, model.new_state())
    assert model.backend.active_channels == counted
