"""Models and layouts that are recognised but not supported, each refused by its own name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from quant.errors import UnsupportedModel

_REFUSALS: tuple[tuple[str, str, str | None], ...] = (
    # (pattern searched in each name, what the file holds, hint); the first match wins
    (r"\.lora_[AB]$|\.lora\.[01]$", "a LoRA, not a whole model", "merge it into its base model first"),
    (r"^blocks\.\d+\.qkv\.", "RWKV-7b (v7b: quadratic attention with a growing cache)", None),
    (r"\.ffn\.s_emb|\.ffn\.s[012]$", "RWKV-7a (v7a: DeepEmbed)", None),
    (r"\.tiny_(q|k|v|ln)", "RWKV-4a (tiny attention)", None),
    (r"\.att\.(qq|kk|vv|oo)(\.|$)", "RWKV-4b (tiny attention)", None),
    (r"^head_[qk]\.", "RWKV-4 with head-QK", None),
    (r"\.self_attn\.|^transformer\.|^gpt_neox\.|^model\.layers\.\d+\.mlp\.", "a transformer, not RWKV", None),
    (r"^model\.layers\.\d+\.attn\.x_proj\.", "RWKV-6 in fla layout", "use the original .pth instead"),
)


def refuse_by_name(shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise UnsupportedModel if a canonical name belongs to a known unsupported variant or layout."""
    for pattern, what, hint in _REFUSALS:
        search = re.compile(pattern).search
        if any(search(name) for name in shapes):
            raise UnsupportedModel(f"{where} holds {what}: not supported yet", hint=hint)
    states = sum(name.endswith(".att.time_state") for name in shapes)
    if any(name.endswith(".ffn.x_prev") for name in shapes):  # of no model
        raise UnsupportedModel(f"{where} is a state, not a model", hint="`rwkv state info` shows it")
    if states and states == len(shapes):
        raise UnsupportedModel(f"{where} holds an initial state (time_state), not a model")
    if states:
        raise UnsupportedModel(f"{where} has an initial state (time_state) merged in: not supported yet")
