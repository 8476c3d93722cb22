"""Run the model author's PyPI package `rwkv` on a checkpoint, in a process of its own.

The package chooses between its v4-6 and its v7 classes by an environment variable read at import, hence the
process:

    python reference.py VERSION CHECKPOINT.pth TOKENS.json OUT.safetensors

OUT gets `serial` and `sequence` [T, V] (logits after each token, one call per token or one for all), the
final states of both in the canonical form, named `serial/blocks.0.att.x_prev` and so on ([H, value, key]
matrices), all float32, and in its metadata the versions of `rwkv` and torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

V4_STATE = ("att.x_prev", "att.aa", "att.bb", "att.pp", "ffn.x_prev")
MATRIX_STATE = ("att.x_prev", "att.state", "ffn.x_prev")


@dataclass(frozen=True)
class Reference:
    """What the package computed: logits float32 [T, V] and final states by canonical name."""

    serial: Float32
    sequence: Float32
    serial_state: dict[str, Float32]
    sequence_state: dict[str, Float32]
    made_with: dict[str, str]


def available() -> bool:
    """Whether the package and torch are installed (without importing them)."""
    return importlib.util.find_spec("rwkv") is not None and importlib.util.find_spec("torch") is not None


def run_reference(version: str, checkpoint: Path, tokens: Sequence[int], scratch: Path) -> Reference:
    """Run the package on `checkpoint` (a .pth file) in a child process; `scratch` is a folder for its
    files.
    """
    from safetensors import safe_open

    asked, answer = scratch / "tokens.json", scratch / "reference.safetensors"
    asked.write_text(json.dumps(list(tokens)))
    command = [sys.executable, "-W", "ignore", __file__, version, str(checkpoint), str(asked), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode:
        raise RuntimeError(f"the package failed on {checkpoint.name}: {done.stderr[-2000:]}")
    with safe_open(answer, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        made_with = dict(file.metadata())

    def state(kind: str) -> dict[str, Float32]:
        return {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}

    return Reference(arrays["serial"], arrays["sequence"], state("serial/"), state("sequence/"), made_with)


def _canonical_state(version: str, state: Sequence[Any]) -> dict[str, Float32]:
    """The package's list of tensors by canonical name; v5 and v6 keep [H, key, value] there."""
    parts = V4_STATE if version == "4" else MATRIX_STATE
    result = {}
    for index, tensor in enumerate(state):
        array = tensor.float().numpy()
        name = parts[index % len(parts)]
        if name == "att.state" and version != "7":
            array = array.transpose(0, 2, 1)
        result[f"blocks.{index // len(parts)}.{name}"] = np.ascontiguousarray(array)
    return result


def main(version: str, checkpoint: str, tokens_file: str, answer: str) -> None:
    os.environ["RWKV_V7_ON"] = "1" if version == "7" else "0"
    os.environ["RWKV_JIT_ON"] = "0"
    os.environ["RWKV_CUDA_ON"] = "0"
    import torch
    from rwkv import model as package
    from safetensors.numpy import save_file

    torch.set_num_threads(1)
    tokens = json.loads(Path(tokens_file).read_text())
    if version == "7":
        model = package.RWKV_x070(checkpoint.removesuffix(".pth"), "cpu fp32")
    else:
        model = package.RWKV(checkpoint, "cpu fp32", verbose=False)
        assert f"{model.version:g}" == f"{float(version):g}", f"the package sees version {model.version}"

    def copy(logits: Any) -> Float32:
        return np.asarray(logits.detach().float().numpy()).copy()

    serial, state = [], None
    for token in tokens:
        logits, state = model.forward([token], state)
        serial.append(copy(logits))
    assert state is not None
    arrays = {"serial": np.stack(serial)}
    arrays |= {f"serial/{name}": array for name, array in _canonical_state(version, state).items()}
    logits, state = model.forward(tokens, None, full_output=True)
    arrays["sequence"] = copy(logits)
    arrays |= {f"sequence/{name}": array for name, array in _canonical_state(version, state).items()}
    versions = {"rwkv": importlib.metadata.version("rwkv"), "torch": torch.__version__}
    save_file(arrays, answer, metadata=versions)


if __name__ == "__main__":
    main(*sys.argv[1:])
