"""The files that the benchmarks run: one seeded random RWKV-7 checkpoint per shape, in the formats of every engine.

Files are kept in a folder between runs and made only when they are missing. Random weights leave about half of the
relu² activations above zero; large trained models about 13 %. `density` makes a checkpoint with that share.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from quant.calibration import layout_by_density
from quant.checkpoints import open_checkpoint
from quant.checkpoints.write import write_pth, write_safetensors
from quant.synthetic import SyntheticModel, iter_checkpoint
from rwkvcli.services.exporting import export
from rwkvcli.services.planning import Choices
from rwkvcli.services.quantization import quantize

ROOT = Path(__file__).parent.parent
VOCABULARY = 65536
PLAIN = 0.5
"""The density of a checkpoint that nothing was done to."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: `24x1024` is 24 layers of 1024 channels."""

    layers: int
    width: int
    density: float = PLAIN

    @classmethod
    def parse(cls, text: str, density: float = PLAIN) -> Shape:
        """`LAYERSxWIDTH`."""
        layers, width = map(int, text.split("x"))
        return cls(layers, width, density)

    @property
    def stem(self) -> str:
        """What its files begin with."""
        return f"v7-{self.layers}x{self.width}-{self.density:g}"

    def tensors(self) -> SyntheticModel:
        """The checkpoint's tensors, made on demand."""
        return iter_checkpoint("7", self.layers, self.width, VOCABULARY, seed=1, ffn_density=self.density)


def checkpoint(folder: Path, shape: Shape) -> Path:
    """The checkpoint in bf16, safetensors."""
    path = folder / f"{shape.stem}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        write_safetensors(part, shape.tensors(), "bf16")
        part.replace(path)
    return path


def pth(folder: Path, shape: Shape) -> Path:
    """The checkpoint in bf16 as the `rwkv` package reads it."""
    path = folder / f"{shape.stem}.pth"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        write_pth(part, shape.tensors(), "bf16")
        part.replace(path)
    return path


def ours(folder: Path, shape: Shape, kind: str) -> Path:
    """This engine's file: int8, int6, int5, int4, bf16, f16 or f32. `ffn.value` is laid out as `--calibrate`, which finds the
    density out, lays it out."""
    path = folder / f"{shape.stem}-{kind}.safetensors"
    if not path.exists():
        with open_checkpoint(checkpoint(folder, shape)) as source:
            layout, _ = layout_by_density(shape.density, source.arch)
            quantize(source, path, kind, choices=Choices(ffn_value=layout))
    return path


def gguf(folder: Path, shape: Shape, kind: str, python: str) -> Path:
    """llama.cpp's file: F32 or F16 as `rwkv export` writes it; Q8_0, Q4_0 or Q4_K_M, quantized by llama.cpp itself in
    `python`, which has llama-cpp-python.
    """
    path = folder / f"{shape.stem}-{kind}.gguf"
    if path.exists():
        return path
    if kind in ("F32", "F16"):
        with open_checkpoint(checkpoint(folder, shape)) as model:
            export(model, path, "gguf", dtype=kind.lower())
    else:
        source = gguf(folder, shape, "F16", python)
        run_python(python, "quantize_gguf.py", str(source), str(path), kind)
    return path


def run_python(python: str, script: str, *args: str) -> None:
    """Run a script of this folder in the interpreter of a peer."""
    command = [python, str(ROOT / "benchmarks" / script), *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
