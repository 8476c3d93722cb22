"""Models and layouts that are recognised but not supported, each refused by its own name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from quant.errors import UnsupportedModel

_HF_HINT = "Use the original .pth (BlinkDL tensor names) instead."

_REFUSALS: tuple[tuple[str, str, str | None], ...] = (
    # (pattern searched in each name, what the file holds, hint); the first match wins
    (r"\.lora_[AB]$|\.lora\.[01]$", "a LoRA, not a whole model", "Merge it into its base model first."),
    (r"^blocks\.\d+\.qkv\.", "RWKV-7b (v7b: quadratic attention with a growing cache)", None),
    (r"\.ffn\.s_emb|\.ffn\.s[012]$", "RWKV-7a (v7a: DeepEmbed)", None),
    (r"\.tiny_(q|k|v|ln)", "RWKV-4a (tiny attention)", None),
    (r"\.att\.(qq|kk|vv|oo)(\.|$)", "RWKV-4b (tiny attention)", None),
    (r"^head_[qk]\.", "RWKV-4 with head-QK", None),
    (r"\.self_attn\.|^transformer\.|^gpt_neox\.|^model\.layers\.\d+\.mlp\.", "a transformer, not RWKV", None),
    (r"^rwkv7\.", "RWKV-7 in transformers layout (Hugging Face names)", _HF_HINT),
    (r"^model\.layers\.\d+\.(attn|ffn)|_lora\.lora\.", "RWKV-7 in fla layout (Hugging Face names)", _HF_HINT),
    (r"^rwkv\.|\.(attention|feed_forward)\.", "RWKV in transformers layout (Hugging Face names)", _HF_HINT),
    (r"^lm_head\.|(^|\.)embeddings\.weight$", "RWKV in a Hugging Face layout", _HF_HINT),
    (r"^blk\.\d+\.|^token_embd\.", "a model with GGUF tensor names", _HF_HINT),
    (r"\.att\.x_rwkvag$", "RWKV-7 with rwkv.cpp tensor names", _HF_HINT),
)


def refuse_by_name(shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise UnsupportedModel if a canonical name belongs to a known unsupported variant or layout."""
    for pattern, what, hint in _REFUSALS:
        search = re.compile(pattern).search
        if any(search(name) for name in shapes):
            raise UnsupportedModel(f"{where} holds {what}: not supported yet", hint=hint)
    states = sum(name.endswith(".att.time_state") for name in shapes)
    if states and states == len(shapes):
        raise UnsupportedModel(f"{where} holds an initial state (time_state), not a model")
    if states:
        raise UnsupportedModel(f"{where} has an initial state (time_state) merged in: not supported yet")
    _refuse_web_rwkv(shapes, where)


def _refuse_web_rwkv(shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """The .st layout of web-rwkv renames v6 tensors, and stores low-rank factors transposed ([D, C])."""
    embedding = shapes.get("emb.weight", ())
    transposed = False
    for name, shape in shapes.items():
        if len(embedding) == 2 and len(shape) == 2 and re.search(r"\.att\.(time_decay_w|[wag])1$", name):
            transposed |= shape[0] != embedding[1] == shape[1]
    renamed = any(name.endswith(".att.time_mix_x") for name in shapes)
    v5_renamed = any(name.endswith(".att.time_first") and len(shape) == 2 for name, shape in shapes.items())
    if transposed or renamed or v5_renamed:
        raise UnsupportedModel(f"{where} is in web-rwkv's .st layout: not supported yet", hint=_HF_HINT)
