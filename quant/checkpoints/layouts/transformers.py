"""Names of the Hugging Face transformers: `rwkv` (v4), the remote code of `rwkv5` and `rwkv6`, candle's v6, and the
layouts of 2026 for v7, which keep the original names under a prefix, some with low-rank factors as linear layers.

Values are those of the original; `rescale_every` in the configuration is done at run time and is not in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from quant.checkpoints.layouts.piece import Contents, Piece, Pieces, collected, plain, suffix_of, swapped
from quant.checkpoints.naming import canonical_name
from quant.errors import UnsupportedModel, quoted

_OUTER = {"embeddings.weight": "emb.weight", "lm_head.weight": "head.weight"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(attention|feed_forward|att|ffn|pre_ln|ln[012])\.(.+)", re.DOTALL)
_PARTS = {"attention": "att", "feed_forward": "ffn", "pre_ln": "ln0"}
_MIXES = {"key": "k", "value": "v", "receptance": "r", "gate": "g"}
_LINEAR = re.compile(r"([wavg][12])\.weight")
"""A low-rank factor as a linear layer: [out, in], where the original is [in, out]."""
_TELLING = re.compile(
    r"(^|\.)(embeddings|lm_head)\.weight$|\.(attention|feed_forward|pre_ln)\.|\.att\.[wavg][012]\.weight$"
)


def matches(contents: Contents) -> bool:
    """Whether any name is one that the original does not have."""
    return any(_TELLING.search(name) for name in contents.tensors)


def pieces(contents: Contents) -> Pieces:
    """See `quant.checkpoints.layouts`."""
    return collected(contents, _pairs(contents))


def _pairs(contents: Contents) -> Iterator[tuple[str, Piece]]:
    v6 = any(name.endswith("time_decay_w1") for name in contents.tensors)
    width = next(
        (raw.shape[-1] for name, raw in contents.tensors.items() if _is_embedding(name, raw.shape)), 0
    )
    for name, raw in contents.tensors.items():
        canonical = _canonical(canonical_name(name), v6)
        piece = plain(name, raw)
        if _LINEAR.search(name) and len(raw.shape) == 2:
            yield canonical, _turned(piece, suffix_of(canonical), width, contents.where)
        else:
            yield canonical, piece


def _is_embedding(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith(("emb.weight", "embeddings.weight")) and len(shape) == 2


def _canonical(name: str, v6: bool) -> str:
    """The original name of one without prefixes."""
    if name in _OUTER:
        return _OUTER[name]
    match = _BLOCK.fullmatch(name)
    if match is None:
        return name
    layer, part, leaf = match.groups()
    mix = leaf.removeprefix("time_mix_")
    if mix != leaf:
        leaf = ("time_maa_" if v6 else "time_mix_") + _MIXES.get(mix, mix)
    low_rank = re.fullmatch(r"([wavg][012])\.weight", leaf)
    return f"blocks.{layer}.{_PARTS.get(part, part)}.{low_rank[1] if low_rank else leaf}"


def _turned(piece: Piece, suffix: str, width: int, where: str) -> Piece:
    """A factor of a linear layer as the original has it. Some conversions changed the name only, so the shape decides."""
    down = suffix.endswith("1")
    original, linear = (0, 1) if down else (1, 0)
    if piece.shape[original] == piece.shape[linear]:
        raise UnsupportedModel(
            f"{where}: whether {quoted(piece.source)} is transposed cannot be told from its shape",
            hint="use the original .pth",
        )
    return piece if piece.shape[original] == width else swapped(piece)
