"""A folder for the Hugging Face transformers in which attention and FFN are NF4, as bitsandbytes reads it.

Names, files and configuration are those of `quant.export.hf`. A linear layer `X.weight` becomes its codes, two to a byte, and
beside them `X.weight.absmax`, `X.weight.quant_map` and `X.weight.quant_state.bitsandbytes__nf4` (JSON), which is what
`Params4bit.from_prequantized` takes. Scales are float32, not quantized once more. The layers that stay floats are named in the
configuration, since a reader takes every other one for quantized.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quant.arch import Shape
from quant.arrays import F32, U8
from quant.codecs.nf4 import BLOCK, VALUES, Blocks, packed
from quant.export import hf
from quant.export.outgoing import Outgoing, OutgoingStream
from quant.export.weights import Weights
from quant.methods import nf4
from quant.recipe import class_of

_FORM = "nf4"
_STATE = "quant_state.bitsandbytes__nf4"


def tensors(weights: Weights, dtype: str | None) -> list[Outgoing]:
    """See `quant.export.formats`. InvalidRequest: what `quant.export.hf` does not hold; bitsandbytes is not installed,
    and there is something to quantize.
    """
    source = _Source(weights)
    result: list[Outgoing] = []
    for name, item in zip(weights.shapes, hf.tensors(weights, dtype), strict=True):
        if source.takes(name):
            result += _parts(source, name, item)
        else:
            result.append(item)
    return result


def save(weights: Weights, stream: OutgoingStream, out: Path, vocabulary: Sequence[bytes] | None) -> None:
    """See `quant.export.hf.write_folder`."""
    states = (item for item in stream.tensors if item.name.endswith(_STATE))
    dtype = json.loads(next(states).make().tobytes())["dtype"]
    short = next(name for name, long in hf.DTYPES.items() if long == dtype)
    hf.write_folder(
        weights, stream, out, hf.config(weights, short) | {"quantization_config": _settings(stream, dtype)}
    )


class _Source:
    """Codes and scales of one matrix at a time."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._held: tuple[str, Blocks] | None = None
        if not weights.nf4:
            nf4.require()

    def takes(self, name: str) -> bool:
        """Whether the matrix is to be NF4: in a model file of nf4 those that are, else those of attention and FFN."""
        return name in self._weights.nf4 if self._weights.nf4 else class_of(name) in ("att", "ffn")

    def codes(self, name: str) -> U8:
        """[N * K / 2, 1]."""
        return packed(self._blocks(name).codes)

    def absmax(self, name: str) -> F32:
        """[N * K / 64]."""
        absmax = self._blocks(name).absmax
        self._held = None
        return absmax

    def _blocks(self, name: str) -> Blocks:
        if self._held is None or self._held[0] != name:
            weights = self._weights
            self._held = name, weights.blocks(name) if weights.nf4 else nf4.quantized(weights.read(name))
        return self._held[1]


def _parts(source: _Source, name: str, item: Outgoing) -> Iterator[Outgoing]:
    """What stands for the linear layer `item`, the matrix `name`."""
    count = math.prod(item.shape)
    state = _state(item.shape, item.dtype)
    yield Outgoing(item.name, (-(-count // 2), 1), "u8", partial(source.codes, name), _FORM)
    yield Outgoing(f"{item.name}.absmax", (-(-count // BLOCK),), "f32", partial(source.absmax, name), "")
    yield Outgoing(f"{item.name}.quant_map", VALUES.shape, "f32", VALUES.copy, "")
    yield Outgoing(f"{item.name}.{_STATE}", state.shape, "u8", state.copy, "")


def _state(shape: Shape, dtype: str) -> U8:
    """What bitsandbytes keeps beside the tensors, as it writes it: JSON in bytes."""
    said = {"quant_type": _FORM, "blocksize": BLOCK, "dtype": hf.DTYPES[dtype], "shape": shape}
    return np.frombuffer(json.dumps(said).encode(), np.uint8)


def _settings(stream: OutgoingStream, dtype: str) -> dict[str, Any]:
    """The transformers' BitsAndBytesConfig, with every linear layer that is not quantized."""
    plain = [
        item.name.removesuffix(".weight")
        for item in stream.tensors
        if item.form is None
        and item.name.endswith(".weight")
        and len(item.shape) == 2
        and "embeddings" not in item.name
    ]
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": _FORM,
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_compute_dtype": dtype,
        "llm_int8_skip_modules": plain,
    }
