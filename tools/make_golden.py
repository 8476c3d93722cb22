"""Write tests/golden: what the PyPI package `rwkv` computes with the seeded models of tests/oracle/cases.py.

    python tools/make_golden.py [CASE ...]

Needs torch and the package (`pip install rwkv==0.8.32 torch`). The files say which versions made them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracle import cases, reference  # type: ignore[import-not-found]  # noqa: E402

SAME = 2e-5
"""The package's two modes may differ by this much of the logits' range, or the case is no good as an
oracle.
"""


def make(case: cases.Case) -> None:
    """Run the package on one case and write its golden file."""
    tokens = case.tokens()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = case.write(Path(folder) / "model.pth")
        result = reference.run_reference(case.version, checkpoint, tokens, Path(folder))
    spread = cases.relative_difference(result.sequence, result.serial)
    if not spread <= SAME:
        raise SystemExit(f"{case.name}: the package's own modes differ by {spread:.1e} of the logits' range")
    positions = [0, 1, 8, len(tokens) - 1]
    arrays = {
        "tokens": np.array(tokens, np.int32),
        "logits": result.serial[positions],
        "fingerprint": case.fingerprint(),
        **{f"state/{name}": array for name, array in result.serial_state.items()},
    }
    facts = {**result.made_with, "positions": positions, "spread": float(f"{spread:.3e}")}
    target = cases.GOLDEN / f"{case.name}.safetensors"
    save_file(arrays, target, metadata={"golden": json.dumps(facts, sort_keys=True)})
    reach = float(np.ptp(result.serial))
    size = target.stat().st_size
    print(f"{case.name}: {size:,} bytes, logits' range {reach:.1f}, modes differ by {spread:.1e}")


def main(names: list[str]) -> None:
    cases.GOLDEN.mkdir(exist_ok=True)
    for case in cases.CASES:
        if not names or case.name in names:
            make(case)


if __name__ == "__main__":
    main(sys.argv[1:])
