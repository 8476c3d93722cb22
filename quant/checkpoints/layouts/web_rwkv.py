"""The .st files of web-rwkv and Ai00: float16 safetensors under names that look like the original ones.

What their converter does: v6's `time_maa_*` become `time_mix_*`, `time_faaaa` becomes `time_first` (still the bonus itself,
no logarithm), 5.1's head scalars are repeated to [H, N] (numerically a 5.2 model), low-rank matrices are transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from quant.checkpoints.layouts.piece import Contents, Piece, Pieces, collected, plain, suffix_of, swapped
from quant.checkpoints.naming import canonical_name
from quant.errors import UnsupportedModel
from quant.orient import LOW_RANK

_DOWN = re.compile(r"att\.([wag]1|time_decay_w1)")
"""Factors that come in every block and are [C, D] in the original."""


def matches(contents: Contents) -> bool:
    """Whether names or shapes are those of the converter. Files of v4 and 5.0 (r2) look the same in both layouts.

    UnsupportedModel for the one case in which both are possible and mean different models.
    """
    if contents.format != "safetensors":
        return False
    shapes = {canonical_name(name): raw.shape for name, raw in contents.tensors.items()}
    width = (shapes.get("emb.weight") or (0,))[-1]
    scalar_bonus = False
    for name, shape in shapes.items():
        suffix = suffix_of(name)
        if suffix == "att.time_mix_x" or (suffix == "att.time_first" and len(shape) == 2):
            return True
        if _DOWN.fullmatch(suffix) and len(shape) == 2 and shape[0] != width == shape[1]:
            return True
        scalar_bonus |= suffix == "att.time_first" and "blocks.0.att.ln_x.weight" in shapes
    half = {raw.dtype for raw in contents.tensors.values()} == {"f16"}
    if scalar_bonus and half:
        raise UnsupportedModel(
            f"{contents.where}: its time_first may be RWKV-5's bonus or, as web-rwkv renames tensors, its logarithm: "
            "the file does not tell",
            hint="use the .pth that it was converted from",
        )
    return False


def pieces(contents: Contents) -> Pieces:
    """See `quant.checkpoints.layouts`."""
    return collected(contents, _pairs(contents))


def _pairs(contents: Contents) -> Iterator[tuple[str, Piece]]:
    v6 = any(name.endswith("att.time_mix_x") for name in contents.tensors)
    for name, raw in contents.tensors.items():
        canonical = canonical_name(name)
        if v6:
            canonical = canonical.replace(".time_mix_", ".time_maa_")
        if suffix_of(canonical) == "att.time_first" and len(raw.shape) == 2:
            canonical = canonical.replace("time_first", "time_faaaa")
        piece = plain(name, raw)
        yield canonical, swapped(piece) if suffix_of(canonical) in LOW_RANK else piece
