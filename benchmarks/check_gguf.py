"""Shows that the GGUF files hold the same model: llama.cpp's logits beside this engine's, on the same tokens.

    python -m benchmarks.check_gguf 12x768 --peers /path/to/venv/bin/python

Float32 files of both must agree in the likeliest token everywhere and within 1e-3 of the logits' range; the F16 file, whose
weights were rounded once more, within 1e-2. Quantized files are only shown. Ends with 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.models import Shape
from benchmarks.workers.client import Worker

BOUNDS = {"F32": 1e-3, "F16": 1e-2}


def main() -> None:
    """Compare every file with the float32 one of this engine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", metavar="LAYERSxWIDTH")
    parser.add_argument("--peers", metavar="PYTHON", required=True)
    parser.add_argument("--density", type=float, default=models.PLAIN)
    parser.add_argument("--tokens", type=int, default=48, help="64 at most")
    parser.add_argument("--kinds", nargs="+", default=["F32", "F16", "Q8_0", "Q4_0"])
    parser.add_argument("--folder", type=Path, default=Path("out"))
    args = parser.parse_args()
    shape = Shape.parse(args.shape, args.density)
    with Worker("f32", "ours", str(models.ours(args.folder, shape, "f32")), "1") as worker:
        wanted = np.array(worker.ask("logits", args.tokens)["logits"])
    wrong = 0
    print("| GGUF | largest difference / range | mean square error / variance | same likeliest token |")
    print("|---|---|---|---|")
    for kind in args.kinds:
        path = models.gguf(args.folder, shape, kind, args.peers)
        with Worker(kind, "llama", str(path), "1", python=args.peers) as worker:
            found = np.array(worker.ask("logits", args.tokens)["logits"])
        error = np.abs(found - wanted).max() / np.ptp(wanted)
        square = ((found - wanted) ** 2).mean() / wanted.var()
        same = (found.argmax(-1) == wanted.argmax(-1)).mean()
        bound = BOUNDS.get(kind)
        bad = bound is not None and (error > bound or (kind == "F32" and same < 1))
        wrong += bad
        print(f"| {kind} | {error:.2g} | {square:.2g} | {100 * same:.0f} %{' WRONG' if bad else ''} |")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
