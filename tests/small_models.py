"""Small seeded models of every version, for tests of several folders, and what they say about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from quant.checkpoints import open_checkpoint
from quant.checkpoints.write import write_safetensors
from quant.methods import numpy_encoder
from quant.pipeline import quantize
from quant.synthetic import make_checkpoint
from rwkvcli import State

VERSIONS = ["4", "5.0", "5.1", "5.2", "6", "7"]

ModelMaker = Callable[..., Path]


def model_maker(folder: Path) -> ModelMaker:
    """make_model(version, kind, ...) -> path of a model file in `folder`, made once for the same arguments."""

    def make(
        version: str,
        kind: str,
        *,
        n_layer: int = 2,
        n_embd: int = 64,
        head_size: int = 64,
        vocab_size: int = 300,
        ffn_value: str = "auto",
        seed: int = 1,
    ) -> Path:
        stem = f"v{version}-{n_layer}x{n_embd}-{head_size}-{vocab_size}-{seed}"
        out = folder / f"{stem}-{kind}-{ffn_value}.safetensors"
        if not out.exists():
            source = folder / f"{stem}.safetensors"
            if not source.exists():
                write_safetensors(
                    source, make_checkpoint(version, n_layer, n_embd, vocab_size, head_size, seed=seed)
                )
            with open_checkpoint(source) as checkpoint:
                quantize(checkpoint, out, kind, encoder=numpy_encoder(), ffn_value=ffn_value)
        return out

    return make


def same(a: State, b: State) -> bool:
    """Whether two states have the same values."""
    x, y = a.to_numpy(), b.to_numpy()
    return x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x)
