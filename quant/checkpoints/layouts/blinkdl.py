"""The original names and orientations (BlinkDL's), under whatever prefixes training frameworks put before them."""

from __future__ import annotations

from quant.checkpoints.layouts.piece import Contents, Pieces, collected, renamed
from quant.checkpoints.naming import canonical_name


def matches(contents: Contents) -> bool:
    """Always: what is in no layout known is refused by its names, when the version is asked for."""
    return True


def pieces(contents: Contents) -> Pieces:
    """See `quant.checkpoints.layouts`."""
    return collected(contents, renamed(contents, canonical_name))
