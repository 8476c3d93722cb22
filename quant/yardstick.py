"""How large llama.cpp makes a model in Q4_K_M, in Q5_K_M and in Q6_K: what the default recipes of int4, int5 and int6 have
to be no larger than.

The rules are those of llama.cpp's `src/llama-quant.cpp` for its RWKV models: matrices are Q4_K (4.5 bits a weight) or Q5_K (5.5), the
head is Q6_K (6.5625), or all of them are, and they fall back to Q5_0 (5.5), Q5_1 (6) and Q8_0 (8.5) where rows are no
multiple of 256, then to f16.
The names of RWKV's tensors match none of the rules that give some attention and FFN tensors more bits. Low-rank
factors stay f16, `w1`, `w2` and what RWKV-6 has of them f32, as its converter writes them.
"""

from __future__ import annotations

import math

from quant.arch import Arch
from quant.orient import logical_tensors

_LONG, _SHORT = 256, 32
"""Weights in a block of the K formats and of the older ones."""
_Q4_K, _Q5_K, _Q6_K = (4.5, 5.5), (5.5, 6.0), (6.5625, 8.5)
"""Bits of a weight, and of one in a row that is no multiple of _LONG."""
_F32_LEAVES = ("w1", "w2", "time_decay_w1", "time_decay_w2")
_LOW_RANK_LEAVES = (*_F32_LEAVES, "a1", "a2", "v1", "v2", "g1", "g2")


_WORLD_VOCABULARY = 1_159_790
"""Bytes of RWKV's World vocabulary in a GGUF file: 373,358 of text, a length and a type for each of 65,536 tokens."""


def q4_k_m_bytes(arch: Arch) -> int:
    """Bytes of the tensors of a model of `arch`, and of its vocabulary where that is known to be World."""
    return _bytes(arch, _Q4_K)


def q5_k_m_bytes(arch: Arch) -> int:
    """The same, in Q5_K_M."""
    return _bytes(arch, _Q5_K)


def q6_k_bytes(arch: Arch) -> int:
    """The same, in Q6_K."""
    return _bytes(arch, _Q6_K)


def _bytes(arch: Arch, form: tuple[float, float]) -> int:
    tensors = sum(_bits(name, item.shape, form) for name, item in logical_tensors(arch).items()) / 8
    return int(tensors) + (_WORLD_VOCABULARY if is_world(arch.vocab_size) else 0)


def is_world(vocab_size: int) -> bool:
    """Whether a model with so many tokens has the World vocabulary."""
    return 65529 <= vocab_size <= 65536


def _bits(name: str, shape: tuple[int, ...], form: tuple[float, float]) -> float:
    weights = math.prod(shape)
    leaf = name.rpartition(".")[2]
    if ".time_maa_w" in name and len(shape) == 2:
        return 32 * weights
    if leaf in _LOW_RANK_LEAVES:
        return (32 if leaf in _F32_LEAVES else 16) * weights
    if not name.endswith(".weight") or len(shape) != 2:
        return 32 * weights
    if shape[1] % _SHORT:
        return 16 * weights
    long, short = _Q6_K if name == "head.weight" else form
    return (short if shape[1] % _LONG else long) * weights
