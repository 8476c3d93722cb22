"""The frame of a model file: names of the metadata, placement of tensors, and the header's bytes."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from quant.arch import Arch
from quant.formats import ITEM_BYTES, Shape
from quant.sizes import round_up

FORMAT = "rwkvcli"
FORMAT_VERSION = "0"
ALIGNMENT = 64
"""Every tensor begins at a multiple of this many bytes from the start of the file."""
PAD_PREFIX = "_pad."
TOKENIZER_TENSOR = "tokenizer.json"
HEADER_BYTES_PER_TENSOR = 400
"""About what a logical tensor costs beside its data: entries, plan, report, alignment."""

KEYS = (
    "format", "format_version", "arch", "tokenizer", "template", "source", "recipe", "plan", "method",
    "calibration", "report",
)  # fmt: skip
OPTIONAL = ("ln0_fused",)
"""Fields of `arch` that are only there when they are true."""
LEAST_EPS, MOST_EPS = 2.0**-126, 1 - 2.0**-24
"""What the group norm's epsilon may be: above 0 and below 1, also as the float32 that it is computed with."""
TOKENIZERS = ("world", "bytes", "json", "none")


class Entry(NamedTuple):
    """A tensor to be stored."""

    name: str
    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Placed(NamedTuple):
    """A tensor and the offset of its first byte in the data."""

    entry: Entry
    begin: int


def place(entries: Iterable[Entry]) -> list[Placed]:
    """Offsets for `entries` in the given order, with `_pad.N` tensors in the gaps; each begins aligned."""
    placed: list[Placed] = []
    at = pads = 0
    for entry in entries:
        gap = round_up(at, ALIGNMENT) - at
        if gap:
            placed.append(Placed(Entry(f"{PAD_PREFIX}{pads}", "U8", (gap,)), at))
            pads, at = pads + 1, at + gap
        placed.append(Placed(entry, at))
        at += entry.nbytes
    return placed


def render(placed: Iterable[Placed], metadata: Mapping[str, str], length: int | None = None) -> bytes:
    """Length field and JSON, padded with spaces so that it ends aligned; `length`: to this many bytes in all.

    AssertionError when `length` is too short.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    for entry, begin in placed:
        offsets = [begin, begin + entry.nbytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    if length is None:
        length = round_up(8 + len(text), ALIGNMENT)
    assert 8 + len(text) <= length, "the header outgrew its reserve"
    return struct.pack("<Q", length - 8) + text.ljust(length - 8)


def arch_fields(arch: Arch) -> dict[str, Any]:
    """The metadata's `arch`, without the group norm's epsilon. What few models have is left out where it is not so."""
    fields = dataclasses.asdict(arch)
    for name in OPTIONAL:
        if not fields[name]:
            del fields[name]
    return fields


def dumps(value: object) -> str:
    """JSON for a metadata value: keys sorted, no spaces, ASCII. ValueError: NaN or infinity, which is no JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
