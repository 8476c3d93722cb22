"""Tensor names: from what a file calls them to BlinkDL's names, the canonical ones."""

from __future__ import annotations

from collections.abc import Iterable

from quant.errors import FormatError, quoted

PREFIXES = ("_forward_module.", "module.", "model.", "_orig_mod.")
"""What training frameworks (DeepSpeed, DataParallel, Lightning, torch.compile) put before the names."""

ROOTS = ("emb.", "blocks.", "ln_out.", "head.", "head_q.", "head_k.")
"""What every BlinkDL name begins with."""


def canonical_name(name: str) -> str:
    """`name` without training prefixes, if what remains is a BlinkDL name; else `name` as it is.

    >>> canonical_name("_forward_module.model.blocks.0.ln1.weight")
    'blocks.0.ln1.weight'
    >>> canonical_name("model.layers.0.attn.k_k")
    'model.layers.0.attn.k_k'
    """
    rest = name
    while prefix := next((p for p in PREFIXES if rest.startswith(p)), None):
        rest = rest[len(prefix) :]
    return rest if rest.startswith(ROOTS) else name


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """{canonical name: name in the file}, in the given order. FormatError when two names become one."""
    result: dict[str, str] = {}
    for name in names:
        canonical = canonical_name(name)
        if canonical in result:
            raise FormatError(f"{quoted(result[canonical])} and {quoted(name)} are both {quoted(canonical)}")
        result[canonical] = name
    return result
