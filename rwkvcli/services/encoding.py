"""The native encoder, in the form that `quant` takes encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rwkvcli.errors import DeviceUnavailable

if TYPE_CHECKING:
    from quant.arrays import F32, Array


@dataclass
class NativeEncoder:
    """The C++ encoder of `rwkvcli._kernels`: the bytes of `quant.methods.numpy_twin`, many times as fast."""

    threads: int
    method: str = "codebook"
    level: str = ""
    """A CPU level, or empty for the best one. The bytes are the same on all."""

    def encode(self, w: F32, encoding: str, layout: str, importance: F32 | None = None) -> dict[str, Array]:
        """Parts of the float32 matrix w [N, K] by name. See `quant.methods.Encoder`.

        Raises UsageError (no such level) and DeviceUnavailable (one that does not run here).
        """
        from rwkvcli import _kernels
        from rwkvcli.runtime.native import refused

        values = np.ascontiguousarray(w, np.float32)
        try:
            return _kernels.encode(
                values, encoding, layout, self.threads, self.method, self.level, importance
            )
        except _kernels.DeviceError as e:
            raise DeviceUnavailable(str(e)) from None
        except ValueError as e:
            raise refused(e) from None
