"""Which device a model is to run on."""

from __future__ import annotations

import os

from rwkvcli.errors import UsageError


def cpu_level() -> str:
    """The CPU level that RWKV_CPU_LEVEL forces, or empty. Whether there is such a level is for the kernels to say."""
    return os.environ.get("RWKV_CPU_LEVEL", "")


def parse_device(text: str) -> tuple[str, str]:
    """(`auto`, ""), (`cpu`, ""), (`cuda`, number) or (`torch`, torch device). Raises UsageError."""
    kind, _, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    if text in ("auto", "cpu"):
        return kind, ""
    if kind == "torch":
        return "torch", rest or "auto"
    if text == "cuda" or (kind == "cuda" and rest.isascii() and rest.isdecimal() and len(rest) < 4):
        return "cuda", str(int(rest or "0"))
    raise UsageError(f"unknown device {text!r}", hint="one of auto, cpu, cuda, cuda:N, torch, torch:DEVICE")
