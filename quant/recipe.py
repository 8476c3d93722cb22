"""Which encoding and layout each tensor gets: the plan of a model file, from the model's sizes and a kind."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quant.arch import Arch
from quant.errors import InvalidRequest
from quant.formats import ENCODINGS, KN, ROW, TILE, Shape, stored_bytes
from quant.orient import logical_tensors
from quant.yardstick import q4_k_m_bytes, q5_k_m_bytes, q6_k_bytes

KINDS = ("int8", "int6", "int5", "int4", "nf4", "bf16", "f16", "f32")
"""What `--to` offers."""
FFN_VALUE = ("auto", "tile", "kn")
"""Layouts for `ffn.value`."""
CLASSES = ("emb", "att", "ffn", "low-rank", "head", "vectors")

KN_FROM = 2048
"""n_embd from which `ffn.value` goes to `kn`: such models, trained, leave 87 % of its inputs at zero, which is past the density
that `kn` pays below (`quant.calibration.KN_BELOW`). Where the zeros are counted, with a text, they decide."""

INT8 = dict.fromkeys(("emb", "att", "ffn", "low-rank", "head"), "q8g32")
INT4 = INT8 | {"att": "q4g16", "ffn": "q4g32"}
INT5 = INT8 | {"att": "q5g16", "ffn": "q5g32"}
INT6 = INT8 | {"att": "q6g32", "ffn": "q6g32"}
NF4 = INT8 | {"att": "nf4", "ffn": "nf4"}
BEST4 = INT4 | {"att.value": "q8g32", "att.output": "q8g32", "ffn": "q4g16"}
BEST5 = INT5 | {"att.value": "q8g32", "att.output": "q8g32", "ffn": "q5g16"}
BEST6 = INT6 | {"att": "q6g16", "att.value": "q8g32", "att.output": "q8g32", "ffn": "q6g16"}
"""Encodings by class, or by leaf of a block where that has one of its own: the most sensitive matrices get 8 bits."""
INSTEAD = "q8g32"
"""What a matrix gets that is to be nf4 and has rows that its blocks do not divide."""
SHRINKING = (
    {"att.key": "q4g32"}, {"att.receptance": "q4g32"}, {"emb": "q4g16"}, {"emb": "q4g32"}, {"att": "q4g32"},
    {"head": "q4g16"}, {"head": "q4g32"},
)  # fmt: skip
"""What the default int4 recipe gives up, in this order, until a model is no larger than Q4_K_M would make it."""
SHRINKING5 = (
    {"att.key": "q5g32"}, {"att.receptance": "q5g32"}, {"emb": "q6g16"}, {"emb": "q5g16"}, {"emb": "q5g32"},
    {"att": "q5g32"}, {"head": "q6g16"}, {"head": "q5g16"}, {"head": "q5g32"},
)  # fmt: skip
"""The same of int5, until a model is no larger than Q5_K_M would make it."""
SHRINKING6 = ({"emb": "q6g32"}, {"head": "q6g32"})
"""The same of int6, until a model is no larger than Q6_K would make it."""
RECIPES = ("default", "best")
_SHORT = {
    "int6": (INT6, BEST6, SHRINKING6, q6_k_bytes),
    "int5": (INT5, BEST5, SHRINKING5, q5_k_m_bytes),
    "int4": (INT4, BEST4, SHRINKING, q4_k_m_bytes),
}
"""{kind: the default recipe, the best one, what the default gives up, what it has to be no larger than}."""

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


def leaf_of(name: str) -> str:
    """What the matrix `name` is called in every block: "att.key"; "emb" and "head" of those two."""
    return name.removesuffix(".weight").split(".", 2)[-1]


def is_allowed(name: str, encoding: str, layout: str) -> bool:
    """Whether FORMAT.md lets the logical tensor `name` be stored so. `encoding`: one of ENCODINGS."""
    part = class_of(name)
    if not ENCODINGS[encoding].quantized:
        return layout == ROW and (encoding == "f32" or part != "vectors")
    if ENCODINGS[encoding].block and layout == KN:
        return False
    if part in ("vectors", "emb"):
        return part == "emb" and layout == ROW
    return layout == TILE or (layout == KN and name.endswith(".ffn.value.weight"))


@dataclass(frozen=True)
class Override:
    """What `--tensor REGEX=FORMAT` says."""

    pattern: re.Pattern[str]
    encoding: str

    @classmethod
    def parse(cls, word: str) -> Override:
        """From `REGEX=FORMAT`. InvalidRequest: no such format, no regular expression."""
        regex, sign, form = word.rpartition("=")
        if not sign or not regex:
            raise InvalidRequest(f"{word!r} is not REGEX=FORMAT", hint="for example: 'att.value=q8g32'")
        encoding = ALIASES.get(form, form)
        if encoding not in ENCODINGS:
            known = ", ".join((*ALIASES, *(name for name in ENCODINGS if name not in ALIASES)))
            raise InvalidRequest(f"unknown format {form!r} for tensors {regex!r}", hint=f"use one of {known}")
        try:
            return cls(re.compile(regex), encoding)
        except re.error as error:
            raise InvalidRequest(f"{regex!r} is no regular expression: {error}") from None


ALIASES = {"int8": "q8g32", "int6": "q6g32", "int5": "q5g16", "int4": "q4g16"}
"""Names of formats that `Override.parse` takes beside the encodings' own."""


def make_plan(
    arch: Arch,
    kind: str,
    *,
    recipe: str = "default",
    overrides: Sequence[Override] = (),
    ffn_value: str = "auto",
) -> Plan:
    """The plan for a model of `arch` in `kind`, in file order.

    int8: every matrix q8g32. int4, by default: attention q4g16, ffn q4g32, the rest q8g32, and less of it (SHRINKING)
    where that is larger than llama.cpp's Q4_K_M; `recipe` "best": BEST4. int5: the same with q5g16 and q5g32, Q5_K_M,
    SHRINKING5 and BEST5. int6: attention and ffn q6g32, the rest q8g32, and
    less of it (SHRINKING6) where that is larger than Q6_K; "best": BEST6. nf4: attention and ffn nf4, where their rows are
    whole blocks, the rest q8g32. What is no matrix is f32. The last of the
    overrides that match a matrix decides about it. `ffn_value`: "tile", "kn", or "auto" to choose by the model's size.

    Raises InvalidRequest: an unknown kind, recipe or layout; nf4 by input channel; an override that matches no matrix,
    or one whose rows are no whole blocks of it; one that makes integers of a matrix in some blocks of the model only, which
    the engine does not run.
    """
    for value, known, what in (
        (kind, KINDS, "format"), (recipe, RECIPES, "recipe"), (ffn_value, FFN_VALUE, "layout of ffn.value"),
    ):  # fmt: skip
        if value not in known:
            raise InvalidRequest(f"unknown {what} {value!r}", hint=f"use one of {', '.join(known)}")
    if kind == "nf4" and ffn_value == "kn":
        raise InvalidRequest(
            "nf4 has no ffn.value by input channel: blocks of NF4 run along the inputs",
            hint="leave --ffn-value out",
        )
    if ffn_value == "auto":
        ffn_value = "kn" if arch.n_embd >= KN_FROM and kind != "nf4" else "tile"
    formats = _formats(arch, kind, recipe, ffn_value)
    plan = _plan(arch, formats, ffn_value)
    for override in overrides:
        matched = [name for name in plan if override.pattern.search(name) and class_of(name) != "vectors"]
        if not matched:
            raise _no_match(override, plan)
        for name in matched:
            if not fits(override.encoding, plan[name].shape):
                raise InvalidRequest(
                    f"{name} has rows of {plan[name].shape[1]}, and {override.encoding} blocks of "
                    f"{ENCODINGS[override.encoding].block}",
                    hint="leave it out, or give it int8",
                )
        plan |= {name: planned(name, plan[name].shape, override.encoding, ffn_value) for name in matched}
    _check_uniform(plan)
    return plan


def planned(name: str, shape: Shape, encoding: str, ffn_value: str) -> Planned:
    """The matrix `name` in `encoding`, in the layout that it then has; `ffn_value`: "tile" or "kn"."""
    if not ENCODINGS[encoding].quantized or class_of(name) == "emb":
        return Planned(encoding, ROW, shape)
    kn = ffn_value == "kn" and name.endswith(".ffn.value.weight") and not ENCODINGS[encoding].block
    return Planned(encoding, KN if kn else TILE, shape)


def fits(encoding: str, shape: Shape) -> bool:
    """Whether a matrix of `shape` has rows that the blocks of `encoding` divide."""
    block = ENCODINGS[encoding].block
    return not block or shape[1] % block == 0


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


def class_encodings(plan: Mapping[str, Planned]) -> dict[str, tuple[str, ...]]:
    """{class: the encodings of its tensors}."""
    found: dict[str, set[str]] = {}
    for name, item in plan.items():
        found.setdefault(class_of(name), set()).add(item.encoding)
    return {name: tuple(sorted(encodings)) for name, encodings in found.items()}


def estimated_bytes(plan: Mapping[str, Planned]) -> int:
    """About how large the file will be: exact but for the tokenizer, within a few per mille of it."""
    from quant.container.header import HEADER_BYTES_PER_TENSOR

    return sum(item.nbytes + HEADER_BYTES_PER_TENSOR for item in plan.values())


def bits_per_weight(plan: Mapping[str, Planned]) -> float:
    """Of the whole model, norms and scales included, as `rwkv show` tells it."""
    sizes = class_sizes(plan).values()
    return 8 * sum(size.nbytes for size in sizes) / sum(size.weights for size in sizes)


def _formats(arch: Arch, kind: str, recipe: str, ffn_value: str) -> dict[str, str]:
    """{class or leaf: encoding}."""
    if kind == "nf4":
        return NF4
    if kind == "int8":
        return INT8
    if kind not in _SHORT:
        return dict.fromkeys(INT8, kind)
    start, best, shrinking, limit_of = _SHORT[kind]
    if recipe == "best":
        return best
    limit = limit_of(arch)

    def small(steps: Sequence[dict[str, str]]) -> bool:
        return sum(item.nbytes for item in _plan(arch, _merged(start, steps), ffn_value).values()) <= limit

    taken = 0
    while taken < len(shrinking) and not small(shrinking[:taken]):
        taken += 1
    steps = list(shrinking[:taken])
    for step in shrinking[:taken]:  # a later one may have made it needless
        rest = [other for other in steps if other is not step]
        if small(rest):
            steps = rest
    return _merged(start, steps)


def _merged(start: dict[str, str], steps: Iterable[dict[str, str]]) -> dict[str, str]:
    formats = dict(start)
    for step in steps:
        formats |= step
    return formats


def _plan(arch: Arch, formats: Mapping[str, str], ffn_value: str) -> Plan:
    return {
        name: planned(name, item.shape, _encoding(name, item.shape, formats), ffn_value)
        if class_of(name) != "vectors"
        else Planned("f32", ROW, item.shape)
        for name, item in logical_tensors(arch).items()
    }


def _encoding(name: str, shape: Shape, formats: Mapping[str, str]) -> str:
    encoding = formats.get(leaf_of(name), formats[class_of(name)])
    return encoding if fits(encoding, shape) else INSTEAD


def _no_match(override: Override, plan: Plan) -> InvalidRequest:
    """An error that names what is near."""
    wanted = override.pattern.pattern
    vectors = [name for name in plan if override.pattern.search(name)]
    if vectors:
        return InvalidRequest(f"{wanted!r} matches no matrix: {vectors[0]} is always f32")
    matrices = [name for name in plan if class_of(name) != "vectors"]
    leaves = dict.fromkeys(map(leaf_of, matrices))
    near = difflib.get_close_matches(wanted, [*matrices, *leaves], 3, 0.5) or list(leaves)
    return InvalidRequest(f"no tensor matches {wanted!r}", hint=f"there are {', '.join(near)}")


def _check_uniform(plan: Plan) -> None:
    """The engine rounds a matrix's inputs to integers in all blocks or in none."""
    forms: dict[str, str] = {}
    for name, item in plan.items():
        leaf = name.split(".", 2)[-1]
        if class_of(name) not in ("att", "ffn", "low-rank"):
            continue
        other = forms.setdefault(leaf, item.layout)
        if (other == TILE) == (item.layout == TILE):
            continue
        if KN in (other, item.layout):
            raise InvalidRequest(
                f"{leaf} would lie by input channel in some blocks only: nf4 does not",
                hint="give it one format in all blocks, or --ffn-value tile",
            )
        raise InvalidRequest(
            f"{leaf} would be integers in some blocks and floats in others",
            hint="give it one kind of format in all blocks",
        )
