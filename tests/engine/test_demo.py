"""The built-in model has learned English, and quantizing it costs what it should."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from quant.container.reader import ModelFile
from quant.methods import numpy_encoder
from quant.pipeline import quantize
from rwkvcli import Model
from rwkvcli.runtime.model import demo_path

# The opening of Pride and Prejudice (Jane Austen, 1813), which is not among the books it was trained on.
TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of "
    "a wife.\n\nHowever little known the feelings or views of such a man may be on his first entering a "
    "neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is considered as "
    "the rightful property of some one or other of their daughters.\n"
)


def bits_per_byte(model: Model) -> float:
    ids = model.tokenizer.encode("\n" + TEXT)
    logits = model.forward(ids[:-1], model.new_state(), all_logits=True).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(ids) - 1), ids[1:]]
    return float((np.log(np.exp(logits).sum(axis=1)) - chosen).mean() / np.log(2))


# The project's goal for int8 is 0.1 % of perplexity; for int4, what Q4_K_M with an importance matrix costs (3.44 %). int6
# and int5 diverge by 1.7e-4 and 3.9e-4 nats (docs/quality.md), so a byte's loss changes by the root of twice that: three
# errors of the mean.
SIX, FIVE = ((kl + 3 * math.sqrt(2 * kl / len(TEXT))) / math.log(2) for kl in (1.7e-4, 3.9e-4))


@pytest.mark.parametrize(
    ("kind", "cost"),
    [("int8", math.log2(1.001)), ("int6", SIX), ("int5", FIVE), ("int4", math.log2(1.0344))],
)
def test_the_demo_predicts_english(tmp_path: Path, kind: str, cost: float) -> None:
    full = bits_per_byte(Model.load("demo"))
    assert full < 2.03  # 1.74 on the validation text, and three standard errors of 380 bytes (1.85 bits each)
    with ModelFile.open(demo_path()) as source:
        quantize(source, tmp_path / "q.safetensors", kind, encoder=numpy_encoder())
    assert bits_per_byte(Model.load(tmp_path / "q.safetensors")) < full + cost
