"""Quantization needs little memory of its own, however large the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quant.arch import Arch
from quant.synthetic import SyntheticModel, synthetic_arch, write_pth

WATCHED = """
import sys, threading
from pathlib import Path
from quant.checkpoints import open_checkpoint
from quant.methods import numpy_encoder
from quant.pipeline import quantize

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

source, out, kind = sys.argv[1:]
before = peak = anonymous()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())

thread = threading.Thread(target=watch)
thread.start()
try:
    with open_checkpoint(source) as checkpoint:
        quantize(checkpoint, out, kind, encoder=numpy_encoder("nearest"))
finally:
    done.set()
    thread.join()
print((peak - before) * 1024)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


def peak_memory(folder: Path, arch: Arch, kind: str) -> int:
    """Anonymous bytes that quantizing a bf16 checkpoint of `arch` adds to a fresh process."""
    source = folder / "m.pth"
    write_pth(source, SyntheticModel(arch), "bf16")
    command = [sys.executable, "-P", "-c", WATCHED, str(source), str(folder / "out"), kind]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=110).stdout)


def test_a_large_vocabulary_is_never_held_whole(tmp_path: Path) -> None:
    """Embedding and head are 200 MB each in float32; they pass in blocks."""
    arch = synthetic_arch("7", 1, 768, 65536)
    assert peak_memory(tmp_path, arch, "int8") < 150e6


@pytest.mark.slow
def test_four_bits_hold_one_tensor(tmp_path: Path) -> None:
    """The largest tensors are 100 MB in bf16: at most twice that and 200 MB."""
    arch = synthetic_arch("7", 1, 768, 65536)
    assert peak_memory(tmp_path, arch, "int4") < 2 * 2 * 768 * 65536 + 200e6
