"""RWKV-7 as flash-linear-attention names it (fla-hub/rwkv7-*): low-rank factors are linear layers, so transposed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from quant.checkpoints.layouts.piece import (
    Contents,
    Names,
    Piece,
    Pieces,
    collected,
    plain,
    rows_of,
    suffix_of,
    swapped,
)
from quant.checkpoints.naming import without_training_prefixes
from quant.orient import LOW_RANK

MIXES = "rwkvag"
"""The order of the six mixes where they are one tensor."""
_NORMS = {"pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2", "attn.g_norm": "att.ln_x"}
_LINEAR = {"r_proj": "receptance", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
NAMES = Names(
    {
        "model.embeddings.weight": "emb.weight",
        "model.norm.weight": "ln_out.weight",
        "model.norm.bias": "ln_out.bias",
        "lm_head.weight": "head.weight",
    },
    re.compile(r"model\.layers\.(\d+)\.(.+)", re.DOTALL),
    {
        **{
            f"{theirs}.{part}": f"{ours}.{part}"
            for theirs, ours in _NORMS.items()
            for part in ("weight", "bias")
        },
        **{f"attn.{theirs}.weight": f"att.{ours}.weight" for theirs, ours in _LINEAR.items()},
        **{f"attn.x_{mix}": f"att.x_{mix}" for mix in MIXES},
        **{f"attn.{name}": f"att.{name}" for name in ("k_k", "k_a", "r_k")},
        **{f"attn.{x}_lora.lora.0.weight": f"att.{x}1" for x in "wavg"},
        **{f"attn.{x}_lora.lora.2.weight": f"att.{x}2" for x in "wavg"},
        **{f"attn.{x}_lora.lora.2.bias": f"att.{x}0" for x in "wav"},
        "ffn.x_k": "ffn.x_k",
        "ffn.key.weight": "ffn.key.weight",
        "ffn.value.weight": "ffn.value.weight",
    },
)
_FUSED = re.compile(r"model\.layers\.(\d+)\.attn\.x_x")
"""The six mixes in files of fla's first months."""
_TELLING = re.compile(r"(^|\.)model\.layers\.\d+\.attn\.(g_norm|[wavg]_lora|x_[rwkvagx]$|k_k$)")


def matches(contents: Contents) -> bool:
    """Whether any name is fla's."""
    return any(_TELLING.search(name) for name in contents.tensors)


def pieces(contents: Contents) -> Pieces:
    """See `quant.checkpoints.layouts`."""
    return collected(contents, _pairs(contents))


def _pairs(contents: Contents) -> Iterator[tuple[str, Piece]]:
    for stored, raw in contents.tensors.items():
        name = without_training_prefixes(stored)
        fused = _FUSED.fullmatch(name)
        if fused is not None:
            for mix, piece in rows_of(contents, stored, MIXES):
                yield f"blocks.{fused[1]}.att.x_{mix}", piece
            continue
        canonical = NAMES.canonical(name) or name
        piece = plain(stored, raw)
        yield canonical, swapped(piece) if suffix_of(canonical) in LOW_RANK else piece
