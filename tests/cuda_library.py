"""The librwkv_cuda that tests use: one that computes on the processor, or that of a machine with a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from links import link

from rwkvcli import _kernels
from rwkvcli.runtime import cuda

_named = os.environ.get("RWKV_CUDA_LIBRARY")
LIBRARY = str(Path(_named).absolute()) if _named else ""
NAME = "rwkv_cuda.dll" if sys.platform == "win32" else "librwkv_cuda.so"
needs_library = pytest.mark.skipif(
    not LIBRARY, reason="RWKV_CUDA_LIBRARY is not set; scripts/test-cpp builds a library that needs no GPU"
)


def is_emulated() -> bool:
    """Whether it computes on the processor: then RWKV_CUDA_EMULATED_MEMORY says how much memory its GPU has."""
    return "emulated" in Path(LIBRARY).name


def free_memory(nbytes: int) -> str:
    """What RWKV_CUDA_EMULATED_MEMORY has to be for so many bytes to be free, beside what is in use."""
    device = cuda.devices()[0]
    return str(device.memory - device.free_memory + nbytes)


def put_beside(monkeypatch: pytest.MonkeyPatch, folder: Path, library: str | None = LIBRARY) -> None:
    """Make it look as if the extension lay in `folder`, with `library` (None: no library) beside it, which `auto` uses."""
    monkeypatch.setattr(cuda, "automatic_library", cuda.library_beside)
    monkeypatch.setattr(_kernels, "__file__", str(folder / "_kernels.so"))
    if library is not None:
        link(folder / NAME, library)
