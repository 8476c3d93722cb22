"""What this installation has to work with: what `rwkv doctor` tells, as plain data."""

from __future__ import annotations

import platform
import sys
from typing import Any

EXTRAS = {
    "torch": ("torch", "bitsandbytes"), "gguf": ("gguf",), "serve": ("starlette", "uvicorn"), "grammar": ("llguidance",)
}  # fmt: skip
"""Optional sets of packages, as in pyproject.toml, and what each brings."""


def examine(threads: int | None = None) -> dict[str, Any]:
    """Keys: `version`, `python`, `system`, `cpu`, `threads`, `memory`, `gpu`, `extras`, `folders`.

    `threads`: how many were asked for. Everything is measured or asked for now; nothing is downloaded, and no
    optional package is imported.
    """
    from rwkvcli import __version__
    from rwkvcli.runtime.machine import memory, processors

    have, free = processors(), memory()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cpu": _cpu(),
        "threads": {
            "count": threads or have.threads,
            "why": "as asked" if threads else _threads_why(have),
            "allowed": have.allowed,
            "cores": have.cores,
            "quota": have.quota,
        },
        "memory": {"total_bytes": free.total, "available_bytes": free.available},
        "gpu": _gpu(),
        "extras": {name: _packages(names) for name, names in EXTRAS.items()},
        "folders": _folders(),
    }


def _cpu() -> dict[str, Any]:
    from rwkvcli import _kernels
    from rwkvcli.runtime.device import cpu_level

    levels, forced = _kernels.cpu_levels(), cpu_level()
    why = f"the best of {', '.join(levels)}, which this processor reports"
    level: str | None = levels[-1]
    if forced:
        level = forced.removesuffix("!")
        why = "RWKV_CPU_LEVEL asks for it"
        if not forced.endswith("!") and level not in levels:
            why, level = f"RWKV_CPU_LEVEL={forced} is not among {', '.join(levels)}", None
    return {"features": _kernels.cpu_features(), "levels": levels, "level": level, "why": why}


def _threads_why(have: Any) -> str:
    """Which of the limits decides."""
    if have.quota is not None and have.threads == max(1, int(have.quota)) < min(have.allowed, have.cores):
        return f"the control group allows {have.quota:g} processors' time"
    if have.slower:
        return f"{have.cores} fast cores: {have.slower} slower ones would hold them up"
    if have.cores < have.allowed:
        return f"{have.cores} physical cores behind {have.allowed} processors"
    return "as many as there are processors that this process may use"


def _gpu() -> dict[str, Any]:
    """`found`: names that NVIDIA's driver tells; `kernels`: the file of librwkv_cuda; `devices`: what these can use; `used`: the
    device that `auto` takes for a model that fits it, or None; `why`.
    """
    from rwkvcli.errors import DeviceUnavailable
    from rwkvcli.runtime import cuda
    from rwkvcli.runtime.machine import nvidia_gpus

    kernels, devices, used, named = cuda.library_path(), [], None, nvidia_gpus()
    if kernels is None and named:
        why = f"this build has no CUDA kernels, `auto` is the CPU; {cuda.KERNELS_COME_BY}, to have them"
    elif kernels is None:
        why = "this build has no CUDA kernels, `auto` is the CPU; `--device torch` uses PyTorch's"
    else:
        try:
            found = cuda.devices()
            devices = [{**device._asdict(), "usable": device.is_usable} for device in found]
            usable = [device for device in found if device.is_usable]
            if not usable:
                why = "none that this build's kernels run on; `auto` is the CPU"
            elif cuda.automatic_library() is None:
                why = f"`--device cuda` uses the kernels that {cuda.LIBRARY} names; `auto` is the CPU"
            else:
                used = f"cuda:{usable[0].number}"
                why = "`--device cuda` uses this build's kernels, and `auto` as far as a model fits"
        except DeviceUnavailable as e:
            why = f"{e}; `auto` is the CPU"
    return {
        "found": named,
        "kernels": str(kernels) if kernels is not None else None,
        "devices": devices,
        "used": used,
        "why": why,
    }


def _packages(names: tuple[str, ...]) -> dict[str, str | None]:
    """Versions of what is installed; None for what is not."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _folders() -> dict[str, str]:
    from rwkvcli.runtime.model import demo_path
    from rwkvcli.services import configuration, kept
    from rwkvcli.services.hub_cache import hub_cache

    return {
        "downloads": str(hub_cache()),
        "models": kept.PLACE.told(),
        "configuration": configuration.PLACE.told(),
        "program": str(demo_path().parent.parent),
        "python": sys.executable,
    }
