"""Seeded random models of every version, at magnitudes like those of trained ones, for tests and benchmarks.

Every tensor is drawn from its own generator, seeded by (seed, name): the values depend neither on the order
nor on which other tensors are made, and a 7B model can be written one tensor at a time. No matrix is zero
(training scripts begin with zeros in many places, which would hide errors).

Vectors follow the initial values of the training scripts plus noise. Matrices are Gaussian, scaled so that r,
k, v and the ffn's inner values have standard deviation about 1 and each block adds about 0.5 to the residual
stream.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from quant.arch import VERSIONS, Arch, Shape, expected, stored_shape
from quant.checkpoints.write import write_pth, write_safetensors
from quant.errors import InvalidRequest

__all__ = [
    "SyntheticModel",
    "iter_checkpoint",
    "make_checkpoint",
    "synthetic_arch",
    "write_pth",
    "write_safetensors",
]

FloatArray = npt.NDArray[np.float32]

_V7_RANKS = {
    768: (64, 64, 32, 128), 1024: (64, 64, 32, 128), 2048: (96, 96, 64, 256), 2560: (96, 96, 64, 320),
    4096: (128, 128, 96, 480),
}  # fmt: skip
"""n_embd: (Dw, Da, Dv, Dg) of released models."""


def synthetic_arch(
    version: str,
    n_layer: int,
    n_embd: int,
    vocab_size: int,
    head_size: int = 64,
    *,
    n_ffn: int | None = None,
    ranks: tuple[int, ...] | None = None,
    time_first_is_log: bool = False,
) -> Arch:
    """An Arch with the usual sizes for what is not given.

    `ranks` are (Dm, Dd) for v6 and (Dw, Da, Dv, Dg) for v7. `time_first_is_log` selects the r1 form of 5.0
    and 5.1. InvalidRequest: unknown version, sizes below 1, n_embd no multiple of head_size, or ranks of a
    wrong number.
    """
    if version not in VERSIONS:
        raise InvalidRequest(f"unknown version {version}", hint=f"use one of {', '.join(VERSIONS)}")
    if min(n_layer, n_embd, vocab_size, head_size) < 1 or (version != "4" and n_embd % head_size):
        raise InvalidRequest(f"{n_layer} layers of {n_embd} with heads of {head_size} make no model")
    if time_first_is_log and version not in ("5.0", "5.1"):
        raise InvalidRequest(f"time_first is no form of version {version}'s bonus")
    if n_ffn is None:
        n_ffn = 4 * n_embd if version in ("4", "5.0", "7") else max(32, int(3.5 * n_embd) // 32 * 32)
    if ranks is None:
        ranks = _default_ranks(version, n_embd)
    if len(ranks) != {"6": 2, "7": 4}.get(version, 0):
        raise InvalidRequest(f"{len(ranks)} low-rank sizes given for version {version}")
    n_head, head_size = (0, 0) if version == "4" else (n_embd // head_size, head_size)
    sizes = {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "head_size": head_size}
    names = {"6": ("rank_mix", "rank_decay"), "7": ("rank_decay", "rank_iclr", "rank_value", "rank_gate")}
    low_rank = dict(zip(names.get(version, ()), ranks, strict=True))
    if n_layer == 1 and version == "7":
        low_rank["rank_value"] = 0
    return Arch(
        version,
        **sizes,
        n_ffn=n_ffn,
        vocab_size=vocab_size,
        **low_rank,
        time_first_is_log=time_first_is_log,
        ln0_fused=False,
    )


def _default_ranks(version: str, n_embd: int) -> tuple[int, ...]:
    if version == "6":
        return (32, 64) if n_embd < 4096 else (64, 128)
    if version == "7":
        rounded = (max(32, round(size / 32) * 32) for size in (
            1.8 * n_embd**0.5, 1.8 * n_embd**0.5, 1.3 * n_embd**0.5, 0.6 * n_embd**0.8
        ))  # fmt: skip
        return _V7_RANKS.get(n_embd, tuple(rounded))
    return ()


@dataclass(frozen=True)
class SyntheticModel:
    """A random model whose tensors are made on demand; iterate over it for (name, float32 array) pairs."""

    arch: Arch
    seed: int = 0
    ffn_density: float = 0.5
    """Share of the ffn's inner values that relu leaves above zero (about 0.13 in large trained models)."""
    layer0_value: bool = True
    """v7: whether block 0 has v0, v1, v2 as BlinkDL's files do. They are random, to expose their use."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """{name: shape as stored in files, mix vectors [1, 1, C]}, in file order."""
        shapes = expected(self.arch)
        if self.arch.version == "7" and self.layer0_value:
            c, rank = self.arch.n_embd, self.arch.rank_value or 32
            shapes |= {"blocks.0.att.v0": (c,), "blocks.0.att.v1": (c, rank), "blocks.0.att.v2": (rank, c)}
        return {name: stored_shape(self.arch, name, shape) for name, shape in shapes.items()}

    def __iter__(self) -> Iterator[tuple[str, FloatArray]]:
        for name, shape in self.shapes.items():
            yield name, self._make(name, shape)

    def tensor(self, name: str) -> FloatArray:
        """One tensor in its stored shape. KeyError when the model has none of that name."""
        return self._make(name, self.shapes[name])

    def _make(self, name: str, shape: Shape) -> FloatArray:
        random = _Random(self.seed, name)
        if name in ("emb.weight", "head.weight"):
            return random.normal(shape, 0.5 if name == "emb.weight" else 3 / math.sqrt(shape[1]))
        if ".ln" in name or name.startswith("ln_out."):
            return _norm(name, random, shape)
        _, layer, suffix = name.split(".", 2)
        block = _Block(self.arch, int(layer))
        if suffix == "ffn.key.weight":
            return self._ffn_key(random, shape, int(layer))
        if suffix == "ffn.value.weight":
            return random.normal(shape, 0.5 / math.sqrt(shape[1] * self._ffn_power()))
        if suffix.endswith(".weight"):
            return random.normal(shape, (0.7 if suffix == "att.output.weight" else 1) / math.sqrt(shape[1]))
        noise, values = block.vector(suffix, shape)
        if values is None:
            return random.normal(shape, noise)
        return (values.reshape(shape) + random.normal(shape, noise)).astype(np.float32)

    def _threshold(self) -> float:
        """By how many standard deviations the ffn's inner values lie below zero."""
        return -NormalDist().inv_cdf(self.ffn_density)

    def _ffn_power(self) -> float:
        """Second moment of relu(z - threshold)**2 for a standard normal z."""
        z = np.linspace(0, 12, 4001)
        density = np.exp(-((z + self._threshold()) ** 2) / 2) / math.sqrt(2 * math.pi)
        return float((z**4 * density).sum() * (z[1] - z[0]))

    def _ffn_key(self, random: _Random, shape: Shape, layer: int) -> FloatArray:
        """Gaussian rows of gain 1, moved along the bias of ln2 (which x holds) so that K·x has mean
        -threshold.
        """
        mix_name = (
            "x_k" if self.arch.version == "7" else "time_maa_k" if self.arch.version == "6" else "time_mix_k"
        )
        mix = self.tensor(f"blocks.{layer}.ffn.{mix_name}").reshape(-1)
        bias, weight = (self.tensor(f"blocks.{layer}.ln2.{part}") for part in ("bias", "weight"))
        spread = (mix**2 + (1 - mix) ** 2) * weight**2  # variance of each x, two tokens being independent
        if self.ffn_density == 0.5:
            return random.normal(shape, 1 / math.sqrt(float(np.sum(spread + bias**2))))
        values = random.normal(shape, 1 / math.sqrt(float(np.sum(spread))))
        square = float(bias @ bias)
        common = float(spread @ bias**2) / square**2  # variance that moving by 1 adds to all rows alike
        threshold = self._threshold()
        move = threshold / math.sqrt(max(1 - threshold**2 * common, 0.5))
        values -= (move / square) * bias
        return values


class _Random:
    """Normal draws of one tensor."""

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        self.generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))

    def normal(self, shape: Shape, deviation: float) -> FloatArray:
        values = self.generator.standard_normal(shape, dtype=np.float32)
        values *= np.float32(deviation)
        return values


def _norm(name: str, random: _Random, shape: Shape) -> FloatArray:
    if name.endswith(".bias"):
        return random.normal(shape, 0.3 if ".ln2." in name else 0.1)
    return np.abs(1 + random.normal(shape, 0.2)).astype(np.float32)


@dataclass(frozen=True)
class _Block:
    """Values for the small tensors of one block, after the training scripts' initial ones."""

    arch: Arch
    layer: int

    def vector(self, suffix: str, shape: Shape) -> tuple[float, npt.NDArray[np.float64] | None]:
        """(standard deviation of the noise, mean values or None for 0) of `suffix`, e.g. "att.time_decay"."""
        size = math.prod(shape)
        index = np.arange(size)
        later = self.layer / max(self.arch.n_layer - 1, 1)
        earlier = 1 - self.layer / self.arch.n_layer
        fraction = index / max(size - 1, 1)
        zigzag = ((index + 1) % 3 - 1.0) / 2
        factor = self._factor(suffix, shape)
        if factor is not None:
            return factor, None
        leaf = suffix.partition(".")[2]
        if self.arch.version == "7":
            return 0.05, self._v7(suffix, index / size, fraction, later, earlier)
        if leaf == "time_decay":
            span, lowest = (8.0, -5.0) if self.arch.version == "4" else (5.0, -6.0)
            return 0.2, lowest + span * fraction ** (0.7 + 1.3 * later)
        if leaf == "time_first":
            return 0.2, math.log(0.3) + zigzag
        if leaf == "time_faaaa":
            return 0.1, later * (1 - fraction) + 0.1 * zigzag
        mix = index / size
        powers = {"r": earlier / 2, "g": earlier / 2, "x": earlier, "w": earlier, "k": earlier, "v": earlier}
        values = mix ** powers[leaf[-1]] + (0.3 * later if leaf[-1] == "v" else 0)
        return 0.05, 1 - values if self.arch.version == "6" else values

    def _factor(self, suffix: str, shape: Shape) -> float | None:
        """Standard deviation of a low-rank factor (or r_k, k_a), None for other tensors."""
        leaf = suffix.partition(".")[2]
        rows = math.sqrt(shape[-2]) if len(shape) > 1 else 1.0
        if leaf in ("time_maa_w1", "time_decay_w1", "w1", "a1", "v1", "g1"):
            return 0.7 / rows
        if leaf in ("time_maa_w2", "time_decay_w2", "w2", "a2", "v2"):
            return 0.5 / rows
        return 1.5 / rows if leaf == "g2" else None

    def _v7(
        self,
        suffix: str,
        mix: npt.NDArray[np.float64],
        fraction: npt.NDArray[np.float64],
        later: float,
        earlier: float,
    ) -> npt.NDArray[np.float64]:
        size = self.arch.head_size
        within = (np.arange(mix.size) % size - (size - 1) / 2) / max((size - 1) / 2, 1)
        curve = within * np.abs(within)
        linear = fraction - 0.5
        makers: dict[str, Callable[[], npt.NDArray[np.float64]]] = {
            "att.w0": lambda: -5.5 + 6 * fraction ** (1 + later**0.3) + 2.5 * curve,
            "att.a0": lambda: -0.19 + 0.3 * curve + 0.4 * linear,
            "att.v0": lambda: 0.73 - 0.4 * linear,
            "att.k_k": lambda: 0.71 - 0.1 * linear,
            "att.k_a": lambda: np.full(mix.size, 1.02),
            "att.r_k": lambda: np.full(mix.size, -0.04),
            "ffn.x_k": lambda: 1 - mix ** (earlier**4),
            **{f"att.x_{n}": partial(_one_minus_power, mix, 0.2 * earlier) for n in "rg"},
            **{f"att.x_{n}": partial(_one_minus_power, mix, 0.9 * earlier) for n in "wa"},
            **{f"att.x_{n}": partial(_one_minus_power, mix, 0.7 * earlier) for n in "kv"},
        }
        return makers[suffix]()


def _one_minus_power(mix: npt.NDArray[np.float64], power: float) -> npt.NDArray[np.float64]:
    return np.asarray(1 - mix**power)


def iter_checkpoint(
    version: str,
    n_layer: int,
    n_embd: int,
    vocab_size: int,
    head_size: int = 64,
    *,
    seed: int = 0,
    n_ffn: int | None = None,
    ranks: tuple[int, ...] | None = None,
    time_first_is_log: bool = False,
    ffn_density: float = 0.5,
    layer0_value: bool = True,
) -> SyntheticModel:
    """A random model to iterate over: (BlinkDL name, float32 array in its stored shape), one tensor at a
    time.

    The arguments are those of `synthetic_arch` and `SyntheticModel`. Give it to `write_pth` or
    `write_safetensors`.
    """
    arch = synthetic_arch(
        version,
        n_layer,
        n_embd,
        vocab_size,
        head_size,
        n_ffn=n_ffn,
        ranks=ranks,
        time_first_is_log=time_first_is_log,
    )
    if not 0 < ffn_density < 1:
        raise InvalidRequest(f"an ffn density of {ffn_density} is not between 0 and 1")
    return SyntheticModel(arch, seed, ffn_density, layer0_value)


def make_checkpoint(
    version: str,
    n_layer: int,
    n_embd: int,
    vocab_size: int,
    head_size: int = 64,
    *,
    seed: int = 0,
    n_ffn: int | None = None,
    ranks: tuple[int, ...] | None = None,
    time_first_is_log: bool = False,
    ffn_density: float = 0.5,
    layer0_value: bool = True,
) -> dict[str, FloatArray]:
    """All tensors of a random model at once: {BlinkDL name: float32 array in its stored shape}.

    The arguments are those of `iter_checkpoint`.
    """
    return dict(
        iter_checkpoint(
            version,
            n_layer,
            n_embd,
            vocab_size,
            head_size,
            seed=seed,
            n_ffn=n_ffn,
            ranks=ranks,
            time_first_is_log=time_first_is_log,
            ffn_density=ffn_density,
            layer0_value=layer0_value,
        )
    )


def shapes_as_stored(arch: Arch) -> Mapping[str, Shape]:
    """{name: shape as BlinkDL's files have it} of a model of `arch`, v7's block-0 dummies included."""
    return SyntheticModel(arch).shapes
