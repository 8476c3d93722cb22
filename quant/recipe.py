"""Which encoding and layout each tensor gets: the plan of a model file, from the model's sizes and a kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from quant.arch import Arch
from quant.errors import InvalidRequest
from quant.formats import ENCODINGS, KN, ROW, TILE, Shape, stored_bytes
from quant.orient import logical_tensors

KINDS = ("int8", "int4", "bf16", "f16", "f32")
"""What `--to` offers."""
FFN_VALUE = ("auto", "tile", "kn")
"""Layouts for `ffn.value`."""
CLASSES = ("emb", "att", "ffn", "low-rank", "head", "vectors")

KN_FROM = 2048
"""n_embd from which `ffn.value` goes to `kn`: such models, trained, leave 87 % of its inputs at zero."""
GROUP16_EMB_BELOW = 1024
"""n_embd below which int4 puts the embedding, half of such a model, into 4 bits too."""

_LOW_RANK = re.compile(r"att\.([wavg][12]|time_maa_w1|time_maa_w2\.[wkvrg]|time_decay_w[12])")
_MATRIX = re.compile(r"(att|ffn)\.(receptance|key|value|gate|output)\.weight")


class Planned(NamedTuple):
    """How one logical tensor is stored."""

    encoding: str
    layout: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of its parts, without alignment."""
        return stored_bytes(self.encoding, self.layout, self.shape)


Plan = dict[str, Planned]


class ClassSize(NamedTuple):
    """Size of one class of tensors."""

    weights: int
    nbytes: int


def class_of(name: str) -> str:
    """To which of CLASSES the logical tensor `name` belongs."""
    if name in ("emb.weight", "head.weight"):
        return name.partition(".")[0]
    suffix = name.split(".", 2)[-1]
    if _LOW_RANK.fullmatch(suffix):
        return "low-rank"
    match = _MATRIX.fullmatch(suffix)
    return match[1] if match else "vectors"


def is_allowed(name: str, encoding: str, layout: str) -> bool:
    """Whether FORMAT.md lets the logical tensor `name` be stored so. `encoding`: one of ENCODINGS."""
    part = class_of(name)
    if not ENCODINGS[encoding].quantized:
        return layout == ROW and (encoding == "f32" or part != "vectors")
    if part in ("vectors", "emb"):
        return part == "emb" and layout == ROW
    return layout == TILE or (layout == KN and name.endswith(".ffn.value.weight"))


def make_plan(arch: Arch, kind: str, *, ffn_value: str = "auto") -> Plan:
    """The plan for a model of `arch` in `kind`, in file order. InvalidRequest: an unknown kind or layout.

    int8: every matrix q8g32. int4: attention q4g16, ffn q4g32, the rest q8g32; in models below
    GROUP16_EMB_BELOW the embedding is q4g16. Low-rank factors are never below 8 bits, and what is no matrix
    is f32.
    """
    if kind not in KINDS:
        raise InvalidRequest(f"unknown format {kind!r}", hint=f"Use one of {', '.join(KINDS)}.")
    if ffn_value not in FFN_VALUE:
        raise InvalidRequest(
            f"unknown layout {ffn_value!r} for ffn.value", hint=f"Use one of {', '.join(FFN_VALUE)}."
        )
    return {
        name: _planned(name, item.shape, arch, kind, ffn_value)
        for name, item in logical_tensors(arch).items()
    }


def class_sizes(plan: Mapping[str, Planned]) -> dict[str, ClassSize]:
    """{class: weights and bytes}, for a look before the work (the file adds a header and alignment)."""
    sizes = {name: ClassSize(0, 0) for name in CLASSES}
    for name, item in plan.items():
        count = 1
        for dim in item.shape:
            count *= dim
        old = sizes[class_of(name)]
        sizes[class_of(name)] = ClassSize(old.weights + count, old.nbytes + item.nbytes)
    return {name: size for name, size in sizes.items() if size.weights}


def estimated_bytes(plan: Mapping[str, Planned]) -> int:
    """About how large the file will be: exact but for the tokenizer, within a few per mille of it."""
    from quant.container.header import HEADER_BYTES_PER_TENSOR

    return sum(item.nbytes + HEADER_BYTES_PER_TENSOR for item in plan.values())


def _planned(name: str, shape: Shape, arch: Arch, kind: str, ffn_value: str) -> Planned:
    part = class_of(name)
    if part == "vectors":
        return Planned("f32", ROW, shape)
    if kind not in ("int8", "int4"):
        return Planned(kind, ROW, shape)
    encoding = "q8g32" if kind == "int8" else _int4(part, arch)
    layout = ROW if part == "emb" else TILE
    if name.endswith("ffn.value.weight") and (
        ffn_value == "kn" or (ffn_value == "auto" and arch.n_embd >= KN_FROM)
    ):
        layout = KN
    return Planned(encoding, layout, shape)


def _int4(part: str, arch: Arch) -> str:
    if part == "att" or (part == "emb" and arch.n_embd < GROUP16_EMB_BELOW):
        return "q4g16"
    return "q4g32" if part == "ffn" else "q8g32"
