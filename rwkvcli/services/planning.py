"""Which format each tensor gets: what `rwkv quantize --recipe`, `--tensor`, `--target-bpw` and `--max-size` decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from rwkvcli.errors import UsageError

if TYPE_CHECKING:
    from quant.calibration import Calibration
    from quant.methods import Encoder
    from quant.recipe import Override, Plan
    from quant.sources import Source

_MOST_BPW = 1e6
"""More than any plan has, padding included; a larger number is no other limit."""
_NF4_ROWS = "blocks of NF4 run along its inputs"
_TOO_LARGE = 2**62
"""Bytes."""
_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


@dataclass(frozen=True)
class Choices:
    """How a model is to be quantized."""

    recipe: str = "default"
    tensors: tuple[str, ...] = ()
    """`REGEX=FORMAT`; the last match decides."""
    target_bpw: float | None = None
    """Bits per weight of the whole model, at most."""
    max_size: int | None = None
    """Bytes of the file, at most."""
    ffn_value: str = "auto"
    method: str | None = None
    """One of `quant.methods.METHODS`; None: codebook."""
    text: BinaryIO | None = field(default=None, compare=False)
    """What to calibrate with."""
    text_name: str = ""
    tokens: int | None = None
    """How many tokens of it; None: as usual."""

    @property
    def budgeted(self) -> bool:
        """Whether encodings are chosen for a size."""
        return self.target_bpw is not None or self.max_size is not None


@dataclass(frozen=True)
class Planning:
    """What was decided."""

    plan: Plan
    recipe: str
    """In words, for the file."""
    notes: dict[str, Any]
    """For the report: the layout of ffn.value and why; what nf4 was not possible for."""


def check(choices: Choices, kind: str) -> None:
    """Raise UsageError for choices that do not go together, before any work."""
    from quant.methods import METHODS, nf4
    from quant.recipe import Override

    overrides = [Override.parse(word) for word in choices.tensors]
    if choices.method is not None and choices.method not in METHODS:
        raise UsageError(f"unknown method {choices.method!r}", hint=f"use one of {', '.join(METHODS)}")
    if kind == "nf4":
        _check_nf4(choices)
    if choices.budgeted and kind != "int4":
        raise UsageError(
            f"{kind} has one size",
            hint="--to int4 with --target-bpw or --max-size mixes int4, int5, int6 and int8",
        )
    if choices.budgeted and choices.recipe != "default":
        raise UsageError("a recipe and a size are two ways to say the same", hint="leave one out")
    if choices.target_bpw is not None and not 0 < choices.target_bpw < math.inf:
        raise UsageError(f"{choices.target_bpw} is no number of bits per weight")
    if choices.method == "gptq" and not uses_gptq(choices, kind):
        raise UsageError(
            f"gptq chooses codes of 4, 5 and 6 bits, and {kind} has none",
            hint="use --to int4, int5 or int6, or give tensors such codes: --tensor REGEX=int4",
        )
    if choices.method == "gptq" and choices.text is None:
        raise UsageError("gptq needs a text to calibrate with", hint="--calibrate TEXT")
    if choices.tokens is not None and choices.text is None:
        raise UsageError("no text to take tokens from", hint="--calibrate TEXT")
    if kind == "nf4" or any(override.encoding == "nf4" for override in overrides):
        nf4.require()


def uses_gptq(choices: Choices, kind: str) -> bool:
    """Whether GPTQ was asked for and there are codes that it chooses."""
    from quant.formats import ENCODINGS
    from quant.recipe import Override

    if choices.method != "gptq":
        return False
    asked = [ENCODINGS[Override.parse(word).encoding] for word in choices.tensors]
    return kind in ("int6", "int5", "int4") or any(form.weighted and not form.form for form in asked)


def _check_nf4(choices: Choices) -> None:
    given = {
        "--method": choices.method is not None,
        "--calibrate": choices.text is not None,
        "--calibrate-tokens": choices.tokens is not None,
        "--recipe": choices.recipe != "default",
        "--ffn-value kn": choices.ffn_value == "kn",
    }
    for flag, is_given in given.items():
        if is_given:
            raise UsageError(
                f"{flag} does not go with nf4: its codes and blocks are those of bitsandbytes",
                hint=f"leave it out, or use --to int4 {flag}",
            )


def decide(
    source: Source,
    kind: str,
    choices: Choices,
    *,
    encoder: Encoder,
    calibration: Calibration | None,
    size_of: Callable[[Plan, str, dict[str, Any]], int],
    on_progress: Callable[[str, int, int], None] | None = None,
    stop: Callable[[], None] = lambda: None,
) -> Planning:
    """The plan for `source`. `size_of(plan, recipe, notes)`: how large the file will be.

    Raises UsageError (see `quant.recipe.make_plan`; a size that is too small, with the smallest possible one).
    """
    from quant.frame import is_lossy
    from quant.recipe import Override, make_plan
    from quant.sampling import plan_within

    layout, why = _ffn_value(source, kind, choices.ffn_value, calibration)
    overrides = [Override.parse(word) for word in choices.tensors]
    plan = make_plan(source.arch, kind, recipe=choices.recipe, overrides=overrides, ffn_value=layout)
    lossy = is_lossy(plan)
    notes = _told_layout(plan, layout, why) | _instead(plan, kind, overrides)
    recipe = _in_words(kind, choices, lossy)
    if choices.budgeted:
        plan = plan_within(
            source,
            plan,
            lambda found: _excess(found, choices, lambda found: size_of(found, recipe, notes)),
            encoder=encoder,
            calibration=calibration,
            overrides=overrides,
            size_of=lambda found: size_of(found, recipe, notes),
            on_progress=on_progress,
            check=stop,
        )
    return Planning(plan, recipe, notes)


def _told_layout(plan: Plan, layout: str, why: str) -> dict[str, Any]:
    """How `ffn.value` lies in `plan` and why, as a note for the report: nothing where it is no integers. `layout` was wanted,
    `why` says why.
    """
    from quant.formats import ENCODINGS

    values = [item for name, item in plan.items() if name.endswith(".ffn.value.weight")]
    if not all(ENCODINGS[item.encoding].quantized for item in values):
        return {}
    if layout == "kn" and all(ENCODINGS[item.encoding].block for item in values):
        layout, why = "tile", _NF4_ROWS
    return {"ffn_value": {"layout": layout, "why": why}}


def _instead(plan: Plan, kind: str, overrides: Sequence[Override]) -> dict[str, Any]:
    """Which matrices of a plan for nf4 are not, because of their rows, as a note for the report."""
    from quant.codecs.nf4 import BLOCK
    from quant.recipe import INSTEAD, class_of, fits, leaf_of

    if kind != "nf4":
        return {}
    odd = {
        leaf_of(name): item.shape[1]
        for name, item in plan.items()
        if class_of(name) in ("att", "ffn")
        and not fits("nf4", item.shape)
        and not any(override.pattern.search(name) for override in overrides)
    }
    why = f"blocks of NF4 have {BLOCK} inputs, and these have rows that are no multiple of it"
    return {"nf4_instead": {"encoding": INSTEAD, "rows": odd, "why": why}} if odd else {}


def _ffn_value(source: Source, kind: str, wanted: str, calibration: Calibration | None) -> tuple[str, str]:
    """ "tile" or "kn", and why."""
    from quant.calibration import layout_by_density
    from quant.recipe import KN_FROM

    width = source.arch.n_embd
    if wanted != "auto":
        return wanted, "as asked for"
    if kind == "nf4":
        return "tile", _NF4_ROWS
    density = calibration.density() if calibration is not None else None
    if density is not None:
        return layout_by_density(density, source.arch)
    layout = "kn" if width >= KN_FROM else "tile"
    return layout, f"by size: {width} channels, and large models leave most of its inputs at zero"


def _excess(plan: Plan, choices: Choices, size_of: Callable[[Plan], int]) -> int:
    """By how many bytes a plan is larger than it may be."""
    over = []
    if choices.target_bpw is not None:
        weights = sum(math.prod(item.shape) for item in plan.values())
        limit = min(choices.target_bpw, _MOST_BPW)
        over.append(sum(item.nbytes for item in plan.values()) - int(limit * weights / 8))
    if choices.max_size is not None:
        over.append(size_of(plan) - choices.max_size)
    return max(over)


def _in_words(kind: str, choices: Choices, lossy: bool) -> str:
    words = [kind if choices.recipe == "default" else f"{kind} {choices.recipe}"]
    if choices.target_bpw is not None:
        words.append(f"at most {choices.target_bpw:g} bits per weight")
    if choices.max_size is not None:
        words.append(f"at most {choices.max_size} bytes")
    words += choices.tensors
    if lossy and choices.ffn_value != "auto":
        words.append(f"ffn.value {choices.ffn_value}")
    return ", ".join(words)


def parse_size(text: str) -> int:
    """Bytes, of `900MB`, `1.2GB`, `800MiB`. Raises UsageError."""
    number = text.strip().rstrip("BkKMGi")
    unit = text.strip()[len(number) :] or "B"
    try:
        size = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        size = 0.0
    if size >= _TOO_LARGE:
        raise UsageError(f"{text!r} is more than any disk or memory holds", hint="for example 900MB or 1.5GB")
    if not size >= 1:  # also refuses NaN
        raise UsageError(f"{text!r} is no size", hint="for example 900MB or 1.5GB")
    return int(size)
