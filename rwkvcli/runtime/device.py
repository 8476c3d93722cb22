"""Which device a model is to run on."""

from __future__ import annotations

import os

from rwkvcli.errors import DeviceUnavailable, UsageError


def cpu_level() -> str:
    """The CPU level that RWKV_CPU_LEVEL forces, or empty. Whether there is such a level is for the kernels to say."""
    return os.environ.get("RWKV_CPU_LEVEL", "")


def parse_device(text: str) -> tuple[str, str]:
    """(`cpu`, "") or (`torch`, torch device). Raises UsageError or DeviceUnavailable."""
    kind, _, rest = text.partition(":")
    if kind in ("auto", "cpu") and not rest:
        return "cpu", ""
    if kind == "torch":
        return "torch", rest or "auto"
    if kind == "cuda":
        raise DeviceUnavailable(
            "this build has no CUDA kernels",
            hint="use `--device cpu`, or `--device torch:cuda` with the torch extra",
        )
    raise UsageError(f"unknown device {text!r}", hint="one of auto, cpu, torch, torch:DEVICE")
