"""NF4 codes chosen by bitsandbytes itself, on the CPU. It is imported here only, and only when there is something to do."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from quant.arrays import F32, U8, Array
from quant.codecs import layouts, nf4, q4
from quant.codecs.grouped import Grouped
from quant.codecs.nf4 import BLOCK, Blocks
from quant.errors import InvalidRequest
from quant.metrics import Loss, Losses, measure

_TOGETHER = 1 << 20
"""Weights that are quantized together, about: bitsandbytes needs several times their memory."""
_PACKAGES = ("torch", "bitsandbytes")


class Encoded(NamedTuple):
    """A matrix for the model file."""

    parts: dict[str, Array]
    """As `quant.formats.parts_of` says."""
    losses: Losses


def require() -> None:
    """Raise InvalidRequest, with the line that installs them, if bitsandbytes or what it needs are not there."""
    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        raise _missing()


def encode(w: F32, layout: str) -> Encoded:
    """The parts of encoding `nf4` for finite float32 w [N, K], K a multiple of 64: the same bytes on every machine.

    Raises what `quantized` raises.
    """
    count, length = w.shape
    made, loss, recoding = [], Loss(), Loss()
    step = max(1, _TOGETHER // length)
    for begin in range(0, count, step):
        part = w[begin : begin + step]
        found = quantized(part)
        kept = nf4.to_grouped(found)
        stored = q4.decode(kept)
        loss += measure(part, stored)
        recoding += measure(nf4.values(found), stored)
        made.append(kept)
    codes = np.concatenate([each.codes for each in made])
    scales = np.concatenate([each.scales for each in made])
    rows = np.concatenate([each.rows for each in made])
    made.clear()  # packing makes more copies of the codes
    whole = Grouped(codes, scales, rows, length, nf4.CODEBOOK)
    return Encoded(layouts.pack(whole, "nf4", layout, (count, length)), Losses(loss, recoding))


def quantized(w: F32) -> Blocks:
    """float32 w [N, K] in blocks of 64 of the flattened matrix, by bitsandbytes.

    Raises InvalidRequest: it is not installed, or too old to do this on a processor.
    """
    functional = _functional()
    rows, length = w.shape
    codes: U8 = np.empty((rows, length), np.uint8)
    absmax: F32 = np.empty(-(-rows * length // BLOCK), np.float32)
    # whole blocks and whole bytes, whatever the rows' length
    step = max(BLOCK, _TOGETHER // length // BLOCK * BLOCK)
    # a tensor that exists makes others, so that torch itself need not be imported here
    like = functional.get_4bit_type("nf4", device="cpu")
    for begin in range(0, rows, step):
        part = np.ascontiguousarray(w[begin : begin + step], np.float32)
        try:
            stored, state = functional.quantize_4bit(like.new_tensor(part), blocksize=BLOCK, quant_type="nf4")
        except NotImplementedError:
            raise InvalidRequest(
                "this version of bitsandbytes does not quantize on a processor",
                hint="upgrade it: pip install -U bitsandbytes",
            ) from None
        codes[begin : begin + step] = nf4.unpacked(stored.numpy(), part.shape)
        at = begin * length // BLOCK
        absmax[at : at + state.absmax.numel()] = state.absmax.numpy()
    return Blocks(codes, absmax)


def _functional() -> Any:
    with contextlib.nullcontext() if "bitsandbytes" in sys.modules else _alone():
        try:
            from bitsandbytes import functional
        except ImportError:
            raise _missing() from None
    return functional


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """While bitsandbytes is imported: no download of kernels that are not needed here, and no word about them."""
    logger, kernels = logging.getLogger("bitsandbytes"), sys.modules.get("kernels")
    level = logger.level
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels


def _missing() -> InvalidRequest:
    return InvalidRequest('NF4 needs packages that are not installed: pip install "rwkvcli[torch]"')
