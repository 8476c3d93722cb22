"""How a canonical tensor comes out of a file of another layout, and what all layouts share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from quant.arch import Shape, logical_shape
from quant.arrays import Array
from quant.checkpoints.tensor_file import RawTensor
from quant.errors import FormatError, quoted

Take = Callable[[Array], Array]


class Piece(NamedTuple):
    """One canonical tensor: which stored one it is made of, and how."""

    source: str
    """Name in the file."""
    shape: Shape
    """Logical shape (see `quant.arch.logical_shape`)."""
    take: Take | None = None
    """From the stored array to one with the elements of `shape` in order."""
    computed: bool = False
    """Whether `take` wants float32 and gives float32; else the dtype stays what it is."""


Pieces = dict[str, Piece]
"""{canonical name: piece}, in file order."""


@dataclass(frozen=True)
class Contents:
    """What a layout looks at: everything of a file but its values."""

    where: str
    """The file, for messages."""
    tensors: Mapping[str, RawTensor]
    format: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """Values that the file carries beside its tensors."""


@dataclass(frozen=True)
class Names:
    """A naming table."""

    outer: Mapping[str, str]
    """{name in the file: canonical name} of what lies outside the blocks."""
    block: re.Pattern[str]
    """Matches a block's tensor; its groups are the number of the block and the rest of the name."""
    inner: Mapping[str, str]
    """{rest of the name: canonical rest}, such as "attn.k_proj.weight": "att.key.weight"."""

    def canonical(self, name: str) -> str | None:
        """The canonical name, or None for one that is not in the table."""
        if name in self.outer:
            return self.outer[name]
        match = self.block.fullmatch(name)
        if match is None or match[2] not in self.inner:
            return None
        return f"blocks.{match[1]}.{self.inner[match[2]]}"


def renamed(contents: Contents, canonical: Callable[[str], str | None]) -> Iterator[tuple[str, Piece]]:
    """(canonical name, piece) of all tensors, unchanged but for their names; unknown names stay as they are."""
    for name, raw in contents.tensors.items():
        yield canonical(name) or name, plain(name, raw)


def plain(name: str, raw: RawTensor) -> Piece:
    """The stored tensor as it is."""
    return Piece(name, logical_shape(raw.shape))


def collected(contents: Contents, pairs: Iterator[tuple[str, Piece]]) -> Pieces:
    """The pieces by name; FormatError when two stored tensors are one canonical one."""
    result: Pieces = {}
    for name, piece in pairs:
        if name in result:
            raise FormatError(
                f"{contents.where}: {quoted(result[name].source)} and {quoted(piece.source)} are both {quoted(name)}"
            )
        result[name] = piece
    return result


def swapped(piece: Piece) -> Piece:
    """The piece with its last two axes exchanged; one of fewer axes as it is."""
    if len(piece.shape) < 2:
        return piece
    shape = (*piece.shape[:-2], piece.shape[-1], piece.shape[-2])
    return Piece(piece.source, shape, swap_last)


def swap_last(values: Array) -> Array:
    """The last two axes exchanged."""
    return np.swapaxes(values, -1, -2)


def rows_of(contents: Contents, name: str, letters: str) -> Iterator[tuple[str, Piece]]:
    """(letter, piece) of vectors that are stored as the rows of tensor `name`, in the order of `letters`."""
    raw, count = contents.tensors[name], len(letters)
    size = 1
    for dim in raw.shape:
        size *= dim
    if len(raw.shape) < 2 or raw.shape[0] != count or size % count:
        raise FormatError(
            f"{contents.where}: tensor {quoted(name)} of shape {list(raw.shape)} is not {count} vectors"
        )
    for index, letter in enumerate(letters):
        yield letter, Piece(name, (size // count,), lambda values, i=index: values[i])  # type: ignore[misc]


def suffix_of(name: str) -> str:
    """The part of a block's canonical name after the block's number; "" for other names."""
    parts = name.split(".", 2)
    return parts[2] if parts[0] == "blocks" and len(parts) == 3 else ""


def layer_of(name: str) -> int:
    """The number of the block in a block's canonical name; -1 for other names."""
    parts = name.split(".", 2)
    return int(parts[1]) if parts[0] == "blocks" and len(parts) == 3 and parts[1].isdecimal() else -1
