"""RWKV-6 and 7 as llama.cpp stores them in GGUF: mixes in one tensor, low-rank matrices transposed, r_k flat.

v6 files made from a Hugging Face configuration with `rescale_every` have two matrices of each block divided by powers
of two, which the metadata tell and which is undone here; block 0's value residual in v7 is a copy of other tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import numpy as np

from quant.arrays import Array
from quant.checkpoints.layouts.piece import (
    Contents,
    Names,
    Piece,
    Pieces,
    collected,
    layer_of,
    plain,
    rows_of,
    suffix_of,
    swapped,
)
from quant.checkpoints.tensor_file import RawTensor
from quant.errors import FormatError, UnsupportedModel, quoted
from quant.orient import LOW_RANK, MIX_ORDER

V7_MIXES = "rwkvag"
"""The order of the six mixes in v7's `time_mix_lerp_fused`."""
HYBRIDS = {
    "rwkv6qwen2": "a hybrid of RWKV-6 and Qwen2",
    "arwkv7": "a hybrid of RWKV-7 and a transformer (ARWKV)",
}
RESCALED = ("att.output.weight", "ffn.value.weight")
"""What is divided by 2 to the power of (block // rescale_every_n_layers)."""

_NORMS = {"attn_norm": "ln1", "attn_norm_2": "ln2", "time_mix_ln": "att.ln_x"}
_OUTER = {
    "token_embd.weight": "emb.weight",
    **{f"token_embd_norm.{part}": f"blocks.0.ln0.{part}" for part in ("weight", "bias")},
    **{f"output_norm.{part}": f"ln_out.{part}" for part in ("weight", "bias")},
    "output.weight": "head.weight",
}
_COMMON = {
    **{
        f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in _NORMS.items() for part in ("weight", "bias")
    },
    **{f"time_mix_{name}.weight": f"att.{name}.weight" for name in ("key", "value", "receptance", "output")},
    **{f"channel_mix_{name}.weight": f"ffn.{name}.weight" for name in ("key", "value")},
}
_V6 = {
    **_COMMON,
    "time_mix_gate.weight": "att.gate.weight",
    "channel_mix_receptance.weight": "ffn.receptance.weight",
    "channel_mix_lerp_k.weight": "ffn.time_maa_k",
    "channel_mix_lerp_r.weight": "ffn.time_maa_r",
    **{f"time_mix_lerp_{mix}.weight": f"att.time_maa_{mix}" for mix in f"x{MIX_ORDER}"},
    "time_mix_w1.weight": "att.time_maa_w1",
    "time_mix_w2.weight": "att.time_maa_w2",
    "time_mix_decay.weight": "att.time_decay",
    "time_mix_decay_w1.weight": "att.time_decay_w1",
    "time_mix_decay_w2.weight": "att.time_decay_w2",
    "time_mix_first.weight": "att.time_faaaa",
}
_V7 = {
    **_COMMON,
    "channel_mix_lerp_k.weight": "ffn.x_k",
    **{f"time_mix_{x}{i}.weight": f"att.{x}{i}" for x in "wavg" for i in "012" if f"{x}{i}" != "g0"},
    **{f"time_mix_{name}.weight": f"att.{name}" for name in ("k_k", "k_a", "r_k")},
}
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)", re.DOTALL)
NAMES = {"rwkv6": Names(_OUTER, _BLOCK, _V6), "rwkv7": Names(_OUTER, _BLOCK, _V7)}
"""{architecture: its naming table}."""
FUSED = "time_mix_lerp_fused.weight"
_UNUSED = re.compile(r"blocks\.0\.att\.v[012]")


def matches(contents: Contents) -> bool:
    """Whether this is a GGUF file."""
    return contents.format == "gguf"


def pieces(contents: Contents) -> Pieces:
    """See `quant.checkpoints.layouts`. UnsupportedModel: not RWKV-6 or 7, or a part of a model in several files."""
    architecture = contents.numbers.get("general.architecture")
    if architecture in HYBRIDS:
        raise UnsupportedModel(f"{contents.where} holds {HYBRIDS[architecture]}: not supported")
    if architecture not in NAMES:
        raise UnsupportedModel(
            f"{contents.where} holds a model of kind {quoted(str(architecture))}, not RWKV-6 or 7"
        )
    if _whole_number(contents, "split.count", 1) > 1:
        raise UnsupportedModel(
            f"{contents.where} is a part of a model in several files: not supported",
            hint="join them with llama.cpp's `llama-gguf-split --merge`",
        )
    return collected(contents, _pairs(contents, str(architecture)))


def _pairs(contents: Contents, architecture: str) -> Iterator[tuple[str, Piece]]:
    names = NAMES[architecture]
    every = (
        _whole_number(contents, f"{architecture}.rescale_every_n_layers", 0) if architecture == "rwkv6" else 0
    )
    head_size = _whole_number(contents, f"{architecture}.wkv.head_size", 0)
    for stored, raw in contents.tensors.items():
        match = _BLOCK.fullmatch(stored)
        if match is not None and match[2] == FUSED:
            letters, prefix = (MIX_ORDER, "time_maa_") if architecture == "rwkv6" else (V7_MIXES, "x_")
            for mix, piece in rows_of(contents, stored, letters):
                yield f"blocks.{match[1]}.att.{prefix}{mix}", piece
            continue
        canonical = names.canonical(stored) or stored
        if _UNUSED.fullmatch(canonical):
            continue
        yield canonical, _turned(canonical, stored, raw, contents.where, head_size=head_size, every=every)


def _turned(canonical: str, stored: str, raw: RawTensor, where: str, *, head_size: int, every: int) -> Piece:
    suffix = suffix_of(canonical)
    piece = plain(stored, raw)
    if suffix in LOW_RANK:
        return swapped(piece)
    if suffix == "att.r_k" and len(raw.shape) == 1:
        if not head_size or raw.shape[0] % head_size:
            raise FormatError(
                f"{where}: tensor {quoted(stored)} of {raw.shape[0]} does not hold heads of {head_size}"
            )
        return piece._replace(shape=(raw.shape[0] // head_size, head_size))
    power = layer_of(canonical) // every if every and suffix in RESCALED else 0
    return piece._replace(take=partial(_scaled, power=power), computed=True) if power else piece


def _scaled(values: Array, power: int) -> Array:
    """Times 2 to the power of `power`: exact but where values were below the smallest numbers of their dtype."""
    return np.ldexp(values, power)


def _whole_number(contents: Contents, key: str, default: int) -> int:
    value = contents.numbers.get(key, default)
    if type(value) is not int or not 0 <= value < 1 << 24:
        raise FormatError(f"{contents.where}: its {key} is {quoted(str(value))}")
    return value
