"""Tensor names: from what a file calls them to BlinkDL's names, the canonical ones."""

from __future__ import annotations

_TRAINING = ("_forward_module.", "module.", "_orig_mod.")
"""What training frameworks (DeepSpeed, DataParallel, torch.compile) put before the names."""
PREFIXES = (*_TRAINING, "model.", "rwkv.", "rwkv7.")
"""These, and what Lightning and the transformers put there."""

ROOTS = ("emb.", "blocks.", "ln_out.", "head.", "head_q.", "head_k.", "embeddings.", "lm_head.")
"""What every BlinkDL name begins with, and the transformers' words for two of them."""


def without_training_prefixes(name: str) -> str:
    """`name` without what training frameworks put before it.

    >>> without_training_prefixes("_forward_module.module.model.norm.weight")
    'model.norm.weight'
    """
    return _without(name, _TRAINING)


def canonical_name(name: str) -> str:
    """`name` without training prefixes, if what remains is a BlinkDL name; else `name` as it is.

    >>> canonical_name("_forward_module.model.blocks.0.ln1.weight")
    'blocks.0.ln1.weight'
    >>> canonical_name("model.layers.0.attn.k_k")
    'model.layers.0.attn.k_k'
    """
    rest = _without(name, PREFIXES)
    return rest if rest.startswith(ROOTS) else name


def _without(name: str, prefixes: tuple[str, ...]) -> str:
    while prefix := next((p for p in prefixes if name.startswith(p)), None):
        name = name[len(prefix) :]
    return name
