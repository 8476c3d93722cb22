"""The librwkv_cuda that tests use: one that computes on the processor, or that of a machine with a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_named = os.environ.get("RWKV_CUDA_LIBRARY")
LIBRARY = str(Path(_named).absolute()) if _named else ""
needs_library = pytest.mark.skipif(
    not LIBRARY, reason="RWKV_CUDA_LIBRARY is not set; scripts/test-cpp builds a library that needs no GPU"
)
