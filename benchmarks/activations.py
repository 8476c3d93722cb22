"""What rounding activations to 8 bits costs, apart from what rounding weights costs: part of `benchmarks.quality`.

Products with integer matrices round their inputs too, 32 at a time. The twin of a model file has the same rounded weights
as float32 and so takes inputs as they are: how far the file is from its twin is what activations cost. Two planes
of 8 bits for an input would be the twin to within 1e-8.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quant.container.reader import ModelFile

KINDS = ("int8", "int6", "int5", "int4")
HEAD = "| format | KL, weights rounded | KL, activations too | KL, one against the other | ratio, one to the other |"


def compare(
    base: Path,
    folder: Path,
    make: Callable[[Path, str], Path],
    measure: Callable[[Path, Path], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Every kind beside its twin and the float32 model `base`; prints a table. Divergences in nats.

    `make(path, kind)` writes a model file; `measure(path, base)` compares two.
    """
    print(f"\n{HEAD}\n|---|" + "---:|" * (HEAD.count("|") - 2), flush=True)
    found = []
    for kind in KINDS:
        path = make(folder / f"{kind}.safetensors", kind)
        twin = decoded(path, base, folder / f"{kind}-twin.safetensors")
        told = {"weights": measure(twin, base), "both": measure(path, base), "between": measure(path, twin)}
        found.append({"format": kind, **told})
        weights, both, between = (told[name]["base"] for name in ("weights", "both", "between"))
        divergences = " | ".join(f"{each['kl']['mean']:.3g}" for each in (weights, both, between))
        ratio = f"{between['ratio']:.5f} ± {between['ratio_stderr']:.5f}"
        print(f"| {kind} | {divergences} | {ratio} |", flush=True)
    return found


def decoded(path: Path, base: Path, out: Path) -> Path:
    """A copy of the float32 model file `base` with the weights of `path`."""
    shutil.copyfile(base, out)
    with ModelFile.open(path) as weights, ModelFile.open(base) as layout, out.open("r+b") as file:
        for name, plan in layout.plan.items():
            if plan.encoding == "f32":
                file.seek(plan.parts[0].offset)
                file.write(weights.decode(name).astype("<f4").tobytes())
    return out
