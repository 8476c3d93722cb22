"""The golden cases: small models made from a seed, and what the reference package computes with them.

`tests/golden/NAME.safetensors` holds, for each case, the reference's logits and final state, not the model:
that is made again from its seed. A fingerprint of its weights tells drift of the random generator from a
wrong engine. The files are written by `tools/make_golden.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.arch import Arch, expected
from quant.checkpoints import open_checkpoint
from quant.methods import numpy_encoder
from quant.orient import logical_tensors, turned
from quant.pipeline import quantize
from quant.synthetic import SyntheticModel, synthetic_arch, write_pth, write_safetensors

Float32 = NDArray[np.float32]
GOLDEN = Path(__file__).resolve().parent.parent / "golden"
INTEGERS = [(kind, layout) for kind in ("int8", "int6", "int5", "int4") for layout in ("tile", "kn")]
"""The kinds that are made of codes of our own, in both layouts of ffn.value."""


@dataclass(frozen=True)
class Golden:
    """What the reference gave for a case."""

    tokens: list[int]
    positions: list[int]
    """The tokens (counted from 0) after which logits were kept."""
    logits: Float32
    """[positions, V], fed one token at a time."""
    state: dict[str, Float32]
    """After the last token, canonical names and forms."""
    spread: float
    """Largest difference of the reference's logits, all at once against one at a time, in parts of their
    range.
    """
    made_with: dict[str, str]


@dataclass(frozen=True)
class Case:
    """A model from a seed."""

    name: str
    version: str
    n_layer: int = 2
    n_embd: int = 128
    vocab_size: int = 1000
    head_size: int = 64
    n_ffn: int | None = None
    ranks: tuple[int, ...] | None = None
    time_first_is_log: bool = False
    ffn_density: float = 0.5
    seed: int = 1
    n_tokens: int = 48

    @property
    def arch(self) -> Arch:
        return synthetic_arch(
            self.version, self.n_layer, self.n_embd, self.vocab_size, self.head_size,
            n_ffn=self.n_ffn, ranks=self.ranks, time_first_is_log=self.time_first_is_log,
        )  # fmt: skip

    @property
    def model(self) -> SyntheticModel:
        """The model; v7 with random dummies in block 0, which nothing may use."""
        return SyntheticModel(self.arch, self.seed, self.ffn_density)

    def tokens(self) -> list[int]:
        """A walk over the vocabulary with a few repeats, the first and the last id among them."""
        walk = [(7 + 37 * i + 11 * i * i) % self.vocab_size for i in range(self.n_tokens)]
        walk[5], walk[6], walk[7] = 0, self.vocab_size - 1, self.vocab_size - 1
        return walk

    def logical(self) -> dict[str, Float32]:
        """The weights by logical name, as a model file has them."""
        checkpoint = dict(self.model)
        return {
            name: turned(checkpoint[item.source].reshape(expected(self.arch)[item.source]), item)
            for name, item in logical_tensors(self.arch).items()
        }

    def write(self, path: Path) -> Path:
        """The checkpoint as a .pth or .safetensors file."""
        (write_pth if path.suffix == ".pth" else write_safetensors)(path, self.model)
        return path

    def fingerprint(self) -> NDArray[np.float64]:
        """[tensors, 2] sums and sums of magnitudes: blind to last-bit differences of a processor's `exp`
        and `pow`.
        """
        sums = [
            (values.sum(dtype=np.float64), np.abs(values).sum(dtype=np.float64)) for _, values in self.model
        ]
        return np.array(sums)

    def golden(self) -> Golden:
        """The stored reference results. Fails when this model is not the one they belong to."""
        from safetensors import safe_open

        with safe_open(GOLDEN / f"{self.name}.safetensors", framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            facts = json.loads(file.metadata()["golden"])
        magnitude = arrays["fingerprint"][:, 1:]
        assert np.all(np.abs(self.fingerprint() - arrays["fingerprint"]) <= 1e-5 * magnitude), (
            f"the seeded model {self.name} has changed; make its golden file again with tools/make_golden.py"
        )
        prefix = "state/"
        state = {
            name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)
        }
        made_with = {name: facts[name] for name in ("rwkv", "torch")}
        return Golden(
            arrays["tokens"].tolist(), facts["positions"], arrays["logits"], state, facts["spread"], made_with
        )


@dataclass(frozen=True)
class GoldenCase:
    """A case, its model on disk and what the reference computed with it."""

    case: Case
    checkpoint: Path
    """Safetensors, BlinkDL's names and shapes, float32."""
    golden: Golden

    @property
    def tokens(self) -> list[int]:
        return self.golden.tokens

    @property
    def positions(self) -> list[int]:
        return self.golden.positions

    @property
    def logits(self) -> NDArray[np.float32]:
        """[positions, V]"""
        return self.golden.logits

    def model_file(self, kind: str, ffn_value: str = "auto") -> Path:
        """The model file that `rwkv quantize` makes of it; made once."""
        path = self.checkpoint.with_name(f"{kind}-{ffn_value}.safetensors")
        if not path.exists():
            with open_checkpoint(self.checkpoint) as checkpoint:
                quantize(checkpoint, path, kind, encoder=numpy_encoder(), ffn_value=ffn_value)
        return path


CASES = [
    Case("v4", "4", n_ffn=452),
    Case("v4-deep", "4", n_layer=5, n_embd=72, vocab_size=257, n_ffn=200, seed=2),
    Case("v5.0-log", "5.0", time_first_is_log=True, seed=3),
    Case("v5.0", "5.0", seed=4),
    Case("v5.1", "5.1", n_ffn=420, seed=5),
    Case("v5.2", "5.2", seed=6),
    Case("v5.2-small-heads", "5.2", n_layer=3, n_embd=64, vocab_size=256, head_size=8, seed=7),
    Case("v6", "6", seed=8),
    Case("v6-odd", "6", n_layer=3, n_embd=80, vocab_size=257, head_size=16, n_ffn=300, ranks=(6, 10), seed=9),
    Case("v7", "7", n_layer=3, seed=10),
    Case(
        "v7-odd",
        "7",
        n_layer=3,
        n_embd=80,
        vocab_size=257,
        head_size=16,
        n_ffn=300,
        ranks=(8, 12, 6, 20),
        seed=11,
    ),
    Case("v7-one-head", "7", n_embd=64, vocab_size=256, ranks=(16, 16, 16, 16), ffn_density=0.13, seed=12),
]
BY_NAME = {case.name: case for case in CASES}


def relative_difference(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Largest difference in parts of the expected logits' range."""
    expected = expected.astype(np.float64)
    return float(np.abs(found - expected).max() / (expected.max() - expected.min()))
