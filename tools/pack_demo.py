#!/usr/bin/env python3
"""Make the package's demo model out of trained weights.

    python tools/pack_demo.py demo-weights.safetensors [OUT]      (written by tools/train_demo.py)

Without OUT it takes the place of the package's own. The result is a bf16 model file in this project's container; run it again when the container's version changes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from quant.checkpoints import open_checkpoint
from quant.methods import numpy_encoder
from quant.pipeline import quantize

TARGET = Path(__file__).parent.parent / "rwkvcli" / "data" / "demo.safetensors"


def main() -> None:
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else TARGET
    with open_checkpoint(sys.argv[1]) as checkpoint:
        result = quantize(checkpoint, target, "bf16", encoder=numpy_encoder(), force=True)
    print(f"{target}: {result.nbytes} bytes")


if __name__ == "__main__":
    main()
