"""Model version and sizes, from the set of tensor names and their shapes.

Key order never matters, ranks are read and never computed, and every expected tensor is checked.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from quant.errors import FormatError, UnsupportedModel, quoted
from quant.variants import refuse_by_name

Shape = tuple[int, ...]

VERSIONS = ("4", "5.0", "5.1", "5.2", "6", "7")


@dataclass(frozen=True)
class Arch:
    """Version and sizes of a model. Sizes that a version does not have are 0."""

    version: str
    """One of VERSIONS."""
    n_layer: int
    n_embd: int
    n_head: int
    """n_head * head_size == n_embd; both are 0 in v4."""
    head_size: int
    n_ffn: int
    vocab_size: int
    rank_mix: int = 0
    """v6: Dm, per mix (time_maa_w1 is [n_embd, 5 * Dm])."""
    rank_decay: int = 0
    """v6: Dd of time_decay_w1; v7: Dw of w1."""
    rank_iclr: int = 0
    """v7: Da of a1 (in-context learning rate)."""
    rank_value: int = 0
    """v7: Dv of v1, from block 1 on (value residual); 0 in a model of one layer."""
    rank_gate: int = 0
    """v7: Dg of g1."""
    time_first_is_log: bool = False
    """5.0 and 5.1 only: the bonus is `att.time_first`, and u = exp(time_first); else `att.time_faaaa` = u."""
    ln0_fused: bool = False
    """The rows of the embedding are normalized already: there is no `blocks.0.ln0`."""


# What each dimension of a shape stands for, in the tables below: V vocabulary, C embedding, F ffn, H heads, N
# head size, m = Dm, M = 5 * Dm, d = Dd or Dw, a = Da, v = Dv, g = Dg. A digit is itself.
_OUTER = {
    "emb.weight": "VC", "ln_out.weight": "C", "ln_out.bias": "C", "head.weight": "VC",
    "blocks.0.ln0.weight": "C", "blocks.0.ln0.bias": "C",
}  # fmt: skip
LN0 = ("blocks.0.ln0.weight", "blocks.0.ln0.bias")
_NORMS = {"ln1.weight": "C", "ln1.bias": "C", "ln2.weight": "C", "ln2.bias": "C"}
_RKVO = {
    "att.receptance.weight": "CC", "att.key.weight": "CC",
    "att.value.weight": "CC", "att.output.weight": "CC",
}  # fmt: skip
_LN_X = {"att.ln_x.weight": "C", "att.ln_x.bias": "C"}
_MIX = {"att.time_mix_k": "C", "att.time_mix_v": "C", "att.time_mix_r": "C"}
_FFN = {"ffn.key.weight": "FC", "ffn.value.weight": "CF"}
_FFN_R = {**_FFN, "ffn.receptance.weight": "CC"}
_FFN_MIX = {"ffn.time_mix_k": "C", "ffn.time_mix_r": "C", **_FFN_R}
_HEAD_DECAY = {"att.time_decay": "H", "att.time_faaaa": "H"}
_CHANNEL_DECAY = {"att.time_decay": "HN", "att.time_faaaa": "HN"}
_GATE = {"att.time_mix_g": "C", "att.gate.weight": "CC"}

_BLOCK: dict[str, dict[str, str]] = {
    "4": {"att.time_decay": "C", "att.time_first": "C", **_NORMS, **_MIX, **_RKVO, **_FFN_MIX},
    "5.0": {**_HEAD_DECAY, **_NORMS, **_MIX, **_RKVO, **_LN_X, **_FFN_MIX},
    "5.1": {**_HEAD_DECAY, **_NORMS, **_MIX, **_RKVO, **_GATE, **_LN_X, **_FFN_MIX},
    "5.2": {**_CHANNEL_DECAY, **_NORMS, **_MIX, **_RKVO, **_GATE, **_LN_X, **_FFN_MIX},
    "6": {
        **_NORMS,
        **{f"att.time_maa_{n}": "C" for n in "xwkvrg"}, "att.time_maa_w1": "CM", "att.time_maa_w2": "5mC",
        "att.time_decay": "C", "att.time_decay_w1": "Cd", "att.time_decay_w2": "dC", "att.time_faaaa": "HN",
        **_RKVO, "att.gate.weight": "CC", **_LN_X, "ffn.time_maa_k": "C", "ffn.time_maa_r": "C", **_FFN_R,
    },
    "7": {
        **_NORMS,
        **{f"att.x_{n}": "C" for n in "rwkvag"},
        "att.w0": "C", "att.w1": "Cd", "att.w2": "dC", "att.a0": "C", "att.a1": "Ca", "att.a2": "aC",
        "att.v0": "C", "att.v1": "Cv", "att.v2": "vC", "att.g1": "Cg", "att.g2": "gC",
        "att.k_k": "C", "att.k_a": "C", "att.r_k": "HN", **_RKVO, **_LN_X, "ffn.x_k": "C", **_FFN,
    },
}  # fmt: skip

_V7_VALUE = ("att.v0", "att.v1", "att.v2")
"""Absent or dummies in block 0; never used there."""
_BLOCK_NAME = re.compile(r"blocks\.(0|[1-9]\d{0,5})\.(.+)", re.DOTALL)


def logical_shape(shape: Iterable[int]) -> Shape:
    """The shape a tensor is used in: [1, 1, C] (how BlinkDL stores mix vectors) becomes [C]; others stay.

    Only three-dimensional shapes change, so that the [1, N] tensors of a one-head model keep their head axis.
    """
    dims = tuple(shape)
    return dims[2:] if len(dims) == 3 and dims[:2] == (1, 1) else dims


def stored_shape(arch: Arch, name: str, shape: Shape) -> Shape:
    """The shape that tensor `name` of logical `shape` has in BlinkDL's files: mix vectors are [1, 1, C]."""
    leaf = name.rpartition(".")[2]
    if arch.version == "7":
        mix = leaf in ("w0", "a0", "v0", "k_k", "k_a") or leaf.startswith("x_")
    else:
        mix = leaf.startswith(("time_mix_", "time_maa_")) and leaf not in ("time_maa_w1", "time_maa_w2")
        mix |= arch.version == "6" and leaf == "time_decay"
    return (1, 1, *shape) if mix else shape


def expected(arch: Arch) -> dict[str, Shape]:
    """{canonical name: logical shape} of every tensor that a model of `arch` uses.

    v7's block 0 has no v0, v1, v2 here: BlinkDL's files carry dummies, which `detect` tolerates.
    """
    sizes = {
        "V": arch.vocab_size, "C": arch.n_embd, "F": arch.n_ffn, "H": arch.n_head, "N": arch.head_size,
        "m": arch.rank_mix, "M": 5 * arch.rank_mix, "d": arch.rank_decay, "a": arch.rank_iclr,
        "v": arch.rank_value, "g": arch.rank_gate, "5": 5,
    }  # fmt: skip
    block = {}
    for suffix, dims in _BLOCK[arch.version].items():
        logged = suffix == "att.time_faaaa" and arch.time_first_is_log
        block["att.time_first" if logged else suffix] = tuple(sizes[dim] for dim in dims)
    result = {
        name: tuple(sizes[dim] for dim in dims)
        for name, dims in _OUTER.items()
        if not (arch.ln0_fused and name in LN0)
    }
    for layer in range(arch.n_layer):
        for suffix, shape in block.items():
            if not (layer == 0 and arch.version == "7" and suffix in _V7_VALUE):
                result[f"blocks.{layer}.{suffix}"] = shape
    return result


def parameter_count(arch: Arch) -> int:
    """Number of parameters, from a closed formula; a v7 model is counted with the dummies of block 0."""
    c, f, layers = arch.n_embd, arch.n_ffn, arch.n_layer
    matrices = {
        "4": 5 * c * c, "5.0": 5 * c * c, "5.1": 6 * c * c, "5.2": 6 * c * c,
        "6": 6 * c * c + 10 * arch.rank_mix * c + 2 * arch.rank_decay * c,
        "7": 4 * c * c + 2 * c * (arch.rank_decay + arch.rank_iclr + arch.rank_value + arch.rank_gate),
    }[arch.version]  # fmt: skip
    heads = 2 * arch.n_head  # scalar decay and bonus per head
    vectors = {
        "4": 11 * c, "5.0": 11 * c + heads, "5.1": 12 * c + heads, "5.2": 14 * c, "6": 16 * c, "7": 19 * c,
    }[arch.version]  # fmt: skip
    outer = 2 * arch.vocab_size * c + (2 if arch.ln0_fused else 4) * c
    return outer + layers * (matrices + 2 * c * f + vectors)


def detect(shapes: Mapping[str, Shape], where: str = "the checkpoint", *, ln0_fused: bool = False) -> Arch:
    """Version and sizes of the model whose tensors have these canonical names and shapes.

    Shapes may be logical or as stored ([1, 1, C] for vectors). `where` names the file in messages. `ln0_fused`: what a
    configuration says of a model without ln0; one that has it needs it.
    Raises UnsupportedModel (a known variant or layout, by name; an unknown model) and FormatError (tensors
    missing, unexpected, or of a wrong shape; blocks not numbered 0, 1, 2, ...).
    """
    if not shapes:
        raise FormatError(f"{where} holds no tensors")
    shapes = {name: logical_shape(shape) for name, shape in shapes.items()}
    refuse_by_name(shapes, where)
    n_layer = _count_blocks(shapes, where)
    suffixes = Counter(match[2] for name in shapes if (match := _BLOCK_NAME.fullmatch(name)))
    version = _version(suffixes, shapes, where)
    _refuse_unknown_variant(version, n_layer, shapes, suffixes, where)
    arch = _sizes(version, n_layer, shapes, where)
    if not any(name in shapes for name in LN0):
        if not ln0_fused:
            raise UnsupportedModel(
                f"{where} has no first layer norm (ln0), and nothing says that it is part of the embedding",
                hint="a config.json beside it would: embedding_layer_norm_fused, or norm_first",
            )
        arch = replace(arch, ln0_fused=True)
    _check(arch, shapes, where)
    return arch


def _count_blocks(shapes: Mapping[str, Shape], where: str) -> int:
    found = {int(match[1]) for name in shapes if (match := _BLOCK_NAME.fullmatch(name))}
    for layer in range(len(found)):
        if layer not in found:
            raise FormatError(f"{where}: block {layer} is missing (the last one is {max(found)})")
    return len(found)


def _version(suffixes: Mapping[str, int], shapes: Mapping[str, Shape], where: str) -> str:
    if any(suffix in suffixes for suffix in ("att.r_k", "att.k_k", "att.x_r", "att.a0")):
        return "7"
    if any(suffix.startswith("att.time_maa") for suffix in suffixes):
        return "6"
    if "att.ln_x.weight" in suffixes:
        if "att.gate.weight" not in suffixes:
            return "5.0"
        decay = shapes.get("blocks.0.att.time_decay", ())
        return "5.2" if len(decay) == 2 and decay[1] > 1 else "5.1"
    if "att.time_mix_k" in suffixes and "att.time_decay" in suffixes:
        return "4"
    names = _some(shapes)
    raise UnsupportedModel(f"{where} is not an RWKV model of a known version; it holds {names}")


def _sizes(version: str, n_layer: int, shapes: Mapping[str, Shape], where: str) -> Arch:
    def dims(name: str, rank: int) -> Shape:
        shape = shapes.get(name)
        if shape is None:
            raise FormatError(f"{where}: tensor {name} is missing")
        if len(shape) != rank or min(shape) < 1:
            raise FormatError(f"{where}: tensor {name} has shape {_text(shape)}; rank {rank} expected")
        return shape

    def rank_of(name: str) -> int:
        return dims(name, 2)[1]

    att = "blocks.0.att."
    vocab_size, n_embd = dims("emb.weight", 2)
    n_head = head_size = rank_mix = rank_decay = rank_iclr = rank_value = rank_gate = 0
    time_first_is_log = False
    if version in ("5.0", "5.1"):
        n_head = dims(att + "time_decay", 1)[0]
        head_size = n_embd // n_head
        time_first_is_log = att + "time_faaaa" not in shapes and att + "time_first" in shapes
    elif version == "5.2":
        n_head, head_size = dims(att + "time_decay", 2)
    elif version == "6":
        n_head, head_size = dims(att + "time_faaaa", 2)
        rank_mix = rank_of(att + "time_maa_w1") // 5
        rank_decay = rank_of(att + "time_decay_w1")
    elif version == "7":
        n_head, head_size = dims(att + "r_k", 2)
        rank_decay, rank_iclr, rank_gate = (rank_of(att + name) for name in ("w1", "a1", "g1"))
        if n_layer > 1:
            rank_value = rank_of("blocks.1.att.v1")
    if n_head * head_size != (n_embd if version != "4" else 0):
        raise FormatError(f"{where}: {n_head} heads of {head_size} do not make an embedding of {n_embd}")
    n_ffn = dims("blocks.0.ffn.key.weight", 2)[0]
    return Arch(
        version, n_layer, n_embd, n_head, head_size, n_ffn, vocab_size,
        rank_mix, rank_decay, rank_iclr, rank_value, rank_gate, time_first_is_log,
    )  # fmt: skip


def _check(arch: Arch, shapes: Mapping[str, Shape], where: str) -> None:
    """Every expected tensor there, nothing else there, every shape right."""
    wanted = expected(arch)
    dummies = {f"blocks.0.{suffix}" for suffix in _V7_VALUE} if arch.version == "7" else set()
    missing = [name for name in wanted if name not in shapes]
    extra = [name for name in shapes if name not in wanted and name not in dummies]
    if missing:
        raise FormatError(
            f"{where}: {len(missing)} of {len(wanted)} tensors are missing: {_some(missing)}",
            hint="download the file again; a part of a checkpoint is not enough",
        )
    if extra:
        raise FormatError(f"{where}: {len(extra)} unexpected tensors: {_some(extra)}")
    wrong = [name for name, shape in wanted.items() if shapes[name] != shape]
    if wrong:
        name = wrong[0]
        more = f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
        have, want = _text(shapes[name]), _text(wanted[name])
        raise FormatError(f"{where}: tensor {name} has shape {have}, not {want}{more}")


def _refuse_unknown_variant(
    version: str, n_layer: int, shapes: Mapping[str, Shape], suffixes: Mapping[str, int], where: str
) -> None:
    """What all blocks lack, or all blocks (perhaps but the first) add, is design and not damage."""
    if version not in ("6", "7"):
        return
    lacking = [suffix for suffix in _BLOCK[version] if suffix not in suffixes]
    if n_layer == 1:
        lacking = [suffix for suffix in lacking if suffix not in _V7_VALUE]
    common = max(1, n_layer - 1)
    known = {*_BLOCK[version], "ln0.weight", "ln0.bias"}
    added = [suffix for suffix, count in suffixes.items() if suffix not in known and count >= common]
    added += [
        name
        for name, shape in shapes.items()  # a single number is a training run's counter
        if not name.startswith("blocks.") and name not in _OUTER and math.prod(shape) > 1
    ]
    if not (lacking or added):
        return
    kind = "RWKV-6 training variant (x060a, x060b, x060c or similar)"
    if version == "7":
        kind = "variant of RWKV-7 (RWKV-8 or similar)"
    what = f"with unknown tensors {_some(added)}" if added else f"without {_some(lacking)}"
    raise UnsupportedModel(f"{where} holds an unsupported {kind}, {what}")


def _some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, for a message."""
    listed = list(names)
    text = ", ".join(quoted(name) for name in listed[:limit])
    return text + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def _text(shape: Shape) -> str:
    return "[" + ", ".join(str(dim) for dim in shape) + "]"
