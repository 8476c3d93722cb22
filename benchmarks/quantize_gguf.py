"""A GGUF file in a format of llama.cpp's quantizer. Runs in the environment of the peers (llama-cpp-python).

python quantize_gguf.py IN.gguf OUT.gguf Q8_0|Q4_0|Q4_K_M
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


def quantize(source: Path, out: Path, kind: str) -> None:
    """Write `out`, whole or not at all."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    part = out.with_suffix(".part")
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(params))
    if code != 0:
        raise SystemExit(f"llama_model_quantize: {code}")
    part.replace(out)


if __name__ == "__main__":
    source, out, kind = sys.argv[1:]
    quantize(Path(source), Path(out), kind)
