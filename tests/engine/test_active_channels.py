"""What the engine counts of relu^2 activations, on models in which their number is known.

A row of `ffn.key` and its negative make one active channel of two, whatever the input; a row of zeros makes none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from quant_models import odd_arch, quantized

from quant.synthetic import SyntheticModel, write_pth
from rwkvcli import Model
from rwkvcli.runtime.native import NativeModel

PAIRS = (7, 30, 52)
"""Of each layer: rows with their negatives. There are 104 rows."""
TOKENS = 200


def test_active_channels_of_each_layer(tmp_path: Path) -> None:
    arch = odd_arch("7", n_layer=len(PAIRS))
    tensors = dict(SyntheticModel(arch))
    for layer, pairs in enumerate(PAIRS):
        key = tensors[f"blocks.{layer}.ffn.key.weight"]
        key[pairs : 2 * pairs] = -key[:pairs]
        key[2 * pairs :] = 0
    write_pth(tmp_path / "small.pth", tensors)
    quantized(tmp_path / "small.pth", tmp_path / "kn.safetensors", "int8", ffn_value="kn")
    model = Model.load(tmp_path / "kn.safetensors", threads=2)
    assert isinstance(model.backend, NativeModel)
    tokens = np.random.default_rng(0).integers(0, 256, TOKENS)
    expected = [TOKENS * pairs for pairs in PAIRS]

    model.backend.count_active_channels(True)
    model.forward(tokens[:50], model.new_state())
    model.backend.count_active_channels(True)  # begins anew
    model.forward(tokens, model.new_state())
    assert list(model.backend.active_channels) == expected
    model.backend.count_active_channels(True)
    state = model.new_state()
    for token in tokens:
        model.forward([int(token)], state)
    assert list(model.backend.active_channels) == expected
    model.backend.count_active_channels(False)
    model.forward(tokens, model.new_state())
    assert list(model.backend.active_channels) == expected
