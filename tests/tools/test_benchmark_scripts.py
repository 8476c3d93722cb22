"""What the scripts in benchmarks/ name exists."""

from __future__ import annotations

import importlib
from pathlib import Path

import gguf
import pytest

ROOT = Path(__file__).parent.parent.parent


def test_every_rival_is_a_format_of_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    compare = importlib.import_module("benchmarks.compare")
    known = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert set(compare.RIVAL.values()) <= known
    assert {"F16", "F32"}.isdisjoint(compare.QUANTIZED_RIVALS)
