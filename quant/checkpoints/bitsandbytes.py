"""Tensors that bitsandbytes quantized, in the safetensors files that the transformers write: decoded as they are read.

Four bits (NF4, FP4): `X` holds two codes to a byte (the high half first), `X.quant_map` the values of the codes, `X.absmax`
the scale of every block; with nested quantization the scales are codes themselves (`X.nested_quant_map`,
`X.nested_absmax`, an offset). `X.quant_state.bitsandbytes__nf4` is JSON: shape, sizes of blocks, offset. Eight bits
(LLM.int8): `X` int8 [out, in] and `SCB` beside it, the largest absolute value of each row, which the code 127 stands for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quant.arch import Shape
from quant.arrays import F32, Array
from quant.checkpoints.tensor_file import RawTensor, TensorFile
from quant.errors import FormatError, UnsupportedModel, quoted

_STATE = re.compile(r"(.+)\.quant_state\.bitsandbytes__(nf4|fp4)", re.DOTALL)
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_CODES = {"quant_map": 16, "nested_quant_map": 256}
_MAX_STATE = 1 << 16
_LARGEST_CODE = 127
_ROW_MAJOR = 0
"""`weight_format` of int8 weights that lie row by row."""


class _State(NamedTuple):
    """How one four-bit tensor is to be decoded."""

    shape: Shape
    block: int
    nested_block: int
    """0: scales are float32."""
    offset: float


class DequantizedTensors(TensorFile):
    """`source` with every quantized tensor decoded to float32, and what belongs to their decoding left out."""

    def __init__(self, source: TensorFile) -> None:
        """`source` is this object's from now on. Raises FormatError (parts missing or of wrong sizes) and
        UnsupportedModel (tiled int8 weights).
        """
        self._source = source
        self.format = source.format  # type: ignore[misc]
        self.path, self.size = source.path, source.size
        self.metadata, self.numbers = source.metadata, source.numbers
        found = source.tensors
        self._states = {
            match[1]: self._state(match[1], name)
            for name in found
            if (match := _STATE.fullmatch(name)) is not None
        }
        self._rows = {
            name: scale
            for name, raw in found.items()
            if raw.dtype == "i8" and (scale := self._scale_of(name))
        }
        hidden = {f"{name}.{part}" for name in self._states for part in _PARTS}
        hidden |= {name for name in found if _STATE.fullmatch(name)} | set(self._rows.values())
        hidden |= {scale.removesuffix("SCB") + "weight_format" for scale in self._rows.values()}
        self.tensors = {name: self._described(name, raw) for name, raw in found.items() if name not in hidden}

    @staticmethod
    def needed(source: TensorFile) -> bool:
        """Whether `source` holds anything that bitsandbytes quantized."""
        return any(_STATE.fullmatch(name) or name.endswith(".SCB") for name in source.tensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """See `TensorFile.files`."""
        return self._source.files

    def array(self, name: str) -> Array:
        """See `TensorFile.array`."""
        if name in self._states:
            return self._four_bits(name, self._states[name])
        if name in self._rows:
            scale = self._source.array(self._rows[name]).reshape(-1, 1).astype(np.float32)
            return self._source.array(name) * scale * np.float32(1 / _LARGEST_CODE)
        return self._source.array(name)

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """See `TensorFile.sha256`."""
        return self._source.sha256(progress)

    def close(self) -> None:
        """See `TensorFile.close`."""
        self._source.close()

    def _described(self, name: str, raw: RawTensor) -> RawTensor:
        if name in self._states:
            kind = next(
                k for k in ("nf4", "fp4") if f"{name}.quant_state.bitsandbytes__{k}" in self._source.tensors
            )
            return RawTensor("f32", self._states[name].shape, kind, raw.nbytes, lossy=True)
        if name in self._rows:
            return RawTensor("f32", raw.shape, "int8 (bitsandbytes)", raw.nbytes, lossy=True)
        return raw

    def _four_bits(self, name: str, state: _State) -> F32:
        packed = self._source.array(name).reshape(-1).view(np.uint8)
        codes = np.empty(2 * packed.size, np.uint8)
        codes[0::2], codes[1::2] = packed >> 4, packed & 15
        values = self._source.array(f"{name}.quant_map").astype(np.float32)[codes]
        scales = self._source.array(f"{name}.absmax")
        if state.nested_block:
            nested = self._source.array(f"{name}.nested_absmax").astype(np.float32)
            table = self._source.array(f"{name}.nested_quant_map").astype(np.float32)
            scales = table[scales] * nested[np.arange(scales.size) // state.nested_block]
            scales += np.float32(state.offset)
        count = math.prod(state.shape)
        whole = count // state.block
        full = values[: whole * state.block].reshape(whole, state.block)
        full *= scales[:whole, np.newaxis]
        if count > whole * state.block:
            values[whole * state.block : count] *= scales[whole]
        return values[:count].reshape(state.shape)

    def _state(self, name: str, key: str) -> _State:
        """The checked state of the four-bit tensor `name`."""
        found = self._source.tensors
        where = f"{self._source.path}: tensor {quoted(name)}"
        if name not in found or found[key].nbytes > _MAX_STATE or found[key].dtype != "u8":
            raise FormatError(f"{where}: its quantization state is damaged")
        try:
            said: Any = json.loads(self._source.array(key).tobytes())
            shape = tuple(said["shape"])
            block, nested_block = said["blocksize"], said.get("nested_blocksize", 0)
            offset = float(said.get("nested_offset", 0.0))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise FormatError(f"{where}: its quantization state is damaged") from None
        sizes = (*shape, block, nested_block or 1)
        if not all(type(size) is int and 0 < size < 1 << 32 for size in sizes) or not math.isfinite(offset):
            raise FormatError(f"{where}: its quantization state has sizes that are none")
        state = _State(shape, block, nested_block, offset)
        self._check(name, state, where)
        return state

    def _check(self, name: str, state: _State, where: str) -> None:
        """Every part there, of the dtype and size that the state asks for."""
        count = math.prod(state.shape)
        blocks = -(-count // state.block)
        wanted = {"absmax": blocks, "quant_map": _CODES["quant_map"]}
        if state.nested_block:
            wanted |= {
                "nested_absmax": -(-blocks // state.nested_block),
                "nested_quant_map": _CODES["nested_quant_map"],
            }
        for part, size in wanted.items():
            raw = self._source.tensors.get(f"{name}.{part}")
            dtype = "u8" if part == "absmax" and state.nested_block else "f32"
            if raw is None or raw.dtype != dtype or math.prod(raw.shape) != size:
                raise FormatError(f"{where}: its {part} is missing or not {size} numbers of {dtype}")
        if self._source.tensors[name].nbytes != -(-count // 2):
            raise FormatError(f"{where}: its bytes do not hold {count} codes of 4 bits")

    def _scale_of(self, name: str) -> str:
        """The name of an int8 tensor's scales, checked; "" if it has none."""
        scale = name.removesuffix("weight") + "SCB"
        found = self._source.tensors
        if not name.endswith(".weight") or scale not in found:
            return ""
        raw, weight = found[scale], found[name]
        if (
            len(weight.shape) != 2
            or raw.dtype not in ("f32", "f16")
            or math.prod(raw.shape) != weight.shape[0]
        ):
            raise FormatError(f"{self._source.path}: tensor {quoted(scale)} does not fit its int8 weights")
        layout = name.removesuffix("weight") + "weight_format"
        if (
            layout in found
            and found[layout].dtype == "u8"
            and bool((self._source.array(layout) != _ROW_MAJOR).any())
        ):
            raise UnsupportedModel(
                f"{self._source.path}: the int8 weights {quoted(name)} are tiled for a processor: not supported"
            )
        return scale
