"""From the tensors of a checkpoint to the logical ones of the model file: matrices [out, in], vectors flat.

The rules are those of `quant/container/FORMAT.md`. Only orientation changes, never a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from quant.arch import Arch, Shape, expected

if TYPE_CHECKING:
    from quant.arrays import F32

MIX_ORDER = "wkvrg"
"""In which order v6's `time_maa_w2` [5, Dm, C] holds its five matrices."""

_TRANSPOSED = frozenset(
    f"att.{name}"
    for name in (*(f"{x}{i}" for x in "wavg" for i in "12"), "time_maa_w1", "time_decay_w1", "time_decay_w2")
)  # fmt: skip
_MIX = "att.time_maa_w2"
LOW_RANK = _TRANSPOSED | {_MIX}
"""Low-rank matrices, of which most other layouts store the transpose."""
_ORDER = {"ln0": 0, "ln1": 1, "att": 2, "ln2": 3, "ffn": 4}


class Turn(Enum):
    """How a logical tensor comes from the one in the checkpoint."""

    KEEP = "as it is"
    TRANSPOSE = "transposed"
    PICK = "transposed matrix number `matrix` of a tensor of three dimensions"


class Logical(NamedTuple):
    """One tensor of the model file and where it comes from."""

    shape: Shape
    source: str
    """Canonical name in the checkpoint."""
    turn: Turn
    matrix: int = 0


def logical_tensors(arch: Arch) -> dict[str, Logical]:
    """{logical name: where from} in the order of use: emb, blocks in order, ln_out, head."""
    result: dict[str, Logical] = {}
    for name, shape in sorted(expected(arch).items(), key=lambda item: _place(item[0])):
        suffix = name.split(".", 2)[2] if name.startswith("blocks.") else ""
        if suffix == _MIX:
            for index, letter in enumerate(MIX_ORDER):
                result[f"{name}.{letter}"] = Logical((shape[2], shape[1]), name, Turn.PICK, index)
        elif suffix in _TRANSPOSED:
            result[name] = Logical((shape[1], shape[0]), name, Turn.TRANSPOSE)
        else:
            result[name] = Logical(shape, name, Turn.KEEP)
    return result


def turned(values: F32, item: Logical) -> F32:
    """The logical tensor, C-contiguous, of the checkpoint's (shaped as `quant.arch.expected` says)."""
    import numpy as np

    if item.turn is Turn.PICK:
        values = values[item.matrix]
    if item.turn is not Turn.KEEP:
        values = values.T
    return np.ascontiguousarray(values).reshape(item.shape)


def restored(parts: Sequence[F32], item: Logical) -> F32:
    """The checkpoint's tensor of its logical ones: the inverse of `turned`. `item` is what they have in common."""
    import numpy as np

    if item.turn is Turn.PICK:
        return np.stack([part.T for part in parts])
    return np.ascontiguousarray(parts[0].T) if item.turn is Turn.TRANSPOSE else parts[0]


def _place(name: str) -> tuple[int, int, int]:
    """Sort key: part of the model, block, part of the block."""
    first, *rest = name.split(".")
    if first == "blocks":
        return 1, int(rest[0]), _ORDER[rest[1]]
    return {"emb": 0, "ln_out": 2, "head": 3}[first], 0, 0
