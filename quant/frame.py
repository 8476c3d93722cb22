"""All of a model file but its weights: metadata, which tensors there are, and so its size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant.calibration import Calibration
from quant.container.header import (
    FORMAT,
    FORMAT_VERSION,
    LEAST_EPS,
    MOST_EPS,
    TOKENIZER_TENSOR,
    Entry,
    arch_fields,
    dumps,
)
from quant.container.writer import size_of
from quant.errors import InvalidRequest
from quant.formats import ENCODINGS, parts_of, stored_name
from quant.metrics import json_bound
from quant.recipe import Plan
from quant.sources import Source, told_name
from quant.yardstick import is_world

QUALITY_BYTES = 8192
"""Room in the header for what `evaluate` returns."""


@dataclass(frozen=True)
class Frame:
    """All of a file but its weights."""

    metadata: dict[str, str]
    entries: list[Entry]
    reserve: int
    tokenizer_bytes: bytes | None


def file_size(source: Source, plan: Plan, recipe: str, *, evaluated: bool = False, **options: Any) -> int:
    """How large the file will be, to the byte. `evaluated`: with room for a quality record; `options`: `method`,
    `calibration`, `notes`, `tokenizer_json`, `template`, `group_norm_eps`, as of `quantize`.
    """
    frame = framed(source, plan, recipe, evaluated=evaluated, **options)
    return size_of(frame.entries, frame.metadata, frame.reserve)


def framed(
    weights: Source,
    plan: Plan,
    recipe: str,
    *,
    method: str,
    calibration: Calibration | None,
    notes: Mapping[str, Any],
    tokenizer_json: bytes | None,
    template: str | None,
    group_norm_eps: float | None,
    origin: Mapping[str, str] | None = None,
    evaluated: bool,
) -> Frame:
    """What `quantize` needs to know of the file before its first tensor. InvalidRequest: options that make no sense."""
    tokenizer, tokenizer_bytes = _tokenizer(weights, tokenizer_json)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "arch": dumps(arch_fields(weights.arch) | {"group_norm_eps": _epsilon(weights, group_norm_eps)}),
        "tokenizer": tokenizer,
        "template": template or weights.template or "none",
        "recipe": recipe,
        "plan": dumps({name: item._asdict() for name, item in plan.items()}),
        "method": _method(method, plan),
        "calibration": dumps(calibration.record()) if calibration is not None and is_lossy(plan) else "none",
        "report": "{}",
        "source": "{}",
    }
    entries = [
        Entry(stored_name(name, spec.part), spec.dtype, spec.shape)
        for name, item in plan.items()
        for spec in parts_of(*item)
    ]
    if tokenizer_bytes is not None:
        entries.append(Entry(TOKENIZER_TENSOR, "U8", (len(tokenizer_bytes),)))
    reserve = json_bound(plan) + 6 * len(told_name(weights.path).encode()) + 4096
    reserve += 2 * len(dumps(notes)) + (6 * len(dumps(dict(origin))) if origin else 0)
    reserve += QUALITY_BYTES if evaluated else 0
    return Frame(metadata, entries, reserve, tokenizer_bytes)


def _method(encoder: str, plan: Plan) -> str:
    """How codes are chosen: as the encoder does, unless there is nothing to choose or all are NF4's."""
    chosen = {item.encoding for item in plan.values() if ENCODINGS[item.encoding].weighted}
    return "none" if not chosen else "nf4" if chosen == {"nf4"} else encoder


def is_lossy(plan: Plan) -> bool:
    """Whether any tensor loses precision to codes and scales."""
    return any(ENCODINGS[item.encoding].quantized for item in plan.values())


def check_options(source: Source, *, tokenizer_json: bytes | None, group_norm_eps: float | None) -> None:
    """Raise InvalidRequest where `quantize` would for these options of its."""
    _epsilon(source, group_norm_eps)
    _tokenizer(source, tokenizer_json)


def _epsilon(source: Source, wanted: float | None) -> float | None:
    """The group norm's epsilon for the metadata."""
    if wanted is None:
        return source.group_norm_eps
    if source.group_norm_eps is None:
        raise InvalidRequest(f"{source.path} is an RWKV-4 model: it has no group norm")
    if not LEAST_EPS <= wanted <= MOST_EPS:
        raise InvalidRequest(f"a group norm epsilon of {wanted} makes no sense")
    return float(wanted)


def _tokenizer(source: Source, given: bytes | None) -> tuple[str, bytes | None]:
    """The metadata's tokenizer and the bytes to embed, if any."""
    if given is not None:
        try:
            valid = isinstance(json.loads(given), dict)
        except (ValueError, RecursionError):
            valid = False
        if not valid:
            raise InvalidRequest("the tokenizer file is not a tokenizer.json")
        return "json", given
    if source.tokenizer is not None:
        return source.tokenizer, source.tokenizer_bytes()
    return implied_tokenizer(source.arch.vocab_size), None


def implied_tokenizer(vocab_size: int) -> str:
    """The vocabulary of a checkpoint, by its size: "bytes", "world", or "none" when that is not certain."""
    if vocab_size == 256:
        return "bytes"
    return "world" if is_world(vocab_size) else "none"
