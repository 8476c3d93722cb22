"""Layouts: what other tools call the tensors of a model and how they turn them. One module per layout.

A layout has `matches(contents)`, which looks at names and shapes, and `pieces(contents)`, which says of every canonical
tensor what stored one it is made of and how. To add one, write its module and put it into LAYOUTS.
"""

from __future__ import annotations

from types import ModuleType

from quant.checkpoints.layouts import blinkdl, fla, llama_cpp, rwkv_cpp, transformers, web_rwkv
from quant.checkpoints.layouts.piece import Contents, Piece, Pieces

__all__ = ["LAYOUTS", "Contents", "Piece", "Pieces", "pieces_of"]

LAYOUTS: tuple[ModuleType, ...] = (llama_cpp, rwkv_cpp, fla, transformers, web_rwkv, blinkdl)
"""In the order in which they are tried; the last takes what is left."""


def pieces_of(contents: Contents) -> tuple[str, Pieces]:
    """(name of the layout, its pieces). FormatError and UnsupportedModel: what cannot be told or is not supported."""
    layout = next(item for item in LAYOUTS if item.matches(contents))
    return layout.__name__.rpartition(".")[2], layout.pieces(contents)
