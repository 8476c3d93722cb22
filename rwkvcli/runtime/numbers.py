"""Numbers of any library as Python's own; what only could be made into one is none."""

from __future__ import annotations

import operator
from typing import Any


def whole(value: Any) -> int:
    """`value` as an int. TypeError for what is no whole number, `True` and `False` among it."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def real(value: Any) -> float:
    """`value` as a float. TypeError for truth values and texts, TypeError, ValueError or OverflowError for the rest that is none."""
    if isinstance(value, bool | str | bytes | bytearray) or getattr(value, "dtype", None) == "bool":
        raise TypeError
    return float(value)
