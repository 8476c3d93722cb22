"""Small seeded models of every version, quantized once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import ModelMaker

from quant.checkpoints import open_checkpoint
from quant.checkpoints.write import write_safetensors
from quant.methods import numpy_encoder
from quant.pipeline import quantize
from quant.synthetic import make_checkpoint


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """make_model(version, kind, ...) -> path of a model file, made once for the same arguments."""
    folder = tmp_path_factory.mktemp("models")

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
