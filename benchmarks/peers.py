"""Other programs' formats, each made and decoded by the program's own code: what int4 and int8 are compared with.

ggml's by the library that llama.cpp is (its `libggml-base`, which the PyPI `llama-cpp-python` builds) or, where that is
not given, the few that the PyPI `gguf` can make; bitsandbytes' by bitsandbytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
GGML = ("Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0")
GGUF_MAKES = ("Q4_0", "Q5_0", "Q8_0")
"""What the PyPI package can quantize to; K formats it can only decode."""


class Made(NamedTuple):
    """A matrix as another program stores it."""

    values: F32
    """What it decodes to, [N, K]."""
    nbytes: int


Peer = Callable[[F32, F32 | None], Made]
"""(float32 matrix [N, K], importance [K] for what takes one) -> what it becomes. ValueError: rows that do not fit."""


def peers(library: Path | None) -> dict[str, Peer]:
    """{name: how it is made}. `library`: a libggml-base.so."""
    found: dict[str, Peer] = {}
    if library is not None:
        ggml = _Ggml(library)
        for name in GGML:
            found[name] = lambda w, _, name=name: ggml.made(w, name, None)  # type: ignore[misc]
        for name in ("Q4_K", "Q5_K", "Q6_K"):
            found[f"{name}, importance"] = lambda w, h, name=name: ggml.made(w, name, h)  # type: ignore[misc]
    else:
        for name in GGUF_MAKES:
            found[name] = lambda w, _, name=name: _by_gguf(w, name)  # type: ignore[misc]
    return {**found, "NF4": _nf4, "LLM.int8": _llm_int8}


class _Ggml:
    """The quantizers of a ggml library."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.ggml_quantize_chunk.restype = ctypes.c_size_t
        self._library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_void_p,
        ]  # fmt: skip

    def made(self, w: F32, name: str, importance: F32 | None) -> Made:
        import gguf

        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rows, length = w.shape
        if length % block:
            raise ValueError(f"rows of {length} are no multiple of {block}")
        source = np.ascontiguousarray(w, np.float32)
        weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
        out = np.zeros(rows * length // block * size, np.uint8)
        self._library.ggml_quantize_chunk(
            int(kind), source.ctypes.data, out.ctypes.data, 0, rows, length,
            None if weights is None else weights.ctypes.data,
        )  # fmt: skip
        values = gguf.dequantize(out.reshape(rows, -1), kind)
        return Made(np.asarray(values, np.float32).reshape(w.shape), out.nbytes)


def _by_gguf(w: F32, name: str) -> Made:
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    if w.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
        raise ValueError(f"rows of {w.shape[1]} do not fit")
    stored = gguf.quantize(np.ascontiguousarray(w), kind)
    return Made(np.asarray(gguf.dequantize(stored, kind), np.float32).reshape(w.shape), stored.nbytes)


def _nf4(w: F32, _: F32 | None) -> Made:
    """Blocks of 64 along the rows, as bitsandbytes' Linear4bit has them, without its second quantization of scales."""
    import torch
    from bitsandbytes import functional

    stored, state = functional.quantize_4bit(torch.from_numpy(w.copy()), blocksize=64, quant_type="nf4")
    values: Any = functional.dequantize_4bit(stored, state).numpy()
    return Made(values.astype(np.float32), stored.numel() + 4 * state.absmax.numel())


def _llm_int8(w: F32, _: F32 | None) -> Made:
    """One scale a row, as bitsandbytes' Linear8bitLt stores weights."""
    import torch
    from bitsandbytes import functional

    stored, scales, _outliers = functional.int8_vectorwise_quant(torch.from_numpy(w.copy()).half())
    values: Any = functional.int8_vectorwise_dequant(stored, scales).float().numpy()
    return Made(values.astype(np.float32), stored.numel() + 4 * scales.numel())
