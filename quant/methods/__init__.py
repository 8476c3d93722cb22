"""Ways to choose codes and scales for a matrix.

The arithmetic of `nearest` and `codebook` is part of what they are: every operation is a float32 (or, where
said, float64) operation in a stated order without fused multiply-adds, so that a native encoder gives the
same bytes.
"""

from __future__ import annotations

from typing import Protocol

from quant.arrays import F32, Array
from quant.errors import InvalidRequest

METHODS = ("codebook", "nearest", "gptq")
"""codebook: tables of 4 and 5 bits learned per tensor. nearest: fixed ones. gptq: learned tables, and codes of 4, 5 and 6 bits that
make good for the errors of those before them, from calibration data. 8-bit codes are the same in all."""

STATISTICS = ("row_error", "row_power", "row_max")


class Encoder(Protocol):
    """Turns matrices into the parts of the file format."""

    method: str
    """Its name for the file's provenance: "codebook" or "nearest"."""

    def encode(self, w: F32, encoding: str, layout: str, importance: F32 | None = None) -> dict[str, Array]:
        """The parts ("q", "s", "d", "cb", as `quant.formats.parts_of` says) of a quantized `encoding`.

        `w`: finite float32 [N, K], C-contiguous. `importance`: float32 [K] > 0, how much errors at each input count when
        codes of 4, 5 or 6 bits are chosen (in layout `kn`, where a group has one input, only the choice of a table); None: all alike.
        Beside the parts: what was lost, per row (outputs; inputs in
        layout `kn`), as "row_error" (float64, sum of squared errors), "row_power" (float64, sum of squared weights)
        and "row_max" (float32, the largest absolute error).
        """
        ...


def numpy_encoder(method: str = "codebook") -> Encoder:
    """The plain numpy encoder of `method`, "codebook" or "nearest"; InvalidRequest for another one. About 4 M weights
    a second.
    """
    from quant.methods.numpy_twin import NumpyEncoder

    if method not in METHODS[:2]:
        raise InvalidRequest(f"unknown method {method!r}; known: {', '.join(METHODS[:2])}")
    return NumpyEncoder(method)
